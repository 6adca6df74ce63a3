"""Asks the helper process for layouts: one at a time, started when needed, killed when in doubt.

The helper asks back for bytes and gets what ``read`` gives it; it has no other way to any. Everything it says
is checked: it may have read a hostile file.

Source: cache contract §9.
"""

import asyncio
import json
import logging
import os
import select
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from pathlib import Path
from typing import IO, Any

from doma.cache.layout import LARGEST, Layout, Span, decode
from doma.core.errors import CorruptFile, DomaError, ServiceUnavailable
from doma.store.protocol import Buffer

log = logging.getLogger(__name__)

MEMORY = 1 << 30
"""Bytes by which the helper's address space may grow."""
SECONDS = 20
"""Processor time that one file may take …"""
PATIENCE = 4
"""… and so many times that by the clock, on a busy machine."""
START = 60.0
"""Seconds that the helper's imports may take."""
QUEUE = 32
"""Files that wait for the helper; others are not looked at."""
_TALK = 256 << 20
"""Bytes of metadata that one file may take."""
_KEPT = ("PATH", "HOME", "LANG", "TMPDIR", "LD_LIBRARY_PATH")
_SOURCES = str(Path(__file__).resolve().parents[2])

Read = Callable[[int, int], Awaitable[Buffer | None]]
"""Gives the bytes ``[start, stop)`` of a file, or None if they are not here."""


class Lacking(Exception):
    """The layout cannot be read before any of these bytes is here."""

    def __init__(self, spans: list[Span]) -> None:
        super().__init__(f"{len(spans)} byte ranges are not here yet")
        self.spans = spans


class Helper:
    """One helper process for one cache.

    Args:
        memory: Bytes by which its address space may grow.
        seconds: Processor time that one file may take.
    """

    def __init__(self, memory: int = MEMORY, seconds: int = SECONDS) -> None:
        self._memory, self._seconds = memory, seconds
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="cache-layout")
        self._process: subprocess.Popen[bytes] | None = None
        self._waiting = 0
        self._closed = False
        self.asked = 0
        """Files looked at so far."""

    @property
    def pid(self) -> int:
        """The process; 0: none runs."""
        return self._process.pid if self._process is not None else 0

    async def layout(self, name: str, size: int, read: Read) -> Layout:
        """The layout of a file.

        Args:
            name: What to call it in messages.
            size: Its bytes.
            read: Gives its bytes.

        Raises:
            Lacking: more bytes are needed.
            CorruptFile: its columns cannot be found; or it took too long, too much, or the helper died of it.
            ServiceUnavailable: too many files wait, or no helper can be had.
        """
        if self._waiting >= QUEUE or self._closed:
            raise ServiceUnavailable(f"{name}: {QUEUE} files wait for their layout already; try later")
        loop = asyncio.get_running_loop()

        def fetch(start: int, stop: int) -> Buffer | None:
            waiting = asyncio.run_coroutine_threadsafe(_within(read(start, stop), START), loop)
            return waiting.result(START + 5)

        self._waiting += 1
        self.asked += 1
        try:
            # the thread reads in the name of who asked: the caller's token is a variable of its context
            asked = partial(copy_context().run, self._ask, name, size, fetch)
            return await loop.run_in_executor(self._thread, asked)
        finally:
            self._waiting -= 1

    async def close(self) -> None:
        """End the process. What waits for it fails. Idempotent."""
        self._closed = True
        process = self._process
        if process is not None:
            process.kill()
        await asyncio.to_thread(self._thread.shutdown, cancel_futures=True)
        self._end()

    def _ask(self, name: str, size: int, fetch: Callable[[int, int], Buffer | None]) -> Layout:
        for turn in range(2):
            try:
                return self._talk(name, size, fetch, self._running())
            except Lacking:
                raise
            except _Silent as e:
                self._end()
                if e.heard and not self._closed:
                    raise CorruptFile(f"{name}: {e}; nothing of it is fetched ahead") from e
                # An idle helper may have left at this very moment: that says nothing about the file.
                if turn or self._closed:
                    raise ServiceUnavailable(f"{name}: no helper for layouts ({e}); try later") from e
            except OSError as e:
                raise ServiceUnavailable(f"{name}: no helper for layouts ({e}); try later") from e
            except DomaError:
                raise
            except (ValueError, KeyError, TypeError) as e:
                self._end()
                raise CorruptFile(f"{name}: its layout makes no sense; nothing is fetched ahead") from e
        raise AssertionError

    def _talk(
        self,
        name: str,
        size: int,
        fetch: Callable[[int, int], Buffer | None],
        process: subprocess.Popen[bytes],
    ) -> Layout:
        assert process.stdin is not None
        assert process.stdout is not None
        budget, heard = _TALK, False
        line = _Line(process.stdout, process.stdin, time.monotonic() + PATIENCE * self._seconds)
        line.send(json.dumps({"size": size}).encode(), heard=False)
        while True:
            said: dict[str, Any] = json.loads(line.hear(1 << 16, heard=heard))
            heard = True
            if "read" in said:
                start, stop = map(int, said["read"])
                budget -= max(0, stop - start)
                if not 0 <= start < stop <= size or budget < 0:
                    raise _Silent("its metadata are larger than the helper may read", heard=True)
                began = time.monotonic()
                data = fetch(start, stop)
                line.until += time.monotonic() - began  # a slow origin is no fault of the file
                line.send(b"-" if data is None else b"+" + bytes(data), heard=True)
            elif "layout" in said:
                return decode(line.hear(LARGEST, heard=True), size)
            elif "absent" in said:
                raise Lacking([(int(a), min(int(b), size)) for a, b in said["absent"] if 0 <= a < b])
            else:
                raise CorruptFile(f"{name}: {str(said['broken'])[:400]}")

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is not None:
            self._end()
        if self._process is None:
            keep = {key: value for key, value in os.environ.items() if key in _KEPT}
            self._process = subprocess.Popen(  # noqa: S603 - ourselves
                [sys.executable, "-m", "doma.cache.layout_child", str(self._memory), str(self._seconds)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={**keep, "PYTHONPATH": _SOURCES, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"},
                bufsize=0,
                start_new_session=True,
            )
            if self._closed:
                self._process.kill()
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            os.set_blocking(self._process.stdin.fileno(), False)  # a hung helper must not hang the thread
            line = _Line(self._process.stdout, self._process.stdin, time.monotonic() + START)
            line.hear(100, heard=False)
        return self._process

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()


class _Silent(Exception):
    """The helper died, hangs, or asks for too much."""

    def __init__(self, text: str, *, heard: bool) -> None:
        super().__init__(text)
        self.heard = heard
        """Whether it had begun with the file."""


class _Line:
    """The frames to and from the helper, until a deadline."""

    def __init__(self, source: IO[bytes], sink: IO[bytes], until: float) -> None:
        self._source, self._sink, self.until = source, sink, until

    def send(self, data: bytes, *, heard: bool) -> None:
        view = memoryview(len(data).to_bytes(4, "big") + data)
        try:
            while view:
                self._wait(self._sink, select.POLLOUT)
                view = view[os.write(self._sink.fileno(), view) :]
        except OSError as e:
            raise _Silent("the helper died", heard=heard) from e

    def hear(self, most: int, *, heard: bool) -> bytes:
        length = int.from_bytes(self._exactly(4, heard=heard), "big")
        if length > most:
            raise _Silent("the helper says too much", heard=True)
        return self._exactly(length, heard=True)

    def _exactly(self, length: int, *, heard: bool) -> bytes:
        data = bytearray()
        while len(data) < length:
            self._wait(self._source, select.POLLIN)
            part = os.read(self._source.fileno(), min(length - len(data), 1 << 20))
            if not part:
                raise _Silent("the helper died of it", heard=heard)
            data += part
        return bytes(data)

    def _wait(self, pipe: IO[bytes], events: int) -> None:
        poll = select.poll()  # select() knows no descriptors above 1023
        poll.register(pipe, events)
        if not poll.poll(max(0.0, self.until - time.monotonic()) * 1000):
            raise _Silent("the helper took too long", heard=True)


async def _within(work: Awaitable[Buffer | None], seconds: float) -> Buffer | None:
    try:
        async with asyncio.timeout(seconds):
            return await work
    except (DomaError, TimeoutError) as e:
        log.info("cache: metadata cannot be had: %s", e)
        return None
