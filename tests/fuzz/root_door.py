"""Fuzz of the root:// door: whatever bytes a client sends, answers are whole frames and nothing breaks.

    python tests/fuzz/run.py tests/fuzz/root_door -max_total_time=3600      # needs the package atheris

The corpus beside it is replayed by the default suite (``tests/unit/test_root_corpus.py``). An input is what a
client says after it has logged in, over a site of two small files, one endpoint writable and one not.
"""

import asyncio
import logging

from doma.auth.gate import Gate
from doma.auth.model import Verb
from doma.auth.verifier import Verifier
from doma.doors.endpoint import Endpoint, Site
from doma.doors.root import RootDoor
from doma.doors.root_connection import RootConnection
from doma.net import xroot_frames as frames
from doma.net.hub import Hub
from doma.net.xroot_frames import Code, Status
from doma.net.xroot_pages import interleaved, page_head
from doma.store.memory import MemoryStore

CONTENT = bytes(i * 7 % 251 for i in range(9_000))
HELLO = frames.HELLO.pack(*frames.GREETING) + frames.request(
    1, Code.PROTOCOL, frames.P_PROTOCOL.pack(frames.VERSION, 0, frames.EXPECT_LOGIN)
)
LOGIN = frames.request(2, Code.LOGIN, frames.P_LOGIN.pack(7, b"fuzz", 0, frames.ABILITY, frames.CAPABLE), b"")
PAUSE = b"||"
"""Where an input waits for the answers to what came before."""
TURNS = 200
"""Rounds of the loop that an input gets."""


class Wire(asyncio.Transport):
    """What the door writes is kept."""

    def __init__(self) -> None:
        super().__init__({"sockname": ("127.0.0.1", 1094), "peername": ("127.0.0.1", 40_000)})
        self.said = bytearray()
        self.over = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.said += data

    def writelines(self, list_of_data: object) -> None:
        for data in list_of_data:  # type: ignore[attr-defined] # any iterable
            self.said += data

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def is_closing(self) -> bool:
        return self.over

    def write_eof(self) -> None:
        pass

    def close(self) -> None:
        self.over = True

    def abort(self) -> None:
        self.over = True


class Errors(logging.Handler):
    """Keeps what was logged as an error: the door never does that for bad input."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.found.append(self.format(record))


def check(data: bytes) -> None:
    """Give one input to a fresh door; raises AssertionError if anything is not as it must be."""
    errors = Errors()
    logging.getLogger("doma").addHandler(errors)
    logging.getLogger("doma").propagate = False
    try:
        asyncio.run(_serve(data))
    finally:
        logging.getLogger("doma").removeHandler(errors)
        logging.getLogger("doma").propagate = True
    assert not errors.found, errors.found[0]


async def _serve(data: bytes) -> None:
    stores = {"rw": MemoryStore(), "ro": MemoryStore()}
    for store in stores.values():
        upload = await store.create("/d/f")
        await upload.write(CONTENT)
        await upload.commit()
    endpoints = {
        name: Endpoint(name, store, _Open({}, public=True, name=name), writable=name == "rw")
        for name, store in stores.items()
    }
    door = RootDoor(Site(Verifier([], []), endpoints), tls=None, plain="always")
    hub = Hub(_nothing, None, head=10, idle=60, body=60)
    connection, wire = RootConnection(door, hub, ("127.0.0.1", 1)), Wire()
    connection.connection_made(wire)
    for part in (HELLO, LOGIN, *data.split(PAUSE)):
        await _feed(connection, wire, part)
    kept = dict(connection.session.files) if connection.session is not None else {}
    assert len(kept) <= 4096
    _frames(bytes(wire.said), HELLO + LOGIN + data.replace(PAUSE, b""))
    connection.connection_lost(None)
    for _ in range(TURNS):
        if not hub.tasks:
            break
        await asyncio.sleep(0)
    for task in list(hub.tasks):
        task.cancel()
    await asyncio.gather(*hub.tasks, return_exceptions=True)
    stat = await stores["ro"].stat("/d/f")
    assert stat.size == len(CONTENT)


class _Open(Gate):
    """Lets everybody do everything: what is fuzzed is the door, not who may."""

    def decide(self, identity: object, verb: Verb, path: str, is_dir: bool = False) -> None:
        pass

    def may(self, identity: object, verb: Verb, path: str, is_dir: bool = False) -> bool:
        return True


async def _feed(connection: RootConnection, wire: Wire, data: bytes) -> None:
    """Hand bytes over as a transport does, and let what they cause run."""
    at = 0
    while at < len(data) and not wire.over:
        buffer = connection.get_buffer(-1)
        size = min(len(buffer), len(data) - at)
        buffer[:size] = data[at : at + size]
        connection.buffer_updated(size)
        at += size
    for _ in range(TURNS):
        if not connection.hub.tasks:
            break
        await asyncio.sleep(0)


def _frames(said: bytes, asked: bytes) -> None:
    """Check that everything said is whole answers."""
    assert len(said) >= 16
    at = 16
    while at < len(said):
        assert at + 8 <= len(said), "half a head"
        head = frames.answer_head(said, at)
        at += 8 + head.length
        if head.status == Status.STATUS:
            assert head.length == 24
            at += page_head(said, at - 24).length
        assert at <= len(said), "an answer that promises more than it has"
        assert head.stream.to_bytes(2, "big") in asked, "an answer to what nobody asked"


async def _nothing(scope: object, receive: object, send: object) -> None:
    raise NotImplementedError


def seeds() -> dict[str, bytes]:
    """Inputs to begin with: what real clients say."""
    handle = b"\0\0\0\1"  # of the first file that a session opens
    read = frames.P_OPEN.pack(0, frames.Open.READ | frames.Open.RETSTAT, 0)
    opened = frames.request(3, Code.OPEN, read, b"/rw/d/f") + PAUSE
    create = (
        frames.request(3, Code.OPEN, frames.P_OPEN.pack(0o644, frames.Open.NEW | 0x20, 0), b"/rw/new") + PAUSE
    )
    vector = b"".join(
        frames.SEGMENT.pack(handle, size, at) for size, at in ((10, 0), (4096, 4000), (1, 8999))
    )
    return {
        "read": opened + frames.request(4, Code.READ, frames.P_READ.pack(handle, 5, 4096), bytes(8)),
        "pages": opened + frames.request(4, Code.PGREAD, frames.P_READ.pack(handle, 100, 8000), b"\0\1"),
        "vector": opened + frames.request(4, Code.READV, frames.P_READV.pack(0), vector),
        "close": opened + frames.request(4, Code.CLOSE, frames.P_HANDLE.pack(handle)),
        "stat": frames.request(3, Code.STAT, frames.P_STAT.pack(0, handle), b"/rw/d/f"),
        "list": frames.request(3, Code.DIRLIST, frames.P_DIRLIST.pack(2), b"/rw/d"),
        "query": frames.request(3, Code.QUERY, frames.P_QUERY.pack(7, handle), b"readv_iov_max\nrole\0"),
        "checksum": frames.request(3, Code.QUERY, frames.P_QUERY.pack(3, handle), b"/rw/d/f?cks.type=md5"),
        "move": frames.request(3, Code.MV, frames.P_MV.pack(7), b"/rw/d/f /rw/d/g"),
        "attribute": frames.request(
            3, Code.FATTR, frames.P_FATTR.pack(handle, 3, 1, 0), b"/rw/d/f\0\0\0a\0\0\0\0\1x"
        ),
        "write": create
        + frames.request(4, Code.WRITE, frames.P_WRITE.pack(handle, 0, 0), b"0123456789")
        + PAUSE
        + frames.request(5, Code.CLOSE, frames.P_HANDLE.pack(handle)),
        "write pages": create
        + frames.request(4, Code.PGWRITE, frames.P_PGWRITE.pack(handle, 0, 0, 0), interleaved(0, CONTENT))
        + PAUSE
        + frames.request(5, Code.CLOSE, frames.P_HANDLE.pack(handle)),
        "remove": frames.request(3, Code.RM, data=b"/rw/d/f") + frames.request(4, Code.RMDIR, data=b"/rw/d"),
        "make": frames.request(3, Code.MKDIR, frames.P_MKDIR.pack(1, 0o755), b"/rw/a/b"),
        "truncate": frames.request(3, Code.TRUNCATE, frames.P_TRUNCATE.pack(handle, 3), b"/rw/d/f"),
        "set": frames.request(3, Code.SET, data=b"appid fuzz")
        + frames.request(4, Code.SET, data=b"cache evict /rw/d/f"),
        "prepare": frames.request(3, Code.PREPARE, bytes([8]) + bytes(15), b"/rw/d/f\n/ro/d/f"),
        "locate": frames.request(3, Code.LOCATE, data=b"*/rw/d") + frames.request(4, Code.PING),
        "bind": frames.request(3, Code.BIND, data=bytes(16))
        + frames.request(4, Code.ENDSESS, data=bytes(16)),
        "lies": b"\0\3" + Code.STAT.to_bytes(2, "big") + bytes(16) + b"\x7f\xff\xff\xff" + b"/rw",
    }  # fmt: skip
