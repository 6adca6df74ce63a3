"""What happens between buffer and library, over both kinds of library."""

import asyncio
import json
import os
import resource
import signal
import stat as modes
import sys
import zlib
from pathlib import Path

import pytest
from sqlalchemy import delete

from doma.core.config import Staging, Tape
from doma.core.errors import (
    BadRequest,
    ConfigError,
    NotFound,
    OnTape,
    PreconditionFailed,
    StorageUnavailable,
    TooManyRequests,
)
from doma.db.engine import Database
from doma.store import tape_engine
from doma.store.protocol import CanStage, Locality
from doma.store.tape import TapeStore
from doma.store.tape_command import CommandLibrary
from doma.store.tape_library import FolderLibrary, Place
from doma.store.tape_requests import StageRequests
from doma.store.tape_stages import Wanted, tidy
from doma.store.tape_tables import files
from tests.conftest import migrated

SITE = """#!{python}
import json, pathlib, shutil, sys
folder, verb, ident, *rest = pathlib.Path({folder!r}), *sys.argv[1:]
file = folder / ident
if verb == "archive":
    shutil.copyfile(rest[0], file)
elif not file.exists():
    print("no such file", file=sys.stderr)
    sys.exit(2)
if verb == "stage":
    shutil.copyfile(file, rest[2])
elif verb == "remove":
    file.unlink()
else:
    print("some words of the tape system")
    print(json.dumps({{"cartridge": "L00001", "position": 7}}))
"""


@pytest.fixture(params=["folder", "command"])
def options(request, tmp_path):
    """A buffer that keeps only what is pinned, before either library."""
    usual = {"buffer": 0, "retry": 0.05, "drives": 2}
    (tmp_path / "tapes").mkdir()
    if request.param == "folder":
        return Tape(**usual, library=str(tmp_path / "tapes"))
    program = tmp_path / "site-tape"
    program.write_text(SITE.format(python=sys.executable, folder=str(tmp_path / "tapes")))
    program.chmod(program.stat().st_mode | modes.S_IXUSR)
    verbs = {verb: (str(program), verb) for verb in ("archive", "stage", "query", "remove")}
    return Tape(**usual, **verbs, timeout=20)


class System:
    """A tape store, its requests, and the library's files by hand."""

    def __init__(self, folder: Path, options: Tape, db: Database | None = None) -> None:
        self.folder, self.options = folder, options
        self.db = db or migrated(folder / "rows.db")
        self.open()

    def open(self) -> None:
        self.store = TapeStore(self.folder / "tape", self.db, "tape", self.options, fsync=False)
        self.requests = StageRequests(self.db, {"tape": self.store}, Staging())

    async def close(self) -> None:
        await self.store.close()
        self.db.close()

    async def put(self, path: str, data: bytes, **how):
        upload = await self.store.create(path, **how)
        await upload.write(data)
        return await upload.commit()

    async def get(self, path: str) -> bytes:
        reader = await self.store.open(path)
        try:
            return bytes(await reader.read(0, reader.stat.size))
        finally:
            await reader.close()

    async def until(self, path: str, locality: Locality):
        for _ in range(1000):
            found = await self.store.stat(path)
            if found.locality is locality:
                return found
            await asyncio.sleep(0.02)
        pytest.fail(f"{path} is {found.locality}, not {locality}")

    async def stage(self, *paths: str, lifetime: float = 3600) -> str:
        wanted = [Wanted(f"/tape{path}", lifetime) for path in paths]
        ident = await self.requests.submit("https://iss#ada", wanted)
        await self.requests.look()
        return ident

    async def done(self, ident: str) -> dict[str, tuple[str, str]]:
        for _ in range(1000):
            if (await self.requests.find(ident, "https://iss")).completed:
                break
            await asyncio.sleep(0.02)
        rows = [row async for page in self.requests.pages(ident) for row in page]
        return {row.path.removeprefix("/tape"): (row.state, row.error) for row in rows}

    @property
    def tapes(self) -> list[Path]:
        return [file for file in sorted((self.folder / "tapes").rglob("*")) if file.is_file()]


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """Looks at the lock and at what others have queued come so often that a test can wait for them."""
    monkeypatch.setattr(tape_engine, "INTERVAL", 0.1)


@pytest.fixture
async def system(tmp_path, options):
    one = System(tmp_path, options)
    yield one
    await one.close()


async def test_a_file_keeps_its_version_through_tape(system):
    assert isinstance(system.store, CanStage)
    system.store.start()
    data = bytes(range(256)) * 5000
    before = await system.put("/a/f", data)
    away = await system.until("/a/f", Locality.TAPE)
    assert (away.version, away.size, away.modified) == (before.version, before.size, before.modified)
    assert away.checksums["adler32"] == f"{zlib.adler32(data):08x}"
    assert [s.locality async for s in system.store.list("/a")] == [Locality.TAPE]
    with pytest.raises(OnTape):
        await system.store.open("/a/f")
    assert await system.store.checksum("/a/f", "adler32") == before.checksums["adler32"]
    with pytest.raises(OnTape):
        await system.store.checksum("/a/f", "md5")
    with pytest.raises(PreconditionFailed):
        await system.store.delete("/a/f", version="another")
    assert await system.done(await system.stage("/a/f")) == {"/a/f": ("COMPLETED", None)}
    assert await system.get("/a/f") == data
    assert (await system.store.stat("/a/f")).version == before.version
    await system.put("/a/f", b"new", if_version=before.version)
    assert await system.get("/a/f") == b"new"


async def test_bytes_that_rot_on_tape_are_never_served(system):
    system.options = system.options.model_copy(update={"attempts": 2})
    await system.store.close()
    system.open()
    system.store.start()
    await system.put("/f", b"what was written")
    await system.until("/f", Locality.TAPE)
    (file,) = system.tapes
    file.chmod(0o600)
    file.write_bytes(b"what was writtem")
    (fate,) = (await system.done(await system.stage("/f"))).values()
    assert fate[0] == "FAILED"
    assert "recall failed 2 times" in fate[1]
    assert (await system.store.stat("/f")).locality is Locality.TAPE
    file.write_bytes(b"what was written")
    assert (await system.done(await system.stage("/f")))["/f"][0] == "COMPLETED"
    assert await system.get("/f") == b"what was written"


async def test_what_the_library_has_lost_is_said_to_be_lost(system):
    system.store.start()
    await system.put("/f", b"lost")
    await system.until("/f", Locality.TAPE)
    system.tapes[0].unlink()
    (fate,) = (await system.done(await system.stage("/f"))).values()
    assert (fate[0], "lost" in fate[1]) == ("FAILED", True)
    assert (await system.store.stat("/f")).locality is Locality.LOST
    with pytest.raises(NotFound):
        await system.store.open("/f")
    assert (await system.done(await system.stage("/f")))["/f"][0] == "FAILED"
    await system.put("/f", b"written again")
    await system.until("/f", Locality.TAPE)


async def test_a_file_replaced_or_deleted_on_its_way_leaves_nothing_old(system):
    await system.put("/kept", b"kept")
    for path in ("/replaced", "/deleted", "/moved"):
        await system.put(path, b"old " + path.encode())
    system.store.start()
    await system.put("/replaced", b"new")
    await system.store.delete("/deleted")
    await system.store.rename("/moved", "/here")
    for path in ("/kept", "/replaced", "/here"):
        await system.until(path, Locality.TAPE)
    ident = await system.stage("/kept", "/replaced", "/here", "/deleted")
    await system.put("/kept", b"newer than the recall")
    assert (await system.done(ident))["/deleted"][0] == "FAILED"
    await system.done(await system.stage("/kept", "/replaced", "/here"))
    assert await system.get("/kept") == b"newer than the recall"
    assert await system.get("/replaced") == b"new"
    assert await system.get("/here") == b"old /moved"
    for _ in range(500):
        if len(system.tapes) == 3:
            break
        await asyncio.sleep(0.02)
    assert len(system.tapes) == 3


async def test_a_stub_of_ones_own_making_opens_nobody_elses_file(system):
    system.store.start()
    await system.put("/secret", b"the secret of somebody else")
    await system.until("/secret", Locality.TAPE)
    stub = (system.folder / "tape" / "disk" / "secret").read_bytes()
    forged = bytearray(stub)
    forged[-2] = ord("0") if forged[-2] != ord("0") else ord("1")
    await system.put("/mine", bytes(forged))
    await system.until("/mine", Locality.TAPE)
    await system.done(await system.stage("/mine"))
    assert await system.get("/mine") == bytes(forged)


async def test_what_others_do_in_the_buffer_is_noticed(system):
    disk = system.folder / "tape" / "disk"
    await system.put("/a/f", b"written here")
    system.store.start()
    await system.until("/a/f", Locality.TAPE)
    await system.store.close()
    (disk / "a" / "f").rename(disk / "a" / "renamed")
    gone = await _removed(system, "/a/gone", disk)
    (disk / "put").write_bytes(b"put by hand")
    system.open()
    assert (await system.store.stat("/a/renamed")).size == len(b"written here")
    system.store.start()
    await system.until("/put", Locality.TAPE)
    await system.until("/a/renamed", Locality.TAPE)
    found = await _there(system, gone)
    assert found.locality is Locality.TAPE
    assert (await system.done(await system.stage("/put", "/a/renamed", gone))).values()
    assert await system.get("/put") == b"put by hand"
    assert await system.get("/a/renamed") == b"written here"
    assert await system.get(gone) == b"on tape"


async def _removed(system, path, disk):
    """A file that is on tape and was taken from the disk by hand."""
    system.open()
    system.store.start()
    await system.put(path, b"on tape")
    await system.until(path, Locality.TAPE)
    await system.store.close()
    (disk / path[1:]).unlink()
    return path


async def _there(system, path):
    for _ in range(500):
        try:
            return await system.store.stat(path)
        except NotFound:
            await asyncio.sleep(0.02)
    return await system.store.stat(path)


async def test_only_one_store_at_a_time_works_the_drives(system):
    other = TapeStore(system.folder / "tape", system.db, "tape", system.options, fsync=False)
    system.store.start()
    await system.put("/f", b"1")
    await system.until("/f", Locality.TAPE)
    other.start()
    upload = await other.create("/g")
    await upload.write(b"by the other")
    await upload.commit()
    await system.until("/g", Locality.TAPE)
    await system.store.close()
    system.open()
    await system.until("/g", Locality.TAPE)
    assert (await system.done(await system.stage("/g")))["/g"][0] == "COMPLETED"
    assert await system.get("/g") == b"by the other"
    await other.close()


async def test_archiving_never_gives_up(tmp_path):
    (tmp_path / "tapes").mkdir()
    options = Tape(library=str(tmp_path / "tapes"), write_failures=0.7, mount_failures=0.3, retry=0.01)
    system = System(tmp_path, options)
    system.store.start()
    for i in range(5):
        await system.put(f"/{i}", b"x" * i + b"1")
    for i in range(5):
        await system.until(f"/{i}", Locality.DISK_AND_TAPE)
    assert len(system.tapes) == 5
    await system.close()


async def test_files_of_one_cartridge_are_read_in_the_order_of_positions_in_one_mount(tmp_path):
    options = Tape(buffer=0, drives=1, retry=0.05)
    (tmp_path / "tapes").mkdir()
    system = System(tmp_path, options.model_copy(update={"library": str(tmp_path / "tapes")}))
    system.store.start()
    paths = [f"/{i}" for i in range(30)]
    for path in paths:
        await system.put(path, path.encode() * 100)
    for path in paths:
        await system.until(path, Locality.TAPE)
    await system.store.close()
    library = FolderLibrary(tmp_path / "tapes", options)
    system.store = TapeStore(tmp_path / "tape", system.db, "tape", options, library=library, fsync=False)
    system.requests = StageRequests(system.db, {"tape": system.store}, Staging())
    one, two = await system.stage(*paths[::-2]), await system.stage(*paths[::3])
    system.store.start()
    await system.done(one)
    await system.done(two)
    positions = [position for _, position in library.counts.order]
    assert positions == sorted(set(positions))
    assert len(positions) == len({*paths[::-2], *paths[::3]})
    assert library.counts.mounts == 1
    await system.close()


async def test_a_simulated_library_takes_its_time_and_knows_what_it_has(tmp_path):
    waited = []

    async def sleep(seconds):
        waited.append(seconds)

    options = Tape(mount_time=40, seek_time=100, bandwidth=10, capacity=1000, drives=1)
    library = FolderLibrary(tmp_path / "tapes", options, sleep=sleep)
    source = tmp_path / "f"
    source.write_bytes(b"a" * 500)
    places = [await library.archive(0, f"id{i}", source, 500, "") for i in range(3)]
    assert places == [Place("V00001", 0), Place("V00001", 500), Place("V00002", 0)]
    assert waited == [40, 50, 50, 40, 50]
    waited.clear()
    again = FolderLibrary(tmp_path / "tapes", options, sleep=sleep)
    assert await again.archive(0, "id1", source, 500, "") == places[1]
    await again.recall(0, "id1", places[1], 500, tmp_path / "back")
    assert waited == [40, 50 + 50]
    assert (tmp_path / "back").read_bytes() == source.read_bytes()
    await again.remove("id1", None)
    await again.remove("id1", places[1])
    with pytest.raises(NotFound):
        await again.recall(0, "id1", places[1], 500, tmp_path / "gone")


def script(tmp_path, text):
    program = tmp_path / "command"
    program.write_text(f"#!/bin/sh\n{text}\n")
    program.chmod(0o700)
    verbs = dict.fromkeys(("archive", "stage", "query"), (str(program),))
    return CommandLibrary(Tape(**verbs, timeout=0.5))


@pytest.mark.parametrize(
    "text",
    [
        "exit 1", "exit 77", "sleep 60", "kill -9 $$", "echo no json", "echo '{}'", "echo '[]'",
        """echo '{"cartridge": 7, "position": 1}'""", """echo '{"cartridge": "V1", "position": true}'""",
        "head -c 10000000 /dev/zero", "sleep 60 & echo '{'",
        """echo '{"cartridge": "-rf", "position": 1}'""", """echo '{"cartridge": "V1", "position": -1}'""",
        r"""printf '%s' '{"cartridge": "a\u0000b", "position": 1}'""",
        r"""printf '%s' '{"cartridge": "\ud800", "position": 1}'""",
        """echo '{"cartridge": "V1", "position": 9223372036854775808}'""",
    ],
)  # fmt: skip
async def test_a_command_that_misbehaves_is_tried_again_later(tmp_path, text):
    with pytest.raises(StorageUnavailable):
        await script(tmp_path, text).archive(0, "id", tmp_path, 1, "")


async def test_a_child_that_left_its_command_and_never_stops_talking_fills_no_memory(tmp_path):
    pid = tmp_path / "pid"
    talk = "head -c 300000000 /dev/zero; while :; do echo y; sleep 0.05; done"
    library = script(tmp_path, f"setsid sh -c 'echo $$ > {pid}; {talk}' & sleep 60")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        with pytest.raises(StorageUnavailable, match="killed"):
            await library.archive(0, "id", tmp_path, 1, "")
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000
    finally:
        os.kill(int(pid.read_text()), signal.SIGKILL)


async def test_a_command_gets_its_arguments_as_they_are(tmp_path):
    said = tmp_path / "said"
    library = script(
        tmp_path,
        f'printf "%s\\n" "$@" > {said}\n[ $# = 1 ] && exit 2\necho \'{{"cartridge":"V","position":3}}\'',
    )
    place = await library.archive(0, "id", tmp_path / "a b; rm $HOME", 5, "0a")
    assert place == Place("V", 3)
    assert said.read_text().splitlines() == ["id", str(tmp_path / "a b; rm $HOME"), "5", "0a"]


def test_a_tape_system_needs_its_three_commands():
    with pytest.raises(ConfigError):
        CommandLibrary(Tape(archive=("a",), stage=("b",)))


async def test_events_are_written_with_what_they_tell_of(system):
    system.store.start()
    await system.put("/f", b"told")
    await system.until("/f", Locality.TAPE)
    await system.done(await system.stage("/f"))

    def kinds(tx):
        from doma.db.outbox import after

        return [(event.kind, event.subject, json.dumps(dict(event.data))) for _, event, _ in after(tx, 0)]

    told = await system.db.look(kinds)
    assert [kind for kind, subject, _ in told if subject == "/tape/f"] == [
        "file.archived", "file.evicted", "file.recalled",
    ]  # fmt: skip
    stages = [json.loads(data).get("state") for kind, _, data in told if kind == "stage.changed"]
    assert stages == ["STARTED", "COMPLETED"]


async def test_a_stub_whose_row_is_lost_is_not_taken_for_the_file(system):
    system.store.start()
    await system.put("/f", b"somewhere on tape")
    await system.until("/f", Locality.TAPE)
    await system.store.close()
    await system.db.run(lambda tx: tx.execute(delete(files)))
    system.open()
    with pytest.raises(NotFound):
        await system.store.stat("/f")
    with pytest.raises(NotFound):
        await system.store.open("/f")
    assert [s async for s in system.store.list("/")] == []


async def test_a_client_may_have_only_so_many_files_waiting(system):
    requests = StageRequests(system.db, {"tape": system.store}, Staging(open_files=3))
    await requests.submit("iss#ada", [Wanted(f"/tape/{i}", 1) for i in range(5)])
    with pytest.raises(TooManyRequests) as caught:
        await requests.submit("iss#ada", [Wanted("/tape/x", 1)])
    assert caught.value.retry_after
    await requests.submit("iss#bob", [Wanted("/tape/x", 1)])
    await requests.look()
    await requests.submit("iss#ada", [Wanted("/tape/x", 1)])


async def test_requests_are_kept_for_a_while_after_their_end_and_as_long_as_a_pin(system):
    now = [1000.0]
    kept = Staging(retention=100)
    requests = StageRequests(system.db, {"tape": system.store}, kept, lambda: now[0])
    await system.put("/f", b"x")
    ended = await requests.submit("iss#ada", [Wanted("/tape/gone", 1)])
    pinned = await requests.submit("iss#ada", [Wanted("/tape/f", 500)])
    waiting = await requests.submit("iss#ada", [Wanted("/tape/f", 500)])
    for moment, left in ((1099, {ended, pinned}), (1101, {pinned}), (1501, set())):
        if moment == 1099:
            await requests.look()
            await requests.cancel(waiting, ["/tape/f"])
            await requests.remove(waiting)
        now[0] = moment
        await system.db.run(lambda tx: tidy(tx, now[0], kept.retention))
        for ident in (ended, pinned):
            if ident in left:
                await requests.find(ident, "iss")
            else:
                with pytest.raises(NotFound):
                    await requests.find(ident, "iss")


async def test_the_whole_life_of_files_and_requests_on_both_databases(database, tmp_path):
    (tmp_path / "tapes").mkdir()
    options = Tape(buffer=0, retry=0.05, library=str(tmp_path / "tapes"))
    system = System(tmp_path, options, database)
    system.store.start()
    for path in ("/d/a", "/d/b", "/d/c"):
        await system.put(path, b"content of " + path.encode())
    for path in ("/d/a", "/d/b", "/d/c"):
        await system.until(path, Locality.TAPE)
    await system.store.rename("/d", "/e")
    one = await system.stage("/e/a", "/e/b", "/e/none")
    two = await system.stage("/e/a", "/e/c")
    fates = await system.done(one)
    assert [fates[path][0] for path in ("/e/a", "/e/b", "/e/none")] == ["COMPLETED", "COMPLETED", "FAILED"]
    await system.done(two)
    assert await system.get("/e/a") == b"content of /d/a"
    await system.requests.release(one, "https://iss#ada", ["/tape/e/a", "/tape/e/b"])
    await system.until("/e/b", Locality.TAPE)
    assert (await system.store.stat("/e/a")).locality is Locality.DISK_AND_TAPE
    with pytest.raises(BadRequest):
        await system.requests.cancel(two, ["/tape/e/c", "/tape/other"])
    await system.requests.cancel(two, ["/tape/e/c"])
    await system.requests.remove(two)
    await system.until("/e/a", Locality.TAPE)
    await system.put("/e/b", b"replaced")
    await system.store.delete("/e", recursive=True)
    for _ in range(500):
        if not system.tapes:
            break
        await asyncio.sleep(0.02)
    assert system.tapes == []
    await system.store.close()
