"""``kill -9`` of the server that copies, at random moments: each file is the old or the new one, whole."""

import asyncio
import os
import random
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path
from typing import Any

import httpx
import pytest

from doma.store.file import FileStore

pytestmark = pytest.mark.fault

POINTS = 50
"""Kills of pulls alone, without a whole system around them."""
ROUNDS = int(os.environ.pop("DOMA_TEST_KILLS", "3"))
"""Kills; 50 for a thorough run."""
FILES = 6
SIZE = 2 << 20


# One interpreter that forks: a new one for each round would cost most of the time.
PULLS = """
import asyncio, os, random, signal, sys, time
from pathlib import Path
from doma.doors.tpc_order import order_of
from doma.doors.tpc_progress import Progress
from doma.doors.tpc_pull import Pull, Target
from doma.doors.tpc_remote import Remote, Remotes
from doma.doors.tpc_source import Source
from doma.net.client import RangeClient
from doma.store.file import FileStore
from doma.store.http_trust import RemoteGuard

root, url, rounds = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])

async def main(number):
    store = FileStore(root, fsync=number % 3 == 0)
    guard = RemoteGuard(["loopback"], plain=True)
    remotes = Remotes(RangeClient(allow=guard), guard)

    async def again(name):
        version = number * 1000 + ord(name) * 100
        while True:
            version += 1
            os.write(1, f"{name} begins {version}\\n".encode())
            order, progress = order_of("/", {"source": f"{url}/{version}"}), Progress()
            remote = Remote(remotes, order, progress)
            source = Source(order, remote, progress, lambda: None, {})
            await Pull(order, remote, source, Target(store, f"/in/{name}"), progress, lambda: None).run()
            os.write(1, f"{name} done {version}\\n".encode())

    await asyncio.gather(*map(again, "abc"))

for number in range(rounds):
    pid = os.fork()
    if not pid:
        asyncio.run(main(number))
    time.sleep(random.Random(number).uniform(0.02, 0.3))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    os.write(1, b"killed - -\\n")
    sys.stdin.readline()
"""


def content(version: int) -> bytes:
    return random.Random(version).randbytes(SIZE)


class Source:
    """A slow server of files whose name is their version, on a thread of its own."""

    def __init__(self) -> None:
        self._ready, self._loop = threading.Event(), asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._main(),))

    def __enter__(self) -> "Source":
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(10)
        self._loop.close()

    async def _main(self) -> None:
        self._end = asyncio.Event()
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        self._ready.set()
        await self._end.wait()
        server.close()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                data = content(int(head.split()[1].strip(b"/")))
                writer.write(
                    b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nDigest: adler32=%08x\r\n\r\n"
                    % (len(data), zlib.adler32(data))
                )
                for start in range(0, len(data), 1 << 18):
                    writer.write(data[start : start + (1 << 18)])
                    await writer.drain()
                    await asyncio.sleep(0.002)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()


class Place:
    """One file of ours that is copied to again and again.

    Args:
        name: Of the file.
    """

    def __init__(self, name: str) -> None:
        self.path = f"/site/in/{name}"
        self.confirmed = self.sending = 0
        """Versions: the last that was told to be there, and the one on its way; 0: none."""

    def copy(self, system: Any, token: str, source: str, version: int) -> None:
        """Send a COPY and wait for its end, whatever that is."""
        self.sending = version
        access = system.access
        headers = {"Authorization": f"Bearer {token}", "Source": f"{source}/{version}"}
        try:
            with httpx.Client(verify=access.tls(), timeout=30) as http:
                told = http.request("COPY", access.https + self.path, headers=headers)
        except httpx.TransportError:
            return  # the server was killed
        if told.text.endswith("success: Created\n"):
            self.confirmed = version

    def check(self, system: Any) -> None:
        """Either the last that was confirmed or the one on its way is there, whole."""
        answer = system.ask("GET", self.path)
        if answer.status_code == 404:
            assert not self.confirmed
            return
        assert answer.headers["digest"] == f"adler32={zlib.adler32(answer.content):08x}"
        found = [n for n in (self.sending, self.confirmed) if n and content(n) == answer.content]
        assert found, f"{self.path}: {len(answer.content)} bytes that are no version's"
        self.confirmed = found[0]


@pytest.mark.parametrize("seed", range(ROUNDS))
def test_copies_killed_anywhere_leave_the_old_file_or_the_new_one_whole(
    start: Any, tmp_path: Any, seed: int
) -> None:
    (tmp_path / "home").mkdir(mode=0o700)
    (tmp_path / "home" / "doma.toml").write_text('[tpc]\nallow = ["loopback"]\nplain_http = true\n')
    system, places = start(), [Place(f"f{n}") for n in range(FILES)]
    token = system.token(lifetime=3600)
    for version, place in enumerate(places[: FILES // 2], 1):  # the others are new
        system.put(place.path, content(version))
        place.confirmed = version
    with Source() as source:
        copies = [
            threading.Thread(target=place.copy, args=(system, token, source.url, version))
            for version, place in enumerate(places, 100)
        ]
        for copy in copies:
            copy.start()
        time.sleep(random.Random(seed).uniform(0.05, 1.0))
        system.crash()
        for copy in copies:
            copy.join(30)
    system.up()
    for place in places:
        place.check(system)
    there = {file.name for file in (system.home / "site" / "in").iterdir()}
    assert there <= {f"f{n}" for n in range(FILES)}
    assert list((system.home / "site" / ".doma" / "new").iterdir()) == []
    assert "Traceback" not in system.log


async def test_pulls_killed_at_fifty_random_points(tmp_path: Path) -> None:
    root = tmp_path / "store"
    root.mkdir()
    sending, confirmed, landed = dict[str, int](), dict[str, int](), 0
    with Source() as source:
        child = subprocess.Popen(
            [sys.executable, "-c", PULLS, str(root), source.url, str(POINTS)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        assert child.stdin is not None
        assert child.stdout is not None
        for _ in range(POINTS):
            while (line := child.stdout.readline()) != b"killed - -\n":
                assert line, "the children ended"
                name, what, number = line.decode().split()
                (sending if what == "begins" else confirmed)[name] = int(number)
                landed += what == "done"
            store = FileStore(root, fsync=False)
            assert list((root / ".doma" / "new").iterdir()) == []
            there = {file.name: file for file in (root / "in").iterdir()} if (root / "in").exists() else {}
            assert there.keys() <= sending.keys()
            for name, version in sending.items():
                if name not in there:
                    assert name not in confirmed
                    continue
                data = there[name].read_bytes()
                found = [n for n in (version, confirmed.get(name)) if n is not None and content(n) == data]
                assert found, f"{name}: {len(data)} bytes that are no version's"
                confirmed[name] = found[0]
                assert (await store.stat(f"/in/{name}")).checksums["adler32"] == f"{zlib.adler32(data):08x}"
            await store.close()
            child.stdin.write(b"\n")
            child.stdin.flush()
        child.communicate(timeout=30)
        assert child.returncode == 0
    assert landed > POINTS
