"""Very many clients that do nothing, and a disk that fills half way: memory is bounded, nothing stays."""

import asyncio
import os
import resource
import shutil
import socket
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.fault

IDLE = int(os.environ.pop("DOMA_TEST_IDLE", "10000"))
STREAMS = int(os.environ.pop("DOMA_TEST_STREAMS", "1000"))
"""5000 for a thorough run."""
SPARE = 500
"""Descriptors for everything else."""
CONFIG = """
[listen]
max_connections = {connections}
idle_timeout = 600
[tpc]
allow = ["loopback"]
plain_http = true
stall = 600
per_issuer = {streams}
per_host = {streams}
[endpoints.site]
store = "file://{site}"
"""


def needs(files: int) -> None:
    """Raise the limit of open files as far as allowed; skip where that is too little."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard < files:
        pytest.skip(f"{files} open files are needed, {hard} are allowed")


def memory(pid: int) -> int:
    """Bytes of a process's own memory."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon"))


class Source:
    """A server whose files begin, and go on when they are told to; on a thread of its own.

    Args:
        data: What every file holds.
        first: Bytes that come at once.
        chunked: Whether the length is told.
        lies: Whether the checksum that is told is another one.
    """

    def __init__(self, data: bytes, first: int, *, chunked: bool = False, lies: bool = False) -> None:
        self._data, self._first, self._chunked = data, first, chunked
        self._sum = zlib.adler32(data) ^ lies
        self._loop, self._ready = asyncio.new_event_loop(), threading.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._main(),))
        self.begun = 0

    def __enter__(self) -> "Source":
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(20)
        self._loop.close()

    def go_on(self) -> None:
        self._loop.call_soon_threadsafe(self._go.set)

    async def _main(self) -> None:
        self._end, self._go = asyncio.Event(), asyncio.Event()
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, backlog=4096)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/f"
        self._ready.set()
        await self._end.wait()
        server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0.1)  # until the transports have closed their sockets

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                frame = (
                    "Transfer-Encoding: chunked" if self._chunked else f"Content-Length: {len(self._data)}"
                )
                digest = f"Digest: adler32={self._sum:08x}"
                writer.write(f"HTTP/1.1 200 OK\r\n{frame}\r\n{digest}\r\n\r\n".encode())
                self._write(writer, self._data[: self._first])
                await writer.drain()
                self.begun += 1
                await self._go.wait()
                for at in range(self._first, len(self._data), 1 << 18):
                    self._write(writer, self._data[at : at + (1 << 18)])
                    await writer.drain()
                writer.write(b"0\r\n\r\n" if self._chunked else b"")
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    def _write(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        writer.write(b"%x\r\n%s\r\n" % (len(data), data) if self._chunked else data)


@pytest.fixture
def begin(start: Any, tmp_path: Path) -> Callable[..., Any]:
    """Starts a system whose endpoint ``site`` lies in a folder."""

    def one(site: Path, connections: int = 1000, streams: int = 64) -> Any:
        (tmp_path / "home").mkdir(mode=0o700)
        text = CONFIG.format(connections=connections, streams=streams, site=site)
        (tmp_path / "home" / "doma.toml").write_text(text)
        return start()

    return one


def place_of(system: Any) -> tuple[str, int]:
    host, _, port = system.run["url"].removeprefix("http://").rpartition(":")
    return host, int(port)


def asked(place: tuple[str, int], text: str, *lines: str) -> socket.socket:
    """A connection over which a request has been sent."""
    sock = socket.create_connection(place, timeout=60)
    sock.sendall("\r\n".join([f"{text} HTTP/1.1", "Host: localhost", *lines, "", ""]).encode())
    return sock


def left(site: Path) -> list[Path]:
    """What uploads have left."""
    return list((site / ".doma" / "new").iterdir())


def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it does not come"
        time.sleep(0.05)


def test_ten_thousand_idle_connections_cost_little_and_keep_nobody_out(begin: Any, tmp_path: Path) -> None:
    needs(IDLE + SPARE)
    system = begin(tmp_path / "site", connections=IDLE + SPARE)
    system.put("/site/f", b"here")
    place, before = place_of(system), memory(system.pid)
    with ExitStack() as held:
        for _ in range(IDLE):
            sock = held.enter_context(asked(place, "HEAD /site/f"))
            assert sock.recv(4096).startswith(b"HTTP/1.1 401")
        cost = memory(system.pid) - before
        print(f"{IDLE} idle connections: {cost / IDLE / 1024:.1f} KiB each")
        assert cost < IDLE * (16 << 10)
        for _ in range(20):
            assert system.ask("GET", "/site/f").content == b"here"
        system.put("/site/g", b"too")
    assert system.ask("GET", "/site/g").content == b"too"
    assert "Traceback" not in system.log


def test_many_idle_copies_cost_little_and_end_well_or_leave_nothing(begin: Any, tmp_path: Path) -> None:
    needs(3 * STREAMS + SPARE)
    site, data = tmp_path / "site", os.urandom(1000)
    system = begin(site, connections=STREAMS + SPARE, streams=STREAMS)
    system.put("/site/f", b"here")
    place, before, token = place_of(system), memory(system.pid), system.token(lifetime=3600)
    with ExitStack() as held, Source(data, 10) as source:
        lines = f"Authorization: Bearer {token}", f"Source: {source.url}"
        copies = [held.enter_context(asked(place, f"COPY /site/in/{i}", *lines)) for i in range(STREAMS)]
        until(lambda: source.begun == STREAMS)
        for copy in copies:
            assert copy.recv(4096).startswith(b"HTTP/1.1 202")
        cost = memory(system.pid) - before
        print(f"{STREAMS} idle copies: {cost / STREAMS / 1024:.1f} KiB each")
        assert cost < STREAMS * (256 << 10)
        assert system.ask("GET", "/site/f").content == b"here"
        gone, kept = copies[::2], copies[1::2]
        for copy in gone:
            copy.close()
        until(lambda: len(left(site)) == len(kept))
        source.go_on()
        for copy in kept:
            said = b""
            while b"success" not in said and b"failure" not in said:
                piece = copy.recv(65536)
                assert piece, said
                said = said[-200:] + piece
            assert b"success: Created" in said
    assert sorted(int(file.name) for file in (site / "in").iterdir()) == list(range(1, STREAMS, 2))
    assert all(file.read_bytes() == data for file in (site / "in").iterdir())
    assert left(site) == []
    assert "Traceback" not in system.log


def test_a_thousand_copies_that_fail_leave_no_file_no_descriptor_and_no_memory(
    begin: Any, tmp_path: Path
) -> None:
    system = begin(tmp_path / "site")
    with ThreadPoolExecutor(8) as pool, Source(os.urandom(100_000), 100_000, lies=True) as source:
        source.go_on()

        def copy(number: int) -> str:
            headers = {"Source": source.url}
            said: str = system.ask("COPY", f"/site/in/{number}", headers=headers).text
            return said.splitlines()[-1]

        def open_files() -> int:
            return len(os.listdir(f"/proc/{system.pid}/fd"))

        assert all("checksum mismatch" in last for last in pool.map(copy, range(200)))
        files, before = open_files(), memory(system.pid)
        assert all("checksum mismatch" in last for last in pool.map(copy, range(200, 1200)))
        assert open_files() < files + 20
        assert memory(system.pid) < before + (20 << 20)
    assert left(tmp_path / "site") == []
    folder = tmp_path / "site" / "in"
    assert not folder.exists() or list(folder.iterdir()) == []
    assert "Traceback" not in system.log


def test_a_disk_that_fills_in_the_middle_fails_that_transfer_alone(begin: Any, small_disk: Path) -> None:
    """Others take the space once the transfer has come half way."""
    site, data = small_disk / "site", os.urandom(16 << 20)
    system = begin(site)
    system.put("/site/small", b"small" * 1000)
    filler = small_disk / "filler"

    def body() -> Iterator[bytes]:
        for at in range(0, len(data), 1 << 18):
            if at == len(data) // 2:
                filler.write_bytes(bytes(12 << 20))
            yield data[at : at + (1 << 18)]

    answer = system.ask("PUT", "/site/large", content=body())
    assert answer.status_code == 507, answer.text
    filler.unlink()
    assert left(site) == []
    for chunked in (True, False):
        with ThreadPoolExecutor(1) as pool, Source(data, len(data) // 2, chunked=chunked) as source:
            headers = {"Source": source.url}
            copy = pool.submit(system.ask, "COPY", "/site/large", headers=headers)
            until(lambda: source.begun == 1)
            free = shutil.disk_usage(small_disk).free
            filler.write_bytes(bytes(max(0, free - (1 << 20))))
            source.go_on()
            last = copy.result(60).text.splitlines()[-2:]
        filler.unlink()
        # The space of a known length is taken before its first byte: then it may have come in time.
        if chunked or last[1] != "success: Created":
            assert '"storage-full"' in last[0]
            assert last[1].startswith("failure: ")
        assert left(site) == []
        there = system.ask("GET", "/site/large")
        assert there.status_code == 404 or there.content == data
        system.ask("DELETE", "/site/large")
    assert system.ask("GET", "/site/small").content == b"small" * 1000
    system.put("/site/after", data[: 8 << 20])
    assert "Traceback" not in system.log
