"""The pages of one version of one object: a sparse file, a checksum for each page, and which are there.

Layout: the content at its own offsets, then at the next page border one CRC32C (4 bytes) a page, then one
presence byte a page. Data are written before their checksums and those before the presence byte, and a page
whose bytes do not fit its checksum is a missing page; so a crash at any instant, a hole, a flipped bit or a
cut file costs a fetch and never a wrong byte (cases C1-C6, C8).

The file is private and never shrinks under a map of it (trap T4). Somebody may write to it all the same, so
a page that was checked is trusted only while the file's change time stands where our own last write left it,
and change times younger than a clock tick prove nothing, like a version control system's "racily clean"
entries.
"""

import asyncio
import errno
import logging
import mmap
import os
import time
from pathlib import Path

from crc32c import crc32c

from doma.cache.extents import PAGE, Run
from doma.store.protocol import Buffer

log = logging.getLogger(__name__)

_TICK = 20_000_000
"""Nanoseconds; longer than the granularity of the kernel's file times."""
_TRUST = 600_000_000_000
"""Nanoseconds after which checked pages are checked again: they may have left memory and come back rotten."""
_INLINE = 256 << 10
"""Writes up to this size are done on the event loop, longer ones in a thread (trap T21)."""


def held_in(path: Path, size: int) -> int:
    """How many pages of a version are there, without opening it for use.

    Raises:
        OSError: the file cannot be read.
    """
    count = -(-size // PAGE)
    with path.open("rb") as file:
        file.seek(count * (PAGE + 4))
        return file.read(count).count(1)


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
        if os.fstat(self._fd).st_size < length:
            os.ftruncate(self._fd, length)
        self._crcs = bytearray(os.pread(self._fd, 4 * self.count, self._crcs_at))
        self._present = bytearray(os.pread(self._fd, self.count, self._present_at).translate(_ONES))
        self._checked = bytearray(self.count)
        self._ahead = bytearray(self.count)
        self._ahead_left = 0
        self._map: mmap.mmap | None = None
        self._seen = 0
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
        self._ahead[run[0] : run[1]] = b"\1" * (run[1] - run[0])
        self._ahead_left = self._ahead.count(1)

    def take_ahead(self, run: Run) -> int:
        """How many pages of a run are read for the first time after they were fetched ahead."""
        if not self._ahead_left or not (found := self._ahead.count(1, *run)):
            return 0
        self._ahead[run[0] : run[1]] = bytes(run[1] - run[0])
        self._ahead_left -= found
        return found

    def view(self, start: int, stop: int) -> memoryview | None:
        """The bytes ``[start, stop)`` from memory if all their pages were checked and nobody wrote since."""
        if not self._sure(start, stop):
            return None
        if start >= stop:
            return memoryview(b"")
        if self._map is None:
            try:
                self._map = mmap.mmap(self._fd, self.size, mmap.MAP_SHARED, mmap.PROT_READ)
            except (OSError, ValueError):
                return None
        return memoryview(self._map)[start:stop]

    def fileno(self, start: int, stop: int) -> int | None:
        """The descriptor for ``sendfile`` of ``[start, stop)``, under the same conditions as :meth:`view`."""
        return self._fd if self._sure(start, stop) else None

    async def load(self, run: Run) -> tuple[bytearray, list[Run], list[int]]:
        """The bytes of a run from disk, the runs of it that they lack, and which pages were damaged.

        Damaged pages are forgotten. What is lacking holds anything; the caller lays other bytes over it.
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
            await asyncio.to_thread(self._read, buffer, run[0] * PAGE)
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

    def _sure(self, start: int, stop: int) -> bool:
        if start >= stop:
            return True
        if self._checked.find(0, start // PAGE, -(-stop // PAGE)) >= 0:
            return False
        return self._unchanged() and time.time_ns() - self._seen > _TICK

    def _unchanged(self) -> bool:
        """Whether the file is as we left it; if not, nothing in it counts as checked any more."""
        stamp = os.fstat(self._fd).st_ctime_ns
        now = time.monotonic_ns()
        if stamp == self._seen and now - self._trusted_since < _TRUST:
            return True
        self._seen, self._trusted_since = stamp, now
        self._checked = bytearray(self.count)
        return False

    def _settle(self) -> None:
        self._seen = os.fstat(self._fd).st_ctime_ns

    def _read(self, buffer: bytearray, offset: int) -> None:
        view, at = memoryview(buffer), 0
        try:
            while at < len(buffer):
                got = os.preadv(self._fd, [view[at:]], offset + at)
                if not got:
                    break
                at += got
        except OSError as e:
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


_ONES = bytes(int(i == 1) for i in range(256))
"""A presence byte that is anything but 1 says: not there."""
