"""One version of one file, open: what readers and the fast path of the doors share.

Files that we published are never changed in place, so they are mapped and their bytes handed out without a
copy. A page that is not in memory must not be touched on the event loop: the fault would hold the GIL, and
with it every thread. So each block of 64 KiB is read once with ``pread`` (in a thread, or at once with
``RWF_NOWAIT`` when the page cache has it) before its part of the map counts as warm.

Files put there by others may change or shrink at any moment; touching a map of them could kill the process
(``SIGBUS``). They are read with ``pread`` into a buffer, and compared with their ``stat`` afterwards.

Source: dataplane.md §3.5-3.7, T4-T9, T27 of the project's contracts.
"""

import math
import mmap
import os
import time
from functools import cache
from pathlib import Path

from doma.core.errors import PreconditionFailed, StorageUnavailable
from doma.store.oserrors import translated
from doma.store.protocol import Stat

SHIFT = 16
BLOCK = 1 << SHIFT
INLINE = 4
"""Cold blocks that are tried at once on the loop: some 4 µs each."""
COPIED = 16 << 10
"""Files of up to this many bytes are read into memory of ours: a map of them costs more."""
SAMPLED = 64
"""Blocks that are probed by one byte before ``sendfile``: some 1 µs each."""
STAYS_WARM = 300.0
"""Seconds after which a block is checked again: the kernel may have evicted it."""

LOOK = 0.1
"""Seconds for which a file's path is taken to lead to it, as long as the file itself tells nothing else."""

_NOWAIT = getattr(os, "RWF_NOWAIT", None)
_SINK = bytearray(BLOCK)  # What is read only to warm a block lands here; nobody looks at it.
_EMPTY = memoryview(b"")


@cache
def in_memory(device: int) -> bool:
    """Whether a file system (``st_dev``) is in memory: its files need no ``RWF_NOWAIT``, which it refuses."""
    try:
        with Path("/proc/self/mountinfo").open(encoding="utf-8", errors="replace") as mounts:
            for mount in mounts:
                before, _, after = mount.partition(" - ")
                if before.split(" ")[2] == f"{os.major(device)}:{os.minor(device)}":
                    return after.startswith(("tmpfs ", "ramfs "))
    except OSError:  # not Linux, or no /proc
        pass
    return False


class Content:
    """An open file; closed when the last reference goes. It is a ``Hot`` of the store protocol.

    Args:
        fd: Descriptor, owned from now on.
        found: Its ``fstat``.
        stat: What the store says of it.
        mapped: Whether it is ours and so immutable.
    """

    __slots__ = (
        "_changed",
        "_cold",
        "_far",
        "_links",
        "_look_at",
        "_map",
        "_mapped",
        "_since",
        "fd",
        "found",
        "stat",
    )

    def __init__(self, fd: int, found: os.stat_result, stat: Stat, *, mapped: bool) -> None:
        self.fd = fd
        self.found = found
        self.stat = stat
        self._mapped = mapped and found.st_size > 0
        self._map = _EMPTY
        self._changed = self._links = 0
        self._look_at = 0.0
        self._cool(time.monotonic())

    def __del__(self) -> None:
        os.close(self.fd)

    def is_still(self, found: os.stat_result) -> bool:
        """Whether a ``stat`` shows this very content."""
        mine = self.found
        return (
            found.st_mtime_ns == mine.st_mtime_ns
            and found.st_ino == mine.st_ino
            and found.st_size == mine.st_size
            and found.st_dev == mine.st_dev
        )

    def is_at(self, place: str) -> bool:
        """Whether a path of the file system still leads to this very content.

        A look at the open descriptor costs half of one at the path, and tells as surely that the file was
        replaced, removed, renamed or changed. Only that a folder above it was moved by another process shows
        in the path alone: it is looked at after :data:`LOOK` seconds again.
        """
        now = time.monotonic()
        try:
            if now < self._look_at:
                found = os.fstat(self.fd)
                if found.st_ctime_ns == self._changed and found.st_nlink == self._links:
                    return True
            found = os.stat(place)
        except OSError:
            return False
        self._changed, self._links, self._look_at = found.st_ctime_ns, found.st_nlink, now + LOOK
        return self.is_still(found)

    def view(self, start: int, stop: int) -> memoryview | None:
        if stop <= start:
            return _EMPTY
        if not self._mapped:
            return self._copied(start, stop)
        first, last = start >> SHIFT, ((stop - 1) >> SHIFT) + 1
        now = time.monotonic()
        if now - self._since > STAYS_WARM:
            self._cool(now)
        if self._cold.find(1, first, last) >= 0 and not self._warm_now(first, last):
            return None
        return (self._map or self._mapping())[start:stop]

    def fileno(self, start: int, stop: int) -> int | None:
        """See ``Hot``; ask for pieces of some MiB at most, a long cold range is refused unseen."""
        if not self._mapped or stop <= start:
            return None
        first, last = start >> SHIFT, ((stop - 1) >> SHIFT) + 1
        now = time.monotonic()
        if now - self._since > STAYS_WARM:
            self._cool(now)
        if self._far.find(1, first, last) >= 0 and not self._sample(first, last):
            return None
        return self.fd

    def pread(self, start: int, stop: int) -> memoryview:
        """The bytes, waiting for the disk: for worker threads.

        Raises:
            PreconditionFailed: the file was changed in place.
            StorageUnavailable: it cannot be read, or is shorter than it was.
        """
        if stop <= start:
            return _EMPTY
        path = self.stat.path
        with translated(path):
            if self._mapped:
                first, last = start >> SHIFT, ((stop - 1) >> SHIFT) + 1
                for block in range(first, last):
                    self._warm(block, 0)
                if self._cold.find(1, first, last) >= 0:
                    raise StorageUnavailable(
                        f"{path}: the file is shorter than its size; it was damaged on disk"
                    )
                return self._mapping()[start:stop]
            target = memoryview(bytearray(stop - start))
            done = 0
            while done < len(target) and (got := os.preadv(self.fd, [target[done:]], start + done)):
                done += got
            now = os.fstat(self.fd)
        if done < len(target) or not self.is_still(now):
            raise PreconditionFailed(f"{path}: the file changed while it was read; open it again")
        return target

    def _copied(self, start: int, stop: int) -> memoryview | None:
        if _NOWAIT is None or stop - start > INLINE * BLOCK:
            return None
        target = bytearray(stop - start)
        try:
            got = os.preadv(self.fd, [target], start, _NOWAIT)
            whole = got == len(target) and self.is_still(os.fstat(self.fd))
        except OSError:
            return None  # EAGAIN, or NOWAIT is not offered here: the slow road says what is wrong.
        return memoryview(target) if whole else None

    def _cool(self, now: float) -> None:
        """Forget what is in memory."""
        count = (self.found.st_size + BLOCK - 1) >> SHIFT if self._mapped else 0
        self._since = now
        # 1 for each block whose part of the map may not be touched yet …
        self._cold = bytearray(b"\1") * count
        # … and for each of which not even one byte was seen in the page cache.
        self._far = bytearray(self._cold)

    def _mapping(self) -> memoryview:
        if self._map is _EMPTY:
            self._map = memoryview(mmap.mmap(self.fd, self.found.st_size, prot=mmap.PROT_READ))
        return self._map

    def _warm_now(self, first: int, last: int) -> bool:
        """Warm the blocks if the page cache has them; False leaves that to a thread."""
        flags = 0 if in_memory(self.found.st_dev) else _NOWAIT
        if flags is None or last - first > INLINE:
            return False
        try:
            for block in range(first, last):
                self._warm(block, flags)
        except OSError:
            return False
        return self._cold.find(1, first, last) < 0

    def _warm(self, block: int, flags: int) -> None:
        if not self._cold[block]:
            return
        start = block << SHIFT
        size = min(BLOCK, self.found.st_size - start)
        small = self.found.st_size <= COPIED
        target = memoryview(bytearray(size) if small else _SINK)[:size]
        if os.preadv(self.fd, [target], start, flags) == size:
            self._cold[block] = self._far[block] = 0
            if small:
                self._map, self._since = target.toreadonly(), math.inf

    def _sample(self, first: int, last: int) -> bool:
        flags = 0 if in_memory(self.found.st_dev) else _NOWAIT
        if flags is None or last - first > SAMPLED:
            return False
        one, far = memoryview(_SINK)[:1], self._far
        try:
            for block in range(first, last):
                if far[block]:
                    if os.preadv(self.fd, [one], block << SHIFT, flags) != 1:
                        return False
                    far[block] = 0
        except OSError:
            return False
        return True
