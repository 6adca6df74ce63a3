"""The helper process: works out layouts, fed by the cache with bytes that it already has.

It has no network, no file and no secret of its own; a hostile file can take this process down and nothing
else. It ends when its standard input does, when it was idle for a minute, or when one file takes too much.

Frames, both ways: 4 bytes of length, then JSON. In: ``{"size"}``. Out: ``{"read": [start, stop]}``, answered
with raw bytes behind one byte ``+``, or ``-`` alone for what is not here; at the end ``{"layout": bytes}``
with the layout in the next frame, or ``{"absent": [[start, stop], …]}``, or ``{"broken": text}``.
"""

import io
import json
import os
import resource
import select
import signal
import struct
import sys
from typing import BinaryIO

from doma.cache.layout import Span, encode
from doma.cache.layout_read import Absent, read_layout

IDLE = 60.0
MOST = 256 << 20
"""Bytes of one frame."""
_DEPTH = 500
"""Nested calls; no sample of the field's files takes 300."""
_HEAD = struct.Struct(">I")


def write_frame(out: BinaryIO, data: bytes) -> None:
    """Send one frame. Raises OSError."""
    out.write(_HEAD.pack(len(data)) + data)
    out.flush()


class _Source:
    """The file as the cache gives it."""

    def __init__(self, size: int, to_cache: BinaryIO, from_cache: BinaryIO) -> None:
        self.size = size
        self.used: list[Span] = []
        self._to, self._from = to_cache, from_cache

    def file(self) -> BinaryIO:
        return _File(self)  # type: ignore[return-value]  # what uproot uses of one

    def take(self, start: int, stop: int) -> bytes:
        start, stop = max(0, start), min(stop, self.size)
        if start >= stop:
            return b""
        write_frame(self._to, json.dumps({"read": [start, stop]}).encode())
        answer = _frame(self._from)
        if answer[:1] != b"+":
            raise Absent((start, stop))
        self.used.append((start, stop))
        return answer[1:]


class _File(io.RawIOBase):
    """A :class:`_Source` as a file object."""

    def __init__(self, source: _Source) -> None:
        super().__init__()
        self._source, self._at = source, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = max(0, offset + (0, self._at, self._source.size)[whence])
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, size: int = -1) -> bytes:
        stop = self._source.size if size < 0 else self._at + size
        data = self._source.take(self._at, stop)
        self._at += len(data)
        return data


def main(memory: int, seconds: int) -> None:
    """Serve until the standard input ends.

    Args:
        memory: Bytes by which the address space may grow.
        seconds: A file that takes more processor time ends the process.
    """
    out = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # a print of some library must not break the frames
    source = os.fdopen(os.dup(0), "rb", buffering=0)
    os.nice(10)
    import pyarrow.parquet  # noqa: F401 - before the limit, once for all files
    import uproot.models.RNTuple  # noqa: F401

    sys.setrecursionlimit(_DEPTH)
    now = _space()
    resource.setrlimit(resource.RLIMIT_AS, (now + memory, now + memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    write_frame(out, b'{"ready": 1}')
    while select.select([source], [], [], IDLE)[0]:
        try:
            order = json.loads(_frame(source))
        except EOFError:
            return
        signal.setitimer(signal.ITIMER_PROF, seconds)
        _work(_Source(order["size"], out, source), out)
        signal.setitimer(signal.ITIMER_PROF, 0)
        if _space() - now > memory // 4:
            return  # what broken files left behind is not to be the next one's fault


def _space() -> int:
    """Bytes of address space in use."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")


def _work(source: _Source, out: BinaryIO) -> None:
    try:
        layout = encode(read_layout(source))
        write_frame(out, json.dumps({"layout": len(layout)}).encode())
        write_frame(out, layout)
    except Absent as e:
        write_frame(out, json.dumps({"absent": e.spans[:1000]}).encode())
    except (EOFError, BrokenPipeError):
        sys.exit(0)
    except MemoryError:
        sys.exit(1)  # the heap is in pieces now; the next file has a new process
    except Exception as e:  # noqa: BLE001 - outermost loop: a broken file can raise anything in its decoder
        text = f"{type(e).__name__}: {' '.join(str(e).split())[:300]}"
        write_frame(out, json.dumps({"broken": text}).encode())


def _frame(source: BinaryIO) -> bytes:
    (length,) = _HEAD.unpack(_exactly(source, _HEAD.size))
    return _exactly(source, length)


def _exactly(source: BinaryIO, length: int) -> bytes:
    data = bytearray()
    while len(data) < length:
        part = source.read(min(length - len(data), 1 << 20))
        if not part:
            raise EOFError
        data += part
    return bytes(data)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
