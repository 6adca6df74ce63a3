"""The pages of one version of one object: a sparse file, a checksum for each page, and which are there.

Layout: the content at its own offsets, then at the next page border one CRC32C (4 bytes) a page, then one
presence byte a page. Data are written before their checksums and those before the presence byte, and a page
whose bytes do not fit its checksum is a missing page; so a crash at any instant, a hole, a flipped bit or a
cut file costs a fetch and never a wrong byte (cases C1-C6, C8).

The file is private and never shrinks under a map of it (trap T4). A page is checked when it is first read
and trusted from then on while three things hold: it has not left memory (each later read takes it only if the
kernel need not go to the disk), the file's change time stands where our own last write left it (somebody may
write to it all the same; change times younger than a clock tick prove nothing, like a version control
system's "racily clean" entries), and ten minutes have not passed (another process may have read it back).
"""

import asyncio
import errno
import logging
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from crc32c import crc32c

from doma.cache.extents import PAGE, Run
from doma.cache.resident import Resident, without_read_ahead
from doma.store.protocol import Buffer

log = logging.getLogger(__name__)

_TICK = 20_000_000
"""Nanoseconds; longer than the granularity of the kernel's file times."""
_TRUST = 600_000_000_000
"""Nanoseconds after which checked pages are checked again, in memory or not."""
_MOST = 2 << 20
"""Bytes that are read at once without waiting; more goes in parts."""
_INLINE = 256 << 10
"""Writes up to this size are done on the event loop, longer ones in a thread (trap T21)."""


class PageFile:
    """The pages of one version; all methods but the awaitable ones return at once.

    Raises:
        OSError: the file cannot be opened.
    """

    def __init__(self, path: Path, size: int) -> None:
        self.size = size
        self.count = -(-size // PAGE)
        self._crcs_at = self.count * PAGE
        self._present_at = self._crcs_at + 4 * self.count
        length = self._present_at + self.count
        self._fd = -1
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        without_read_ahead(self._fd)
        if os.fstat(self._fd).st_size < length:
            os.ftruncate(self._fd, length)
        # In this order: what is said to be here while its owner writes has its sum by then.
        self._present = bytearray(os.pread(self._fd, self.count, self._present_at).translate(_ONES))
        self._crcs = bytearray(os.pread(self._fd, 4 * self.count, self._crcs_at))
        self._checked = bytearray(self.count)
        self._ahead = bytearray(self.count)
        self.ahead_left = 0
        """Pages that were fetched ahead and not read yet."""
        self.waited = 0.0
        """Seconds that reads waited for the disk, and how often it refused one, since somebody took note."""
        self.refused = 0
        self._holds = Resident(self._fd, self.size).holds
        self._nowait = os.RWF_NOWAIT
        self._seen = 0
        self._settled = False
        """The change time is older than a clock tick: a write by another hand would show."""
        self._trusted_since = time.monotonic_ns()
        self._settle()

    def __del__(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)

    @property
    def used(self) -> int:
        """Allocated bytes on disk, as ``du`` counts."""
        return os.fstat(self._fd).st_blocks * 512

    @property
    def orphaned(self) -> bool:
        """Whether somebody deleted the file: what is in it is still right, but will not survive."""
        return os.fstat(self._fd).st_nlink == 0

    @property
    def held(self) -> int:
        """Pages that are there."""
        return self._present.count(1)

    @property
    def complete(self) -> bool:
        """Whether every page is there."""
        return self._present.find(0) < 0

    def present(self, start: int, stop: int) -> bool:
        """Whether all pages of ``[start, stop)`` are there."""
        return start >= stop or self._present.find(0, start // PAGE, -(-stop // PAGE)) < 0

    def missing(self, run: Run) -> list[Run]:
        """The runs within a run that are not there."""
        return _gaps(self._present, run)

    def mark_ahead(self, run: Run) -> None:
        """Note that the pages of a run were fetched before anybody asked for them."""
        self.ahead_left += self._ahead.count(0, *run)
        self._ahead[run[0] : run[1]] = b"\1" * (run[1] - run[0])

    def take_ahead(self, run: Run) -> int:
        """How many pages of a run are read for the first time after they were fetched ahead."""
        if not self.ahead_left or not (found := self._ahead.count(1, *run)):
            return 0
        self._ahead[run[0] : run[1]] = bytes(run[1] - run[0])
        self.ahead_left -= found
        return found

    def view(self, start: int, stop: int) -> memoryview | None:
        """The bytes ``[start, stop)``, 2 MiB at most, if they were checked and are in memory, unchanged."""
        if start >= stop:
            return _EMPTY
        size = stop - start
        if size > _MOST or self._checked.find(0, start // PAGE, -(-stop // PAGE)) >= 0 or not self._quiet():
            return None
        buffer = np.empty(size, np.uint8)
        return buffer.data if self._take(buffer, start) else None

    def views(self, spans: Sequence[tuple[int, int]]) -> list[memoryview] | None:
        """:meth:`view` of several spans, none empty, at the cost of one; None unless all can be had."""
        total = sum([stop - start for start, stop in spans])
        if not 0 < total <= _MOST or not self._sure(spans):
            return None
        whole, at, out, take = np.empty(total, np.uint8).data, 0, [], self._take
        for start, stop in spans:
            end = at + stop - start
            part = whole[at:end]
            if not take(part, start):
                return None
            out.append(part)
            at = end
        return out

    def interleaved(self, start: int, stop: int, data: Buffer | None = None) -> memoryview | None:
        """``[start, stop)`` as a pgread of root:// carries it: each page behind its stored CRC32C (C13).

        A checksum is computed for what has none stored: a part of a page, a page that is not here.

        Args:
            start: First byte.
            stop: End, at most the size.
            data: The bytes, where a read has given them already; None: from memory, if :meth:`view` gives
                them, else the answer is None.
        """
        if data is None and (data := self.view(start, stop)) is None:
            return None
        raw, source = memoryview(data), np.frombuffer(data, np.uint8)
        head = min(-start % PAGE, stop - start)
        whole = (stop - start - head) // PAGE
        first, tail = (start + head) // PAGE, stop - start - head - whole * PAGE
        out = np.empty(stop - start + 4 * (whole + bool(head) + bool(tail)), np.uint8)
        at = head + 4 * bool(head)
        if whole:
            pages = out[at : at + whole * (PAGE + 4)].reshape(whole, PAGE + 4)
            pages[:, :4] = self._wire_sums(first, raw[head : head + whole * PAGE])
            pages[:, 4:] = source[head : head + whole * PAGE].reshape(whole, PAGE)
        wire = out.data
        if head:
            wire[:4] = crc32c(raw[:head]).to_bytes(4, "big")
            wire[4:at] = raw[:head]
        if tail:
            at += whole * (PAGE + 4)
            stored = stop == self.size and self._present[first + whole]
            number = self._crcs_native()[first + whole] if stored else crc32c(raw[-tail:])
            wire[at : at + 4] = int(number).to_bytes(4, "big")
            wire[at + 4 :] = raw[-tail:]
        return wire

    def fileno(self, start: int, stop: int) -> int | None:
        """The descriptor for ``sendfile`` of ``[start, stop)``, under the same conditions as :meth:`view`."""
        if start >= stop:
            return self._fd
        if self._checked.find(0, start // PAGE, -(-stop // PAGE)) >= 0 or not self._quiet():
            return None
        if self._holds(start, stop):
            return self._fd
        self._unsure(start, stop)
        return None

    async def load(self, run: Run, *, passing: bool = False) -> tuple[bytearray, list[Run], list[int]]:
        """The bytes of a run from disk, the runs of it that they lack, and which pages were damaged.

        Damaged pages are forgotten. What is lacking holds anything; the caller lays other bytes over it.

        Args:
            run: The pages.
            passing: Whether they are wanted only now: what had to be read from the disk leaves memory again.
        """
        buffer = bytearray(min(run[1] * PAGE, self.size) - run[0] * PAGE)
        self._unchanged()
        settled = time.time_ns() - self._seen > _TICK
        # What lands while this reads may or may not be in the buffer: only what was there before counts.
        there = self._present[run[0] : run[1]]
        try:
            got = os.preadv(self._fd, [buffer], run[0] * PAGE, os.RWF_NOWAIT)
        except OSError:
            got = 0  # not in memory, or a file system without this flag
        if got < len(buffer):
            self._unsure(run[0] * PAGE, run[1] * PAGE)  # what comes from the disk counts once it was checked
            began = time.monotonic()
            try:
                await asyncio.to_thread(self._read, buffer, run[0] * PAGE)
            finally:
                self.waited += time.monotonic() - began
            if passing:
                with suppress(OSError):
                    os.posix_fadvise(self._fd, run[0] * PAGE, len(buffer), os.POSIX_FADV_DONTNEED)
        bad = self._check(buffer, run[0], there, settled)
        return buffer, [(run[0] + a, run[0] + b) for a, b in _gaps(there, (0, len(there)))], bad

    async def save(self, first: int, data: Buffer) -> None:
        """Write whole pages from page ``first`` on (the last page of the file may be shorter).

        Raises:
            OSError: the disk is full or broken; the pages count as missing.
        """
        if len(data) <= _INLINE:
            self._write(first, data)
        else:
            await asyncio.to_thread(self._write, first, data)

    def forget(self, page: int) -> None:
        """Make a page a missing one."""
        self._present[page] = self._checked[page] = 0
        self._unchanged()
        try:
            os.pwrite(self._fd, b"\0", self._present_at + page)
        except OSError as e:
            log.warning("cache page %d cannot be marked missing: %s", page, e)  # its checksum still tells
        self._settle()

    def _crcs_native(self) -> memoryview:
        return memoryview(self._crcs).cast("I")

    def _wire_sums(self, first: int, content: memoryview) -> Any:
        """(pages, 4) bytes, big-endian: the stored checksums of whole pages, or those of their content."""
        last = first + len(content) // PAGE
        # Asked before the sums, which a thread that writes sets before it.
        there = self._present[first:last]
        sums = np.frombuffer(self._crcs, np.uint32)[first:last].astype(">u4")
        at = -1
        while (at := there.find(0, at + 1)) >= 0:
            sums[at] = crc32c(content[at * PAGE : (at + 1) * PAGE])
        return sums.view(np.uint8).reshape(-1, 4)

    def doubt(self, start: int, stop: int) -> None:
        """Have the pages of ``[start, stop)`` checked at their next use, from the disk where it can be."""
        self._unsure(start, stop)
        first, last = start // PAGE, -(-stop // PAGE)
        with suppress(OSError):  # what was not written yet stays in memory, and is checked there
            os.posix_fadvise(self._fd, first * PAGE, (last - first) * PAGE, os.POSIX_FADV_DONTNEED)

    def revoke(self) -> None:
        """Give out nothing more: every page is a missing one, here and on disk."""
        self._present = bytearray(self.count)
        self._checked = bytearray(self.count)
        try:
            os.pwrite(self._fd, self._present, self._present_at)
        except OSError as e:
            log.warning("cache pages cannot be marked missing: %s", e)  # they are deleted anyway

    def _sure(self, spans: Sequence[tuple[int, int]]) -> bool:
        """Whether all pages of these spans, none empty, were checked and may be served from memory."""
        gap = self._checked.find
        for start, stop in spans:
            if gap(0, start // PAGE, -(-stop // PAGE)) >= 0:
                return False
        return self._quiet()

    def _quiet(self) -> bool:
        """Whether nobody can have written since pages were checked."""
        # What _unchanged asks, without its call: this is asked for every range.
        same = self._settled and os.fstat(self._fd).st_ctime_ns == self._seen
        if same and time.monotonic_ns() - self._trusted_since < _TRUST:
            return True
        if not self._unchanged():
            return False
        if not self._settled:
            if time.time_ns() - self._seen <= _TICK:
                return False
            self._settled = True
        return True

    def _take(self, buffer: Any, start: int) -> bool:
        """Fill a buffer from ``start`` on if all of that is in memory; else those pages are checked again."""
        size = len(buffer)
        stop = start + size
        try:
            asked = self._nowait or self._holds(start, stop)
            if asked and os.preadv(self._fd, (buffer,), start, self._nowait) == size:
                return True
        except OSError as e:  # EAGAIN: not all of it
            if e.errno == errno.EOPNOTSUPP:
                self._nowait = 0  # some file systems can only be asked beforehand
                return self._take(buffer, start)
        self._unsure(start, stop)
        return False

    def _unsure(self, start: int, stop: int) -> None:
        """Have the pages of ``[start, stop)`` checked when they are read the next time."""
        first, last = start // PAGE, -(-stop // PAGE)
        self._checked[first:last] = bytes(last - first)

    def _unchanged(self) -> bool:
        """Whether the file is as we left it; if not, nothing in it counts as checked any more."""
        stamp = os.fstat(self._fd).st_ctime_ns
        now = time.monotonic_ns()
        if stamp == self._seen and now - self._trusted_since < _TRUST:
            return True
        self._settled = False
        self._seen, self._trusted_since = stamp, now
        self._checked = bytearray(self.count)
        return False

    def _settle(self) -> None:
        self._seen, self._settled = os.fstat(self._fd).st_ctime_ns, False

    def _read(self, buffer: bytearray, offset: int) -> None:
        view, at = memoryview(buffer), 0
        try:
            while at < len(buffer):
                got = os.preadv(self._fd, [view[at:]], offset + at)
                if not got:
                    break
                at += got
        except OSError as e:
            self.refused += 1
            log.warning("cache disk: read of %d bytes at %d failed: %s", len(buffer), offset, e)
        view[at:] = bytes(len(buffer) - at)  # cut files and bad sectors: zeros that fit no checksum

    def _check(self, buffer: bytearray, base: int, there: bytearray, settled: bool) -> list[int]:
        """Compare pages with their checksums; what does not fit is struck from ``there`` and forgotten."""
        bad, view, checked = [], memoryview(buffer), self._checked
        sums = memoryview(self._crcs).cast("I")
        for at, present in enumerate(there):
            if not present:
                continue
            if crc32c(view[at * PAGE : (at + 1) * PAGE]) != sums[base + at]:
                there[at] = 0
                bad.append(base + at)
            elif settled:
                checked[base + at] = 1
        for page in bad:
            self.forget(page)
        return bad

    def _write(self, first: int, data: Buffer) -> None:
        view, offset, at = memoryview(data), first * PAGE, 0
        last = first + -(-len(view) // PAGE)
        if not self._unchanged():
            log.debug("cache file changed by another hand; its pages are checked again")
        while at < len(view):
            wrote = os.pwrite(self._fd, view[at:], offset + at)
            if not wrote:
                raise OSError(errno.EIO, "the disk took nothing")
            at += wrote
        sums = memoryview(self._crcs).cast("I")
        for at, page in enumerate(range(first, last)):
            sums[page] = crc32c(view[at * PAGE : (at + 1) * PAGE])
        os.pwrite(self._fd, memoryview(self._crcs)[4 * first : 4 * last], self._crcs_at + 4 * first)
        ones = b"\1" * (last - first)
        os.pwrite(self._fd, ones, self._present_at + first)
        self._present[first:last] = ones
        self._settle()


def _gaps(present: bytearray, run: Run) -> list[Run]:
    """The runs of zeros within a run."""
    out, (at, end) = [], run
    while (first := present.find(0, at, end)) >= 0:
        at = present.find(1, first, end)
        if at < 0:
            at = end
        out.append((first, at))
    return out


_EMPTY = memoryview(b"")
_ONES = bytes(int(i == 1) for i in range(256))
"""A presence byte that is anything but 1 says: not there."""
