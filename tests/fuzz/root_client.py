"""Fuzz of the root:// client: whatever a server answers, the caller gets a result or one clear error, soon.

    python tests/fuzz/run.py tests/fuzz/root_client -max_total_time=3600      # needs the package atheris

The corpus beside it is replayed by the default suite (``tests/unit/test_root_corpus.py``). An input is one
byte that chooses what the caller does, then answers, apart from each other by :data:`root_door.PAUSE`: the
hostile server gives the next one for each request. :data:`MINE` in an answer stands for the request's stream.
"""

import asyncio
import logging
import os
import selectors
import time
from contextlib import suppress

from doma.core.errors import DomaError
from doma.net import xroot_frames as frames
from doma.net.xroot_frames import Code, Server, Status
from doma.net.xroot_pages import interleaved, page_answer
from doma.store.xrootd import XrootdStore
from tests.fuzz.root_door import CONTENT, PAUSE, Errors, Wire

MINE = b"\xfe\xed"
PAGES = b"PAGE"
"""How an answer with pages begins: kind, offset (3 bytes), then what becomes a whole and right frame."""
REQUESTS = 200
"""Requests that the server takes altogether before it hangs up on everybody for good."""
SECONDS = 20.0
"""Time of this machine that one input may take; the loop's own leaps over every wait."""


class Leaping(selectors.DefaultSelector):
    """Waits for nothing but threads: the loop's clock leaps to the next timer instead."""

    ahead = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout:
            if found := super().select(0.0005):
                return found
            self.ahead += timeout
            return []
        return super().select(timeout)


class Loop(asyncio.SelectorEventLoop):
    """A loop on which every connection leads to the hostile server."""

    def __init__(self, answers: list[bytes]) -> None:
        self._leaping = Leaping()
        super().__init__(self._leaping)
        self.answers = answers
        self.asked = 0

    def time(self) -> float:
        return super().time() + self._leaping.ahead

    async def getaddrinfo(self, host: object, port: object, **_: object) -> list[tuple[object, ...]]:  # type: ignore[override] # what is used
        return [(0, 0, 0, "", ("192.0.2.7", port))]

    async def create_connection(self, factory, *_, **__):
        protocol = factory()
        wire = Hostile(self, protocol)
        protocol.connection_made(wire)
        return wire, protocol

    async def start_tls(self, transport, *_, **__):
        return transport


class Hostile(Wire):
    """A server that answers each request with the next answer of the input."""

    def __init__(self, loop: Loop, protocol: asyncio.BufferedProtocol) -> None:
        super().__init__()
        self._loop, self._protocol = loop, protocol
        self._greeted = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.said += data
        while not self.over:
            if not self._greeted:
                if len(self.said) < 20:
                    return
                del self.said[:20]
                self._greeted, stream = True, 0
            elif len(self.said) >= 24:
                stream, _, _, length = frames.request_head(bytes(self.said[:24]))
                if len(self.said) < 24 + length:
                    return
                del self.said[: 24 + length]
            else:
                return
            self._loop.asked += 1
            if not self._loop.answers or self._loop.asked > REQUESTS:
                self._loop.call_soon(self.abort)
                return
            self._loop.call_soon(self._answer, framed(self._loop.answers.pop(0), stream))

    def _answer(self, data: bytes) -> None:
        at = 0
        while at < len(data) and not self.over:
            buffer = memoryview(self._protocol.get_buffer(-1))
            size = min(len(buffer), len(data) - at)
            assert size > 0
            buffer[:size] = data[at : at + size]
            self._protocol.buffer_updated(size)
            at += size

    def close(self) -> None:
        self.abort()

    def abort(self) -> None:
        if not self.over:
            self.over = True
            self._loop.call_soon(self._protocol.connection_lost, None)


def framed(data: bytes, stream: int) -> bytes:
    """An answer as it goes over the wire to who made the request of that stream."""
    if data.startswith(PAGES) and len(data) >= 8:
        offset, pages = int.from_bytes(data[5:8], "big"), data[8:]
        return page_answer(stream, Code.PGREAD, data[4] % 4, offset, pages)
    return data.replace(MINE, stream.to_bytes(2, "big"))


def check(data: bytes) -> None:
    """Let a client act on a server that says this; raises AssertionError if anything is not as it must be."""
    errors = Errors()
    for name in ("doma", "asyncio"):
        logging.getLogger(name).addHandler(errors)
        logging.getLogger(name).propagate = False
    os.environ["SSL_CERT_FILE"] = (
        os.devnull
    )  # reading the authorities of the world takes longer than all else
    began = time.monotonic()
    loop = Loop(data[1:].split(PAUSE))
    try:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(_act(data[0] if data else 0))
    finally:
        for name in ("doma", "asyncio"):
            logging.getLogger(name).removeHandler(errors)
            logging.getLogger(name).propagate = True
    assert not errors.found, errors.found[0]
    assert time.monotonic() - began < SECONDS


async def _act(choice: int) -> None:
    store = XrootdStore(f"root{'s' * (choice >> 4 & 1)}://se.example//d", token=_token)
    act = (_look, _list, _read, _sum, _space, _write, _delete, _move)[choice & 7]
    try:
        with suppress(DomaError):
            await act(store)
    finally:
        await store.close()


async def _token() -> str:
    return "a.b.c"


async def _look(store: XrootdStore) -> None:
    assert (await store.stat("/f")).size >= 0


async def _list(store: XrootdStore) -> None:
    async for stat in store.list("/"):
        assert stat.path.startswith("/")


async def _read(store: XrootdStore) -> None:
    reader = await store.open("/f")
    try:
        stop = min(reader.stat.size, 9_000)
        for start in (0, stop // 2):
            assert len(await reader.read(start, stop)) == stop - start
    finally:
        await reader.close()


async def _sum(store: XrootdStore) -> None:
    assert len(await store.checksum("/f", "adler32")) == 8


async def _space(store: XrootdStore) -> None:
    await store.space()


async def _write(store: XrootdStore) -> None:
    upload = await store.create("/new")
    try:
        await upload.write(CONTENT)
        await upload.commit()
    finally:
        with suppress(DomaError):
            await upload.abort()


async def _delete(store: XrootdStore) -> None:
    await store.delete("/f", recursive=True)


async def _move(store: XrootdStore) -> None:
    await store.rename("/f", "/g")


def seeds() -> dict[str, bytes]:
    """Inputs to begin with: what real servers say to each act, and what they never should."""

    def says(status: int, body: bytes = b"") -> bytes:
        return MINE + status.to_bytes(2, "big") + len(body).to_bytes(4, "big") + body

    def begin(flags: int = Server.DATA | Server.PAGES, login: bytes = bytes(16)) -> list[bytes]:
        number = frames.VERSION.to_bytes(4, "big")
        greeting = bytes(4) + (8).to_bytes(4, "big") + number + (1).to_bytes(4, "big")
        return [greeting, says(0, number + int(flags).to_bytes(4, "big")), says(0, login)]

    line = b"77 9000 48 1795356134 1795356134 1795356134 0644 daemon daemon\0"
    absent, error = says(Status.ERROR, (3011).to_bytes(4, "big") + b"no such file\0"), Status.ERROR
    opened, stat = says(0, bytes(12) + line), says(0, line)
    folder = says(0, b"78 4096 51 1795356134\0")
    half, rest = len(CONTENT) // 2, CONTENT[len(CONTENT) // 2 :]
    pages = PAGES + bytes(4) + interleaved(0, CONTENT)
    more = PAGES + b"\0" + half.to_bytes(3, "big") + interleaved(half, rest)
    part = PAGES + b"\1" + bytes(3) + interleaved(0, CONTENT[:4096])
    tls = begin(Server.DATA | Server.HAVE_TLS | Server.GOTO_TLS, bytes(16) + b"&P=ztn,0:4096:\0")
    towards = (1095).to_bytes(4, "big") + b"other.example?tried=a"
    listing = b".\n0 0 0 0\na\n1 2 16 3\nb c\n" + line
    later = says(Status.ATTN, (5008).to_bytes(4, "big") + bytes(4) + says(0, line))
    first = {
        "stat": (0, begin(), [stat, absent, stat]),
        "stat-tls": (16, tls, [says(0), stat, absent]),
        "over-before-tls": (16, [tls[0], tls[1] + b"\x7a\x7a" + bytes(6)], []),
        "put-off": (0, begin(), [says(Status.WAIT, (3).to_bytes(4, "big") + b"busy"), stat, absent, stat]),
        "promised": (0, begin(), [says(Status.WAITRESP, (9).to_bytes(4, "big")) + later, stat]),
        "redirect": (0, begin(), [says(Status.REDIRECT, towards), *begin(), stat, absent]),
        "circle": (0, begin(), [says(Status.REDIRECT, towards)] * 9),
        "list": (1, begin(), [says(Status.OKSOFAR, listing[:30]) + says(0, listing[30:]), stat]),
        "read": (2, begin(), [opened, absent, pages, stat, more, stat, says(0)]),
        "read-plain": (2, begin(Server.DATA), [opened, absent, says(0, CONTENT), stat, says(0, rest), stat]),
        "read-parts": (2, begin(), [opened, absent, part, stat]),
        "sum": (3, begin(), [stat, absent, says(0, b"0:adler32,1:md5\n\0"), says(0, b"adler32 0a1b2c3d\0")]),
        "space": (4, begin(), [says(0, b"oss.cgroup=all&oss.space=9&oss.free=7&oss.used=2\0")]),
        "write": (
            5,
            begin(),
            [absent, folder, opened, says(0), says(0), says(0), stat, says(0, b"0:md5\n\0"), says(0), folder],
        ),
        "delete": (6, begin(), [folder, opened, says(0, listing), says(0), says(0), says(0)]),
        "move": (7, begin(), [stat, absent, folder, opened, says(0), says(0)]),
        "refused": (0, [says(error, (3010).to_bytes(4, "big") + b"go away\0")] * 2, []),
        "huge": (0, begin(), [MINE + bytes(2) + b"\x7f\xff\xff\xff" + line]),
        "stranger": (0, begin(), [b"\x7a\x7a" + stat[2:]]),
    }
    return {name: bytes([act]) + PAUSE.join([*front, *rest]) for name, (act, front, rest) in first.items()}
