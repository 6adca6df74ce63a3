"""``kill -9`` of a whole system at any moment, then ``doma up``: nothing wrong, lost or left over."""

import json
import os
import random
import signal
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from doma.core.checksum import hasher
from doma.facility.sample import generate

pytestmark = pytest.mark.fault

ROUNDS = 5


@pytest.fixture
def system(start: Any) -> Any:
    """A system on a fresh home."""
    return start()


class Load:
    """Threads that use a system until it dies; what they found wrong is raised at the end."""

    def __init__(self, system: Any, work: list[Callable[[httpx.Client, threading.Event], None]]) -> None:
        self._system, self._token = system, system.token(lifetime=3600)
        self._stop, self._wrong = threading.Event(), list[BaseException]()
        self.begun = threading.Semaphore(0)
        self._threads = [threading.Thread(target=self._run, args=(one,)) for one in work]

    def _run(self, one: Callable[[httpx.Client, threading.Event], None]) -> None:
        headers = {"Authorization": f"Bearer {self._token}"}
        access = self._system.access
        try:
            with httpx.Client(
                base_url=access.https, verify=access.tls(), headers=headers, timeout=30
            ) as http:
                self.begun.release()
                one(http, self._stop)
        except httpx.TransportError:
            return  # the server was killed
        except BaseException as e:  # noqa: BLE001 - told in the test's own thread
            self._wrong.append(e)

    def kill_within(self, rng: random.Random, low: float, high: float) -> set[int]:
        """Run, kill the server at some moment, end; the processes that it had."""
        for thread in self._threads:
            thread.start()
        for _ in self._threads:
            self.begun.acquire()
        time.sleep(rng.uniform(low, high))
        workers: set[int] = self._system.workers()
        self._system.crash()
        self._stop.set()
        for thread in self._threads:
            thread.join(30)
            assert not thread.is_alive()
        if self._wrong:
            raise self._wrong[0]
        return workers


def check_dead(workers: set[int]) -> None:
    """No process of a killed system outlives it by more than a moment."""
    deadline = time.monotonic() + 15
    while left := [pid for pid in workers if _lives(pid)]:
        assert time.monotonic() < deadline, f"orphans: {left}"
        time.sleep(0.05)


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def check_tidy(system: Any) -> None:
    """Nothing that was being written is left over."""
    home = system.home.path
    inner = [home / "site" / ".doma", home / "results" / ".doma"]
    assert [p for base in inner for name in ("new", "gone") for p in (base / name).rglob("*")] == []
    assert [p for p in (home / "work").rglob("*") if p.is_file()] == []
    (own,) = (home / "work").iterdir()
    assert f"-{system.pid}-" in own.name
    assert [p.name for p in home.iterdir() if p.name.startswith(".")] == []


def adler32(data: bytes) -> str:
    digest = hasher("adler32")
    digest.update(data)
    return digest.hexdigest()


# Uploads.


class Writer:
    """Replaces one file again and again; knows what it was told and what it was in the middle of."""

    def __init__(self, name: str, seed: int) -> None:
        self.path = f"/site/up/{name}"
        self._rng = random.Random(seed)
        self.confirmed: bytes | None = None
        self.sending: bytes | None = None

    def __call__(self, http: httpx.Client, stop: threading.Event) -> None:
        while not stop.is_set():
            self.sending = self._rng.randbytes(self._rng.randrange(1, 5 << 20))
            answer = http.put(self.path, content=self.sending)
            assert answer.status_code in {201, 204}, answer.text
            self.confirmed, self.sending = self.sending, None

    def check(self, system: Any) -> None:
        """Either the last that was confirmed or the one on its way, whole; then that is what is there."""
        answer = system.ask("GET", self.path)
        if answer.status_code == 404:
            assert self.confirmed is None
            return
        assert answer.status_code == 200
        assert answer.content in [one for one in (self.confirmed, self.sending) if one is not None]
        assert f"adler32={adler32(answer.content)}" in answer.headers["digest"]
        self.confirmed, self.sending = answer.content, None


def test_uploads_killed_anywhere_leave_the_old_file_or_the_new_one_whole(system):
    rng = random.Random(20)
    writers = [Writer(f"f{n}", n) for n in range(4)]
    for _ in range(ROUNDS):
        workers = Load(system, list(writers)).kill_within(rng, 0.05, 0.8)
        check_dead(workers)
        system.up()
        check_tidy(system)
        for writer in writers:
            writer.check(system)
        there = {p.name for p in (system.home / "site" / "up").iterdir()}
        assert there <= {f"f{n}" for n in range(4)}
        assert "Traceback" not in system.log
    assert all(writer.confirmed for writer in writers)


# Cache fills.


class Reader:
    """Reads random ranges of files through the cache; each answer is of one version."""

    def __init__(self, versions: dict[str, list[bytes]], seed: int) -> None:
        self._versions, self._rng = versions, random.Random(seed)
        self.read = 0

    def __call__(self, http: httpx.Client, stop: threading.Event) -> None:
        while not stop.is_set():
            name = self._rng.choice(sorted(self._versions))
            known = self._versions[name]
            first = self._rng.randrange(len(known[0]))
            last = min(len(known[0]), first + self._rng.randrange(1, 1 << 20)) - 1
            answer = http.get(f"/cache/fill/{name}", headers={"Range": f"bytes={first}-{last}"})
            assert answer.status_code == 206, answer.text
            assert any(answer.content == version[first : last + 1] for version in known), (name, first, last)
            self.read += len(answer.content)


def test_cache_fills_killed_anywhere_never_lead_to_a_wrong_byte(system):
    rng = random.Random(30)
    size = 6_000_001
    versions = {f"f{n}": [rng.randbytes(size)] for n in range(4)}
    for name, (content,) in versions.items():
        system.put(f"/site/fill/{name}", content)
    readers = [Reader(versions, n) for n in range(4)]
    for round_ in range(ROUNDS):
        workers = Load(system, list(readers)).kill_within(rng, 0.02, 0.6)
        check_dead(workers)
        if round_ == 2:  # the origin has a new version while nothing runs
            versions["f0"].append(rng.randbytes(size))
            (system.home / "site" / "fill" / "new").write_bytes(versions["f0"][1])
            (system.home / "site" / "fill" / "new").rename(system.home / "site" / "fill" / "f0")
        system.up()
        check_tidy(system)
        for name, known in versions.items():
            assert _whole(system, f"/cache/fill/{name}") in known, name
        assert "Traceback" not in system.log
        if round_ < ROUNDS - 1:  # so that the next round has something to fill
            evicted = system.ask("POST", "/pelican/api/v1.0/evict?path=/fill/&immediate=true", system.admin())
            assert evicted.status_code == 200, evicted.text
    assert sum(reader.read for reader in readers) > 0
    checked = system.ask("POST", "/api/v1/cache/verify?path=/fill/f1", system.admin())
    assert checked.status_code == 200
    assert checked.json()["damaged"] == 0


def _whole(system: Any, path: str) -> bytes:
    """A file through the cache; where its origin changed under it, the first answer may be a refusal."""
    answer = system.ask("GET", path)
    if answer.status_code == 502:
        assert "another version" in answer.text
        answer = system.ask("GET", path)
    assert answer.status_code == 200, answer.text
    return bytes(answer.content)


# Column requests.

_TWO = "(lambda (list e) (> (attr e 'nMuon') 1))"
_COLUMNS = "(lambda (list e) (dict (list 'pt' 'n') (list (attr e 'Muon_pt') (attr e 'nMuon'))))"
_QUERY = f"(call Select (call Where (call EventDataset 'f' 'Events') {_TWO}) {_COLUMNS})"


def _finished(system: Any, request: str) -> dict[str, Any]:
    deadline = time.monotonic() + 60
    while True:
        found: dict[str, Any] = system.ask("GET", f"/servicex/transformation/{request}/status").json()
        if found["status"] in {"Complete", "Fatal", "Canceled"}:
            return found
        assert time.monotonic() < deadline, found


def _results(system: Any, request: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = system.ask("GET", f"/servicex/transformation/{request}/results").json()[
        "results"
    ]
    return rows


def _ends(system: Any, request: str) -> int:
    """How often the end of a request was told."""
    with closing(sqlite3.connect(f"file:{system.home / 'doma.db'}?mode=ro", uri=True)) as db:
        ((count,),) = db.execute(
            "SELECT count(*) FROM events WHERE subject = ? AND kind = 'request.finished'", (request,)
        )
    return int(count)


@pytest.fixture
def inputs(system: Any, tmp_path: Path) -> list[str]:
    """Three files of different length in the storage endpoint."""
    for n in range(3):
        path = generate(tmp_path / f"in{n}.root", 20_000 + 5_000 * n, seed=n)
        system.put(f"/site/in/in{n}.root", path.read_bytes())
    return [f"{system.run['https']}/site/in/in{n}.root" for n in range(3)]


def _rows(system: Any, request: str) -> Iterator[int]:
    """Rows of each result, read as a user reads them: by its own URL, without another credential."""
    import io

    import pyarrow.parquet as pq

    rows = _results(system, request)
    names = [row["s3-object-name"] for row in rows]
    asked = {"request_id": request, "file_list": names, "scheme": "http"}
    urls = system.ask("POST", "/servicex/transformation/file-urls", json=asked).json()["uris"]
    for row in sorted(rows, key=lambda r: str(r["file-path"])):
        table = pq.read_table(io.BytesIO(system.ask("GET", urls[row["s3-object-name"]][0], None).content))
        assert table.num_rows == row["total-events"]
        yield table.num_rows


def test_a_request_for_columns_submitted_before_the_kill_finishes_exactly_once(system, inputs):
    rng = random.Random(40)
    expected: list[int] = []
    for round_ in range(ROUNDS + 1):
        # another text each time, so that no result of an earlier round is taken over
        query = _QUERY.replace("'n')", f"'n{round_}')")
        body = {"selection": query, "file-list": inputs, "title": f"round {round_}"}
        answer = system.ask("POST", "/servicex/transformation", json=body)
        assert answer.status_code == 200, answer.text
        request = answer.json()["request_id"]
        if round_:  # the first one is not disturbed: it says what is right
            time.sleep(rng.uniform(0, 0.7))
            workers = system.workers()
            system.crash()
            check_dead(workers)
            system.up()
        found = _finished(system, request)
        assert (found["status"], found["files-completed"], found["files-failed"]) == ("Complete", 3, 0), found
        rows = list(_rows(system, request))
        expected = expected or rows
        assert rows == expected
        assert all(n > 1000 for n in rows)
        objects = {p.name for p in (system.home / "results" / request).iterdir()}
        assert objects == {row["s3-object-name"] for row in _results(system, request)}
        assert _ends(system, request) == 1
        check_tidy(system)
        assert "Traceback" not in system.log


def test_a_system_killed_while_it_starts_starts_the_next_time(start, system):
    """At any moment between the first file it makes and the last."""
    from doma.app.child import Child

    rng = random.Random(50)
    system.put("/site/kept", b"kept")
    token = system.token()
    system.crash()
    for _ in range(ROUNDS):
        child = Child(system.home)
        starter = threading.Thread(target=_ignoring_failure, args=(child,))
        starter.start()
        while not child.pid:
            time.sleep(0.01)
        time.sleep(rng.uniform(0.3, 1.6))
        os.kill(child.pid, 9)
        starter.join()
    system.up()
    assert system.ask("GET", "/site/kept", token).content == b"kept"
    assert json.loads((system.home / "run.json").read_text())["pid"] == system.pid
    check_tidy(system)


def _ignoring_failure(child: Any) -> None:
    from doma.core.errors import ServiceUnavailable

    try:
        child.start()
    except ServiceUnavailable:
        return


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_demo_that_is_stopped_takes_its_system_and_its_workers_with_it(tmp_path, command, number):
    home = tmp_path / "home"
    # a shell's background job ignores SIGINT and its children inherit that; a handler of ours they don't
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        [*command.words, "demo", "--home", str(home), "--events", "1000", "--plot", str(tmp_path / "x.png")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    signal.signal(signal.SIGINT, before)
    try:
        while not (home / "run.json").exists():
            assert process.poll() is None
            time.sleep(0.02)
        time.sleep(random.Random(number).uniform(0, 2))
        family = _descendants(process.pid)
        process.send_signal(number)
        assert process.wait(60) != 0
    finally:
        process.kill()
        process.wait()
    assert family
    check_dead(family)
    assert not (home / "run.json").exists()


def _descendants(pid: int) -> set[int]:
    """Children of a process, theirs, and so on."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found, more = set[int](), {pid}
    while more:
        more = {child for child, parent in parents.items() if parent in more}
        found |= more
    return found
