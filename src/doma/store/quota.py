"""How many bytes may lie below some paths of a store: reserved at the start of a write, counted at its end.

A prefix is a path; everything below it counts, also for the prefixes above. The numbers of a folder lie in
one mapped file in its ``.doma``, so that all processes which share it count together: the bytes that are
there, and a row for each process with the bytes that it has set aside for its running writes. A process that
is killed gives its row back as soon as another one starts. Whether the numbers still hold is known from how
the last process ended; if they may not, the tree is counted before the first write.

Source: rule W50 of the storage contract; RFC 4331.
"""

import fcntl
import mmap
import os
import stat as modes
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from hashlib import sha256

from doma.core.errors import ConfigError, StorageFull, TooManyRequests
from doma.core.paths import RESERVED, checked, covers
from doma.store.beneath import directory
from doma.store.protocol import Space

ROWS = 128
"""Processes that may share one store."""
MARK = 8
"""Numbers before the counters: four of the prefixes' names, one that is 1 while the counters hold."""


class Quota:
    """Limits of one store, with their counters.

    Args:
        limits: Prefix to bytes; ``/`` for the whole store.

    Raises:
        ConfigError: a prefix is no path.
    """

    def __init__(self, limits: Mapping[str, int]) -> None:
        self.prefixes = tuple(sorted(checked(prefix) for prefix in limits))
        if len(self.prefixes) != len(set(self.prefixes)):
            raise ConfigError("quotas: a prefix is named twice")
        self._limits = {checked(prefix): limit for prefix, limit in limits.items()}
        self._lock = threading.Lock()
        self._fd = self._own = -1
        self._row = 0
        self._map: mmap.mmap | None = None
        self._cells = memoryview(bytearray(8 * self._size)).cast("q")

    @property
    def _size(self) -> int:
        return MARK + (1 + ROWS) * len(self.prefixes)

    def attach(self, folder: int, count: Callable[[], Mapping[str, int]]) -> None:
        """Keep the counters in a directory, for all processes that do so.

        Args:
            folder: Descriptor of the directory; not kept.
            count: Counts the bytes below each prefix.

        Raises:
            TooManyRequests: too many processes share it.
        """
        self._fd = os.open("table", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644, dir_fd=folder)
        with self._held():
            if os.fstat(self._fd).st_size < 8 * self._size:
                os.ftruncate(self._fd, 8 * self._size)
            self._map = mmap.mmap(self._fd, 8 * self._size)
            self._cells = memoryview(self._map).cast("q")
            alone = self._take_row(folder)
            name = memoryview(sha256("\n".join(self.prefixes).encode()).digest()).cast("q").tolist()
            if self._cells[:4].tolist() != name or (alone and not self._cells[4]):
                self._cells[:MARK] = memoryview(bytearray(8 * MARK)).cast("q")
                for prefix, used in count().items():
                    self._cells[MARK + self.prefixes.index(prefix)] = used
                self._cells[:4] = memoryview(sha256("\n".join(self.prefixes).encode()).digest()).cast("q")
            # 0 until the last process ends in order: then they need no counting.
            self._cells[4] = 0

    def close(self, folder: int) -> None:
        """Give the counters back. Idempotent."""
        if self._map is None:
            return
        with self._held():
            os.close(self._own)
            if all(not _taken(folder, row) for row in range(ROWS)):
                self._cells[4] = 1
        self._map = None
        os.close(self._fd)
        self._fd = -1
        # Unmapped with the last view, which the traceback of an error may still hold.
        self._cells = memoryview(bytearray(8 * self._size)).cast("q")

    def reserve(self, path: str, more: int) -> None:
        """Set bytes aside for a write (negative: give them back).

        Raises:
            StorageFull: they would not fit below one of the prefixes; nothing was set aside.
        """
        with self._held():
            own = self._own_cells()
            for i, prefix in self._covering(path) if more > 0 else ():
                left = self._limits[prefix] - self._spoken_for(i)
                if more > left:
                    raise StorageFull(
                        f"{path}: {more} bytes are needed, and {max(0, left)} are left of the quota of"
                        f" {prefix}, which is {self._limits[prefix]} bytes; delete something there"
                    )
            for i, _ in self._covering(path):
                own[i] = max(0, own[i] + more)

    def allow(self, path: str, waiting: Sequence[tuple[str, int]]) -> None:
        """See that uploads which wait for their clients, by path and size, still fit beside all the rest.

        They are asked about when one more of them begins: else any number could lie about, counted nowhere.

        Raises:
            StorageFull: they do not fit below a prefix of ``path``.
        """
        with self._held():
            for i, prefix in self._covering(path) if waiting else ():
                promised = sum(size for other, size in waiting if covers(prefix, other))
                if promised > (left := self._limits[prefix] - self._spoken_for(i)):
                    raise StorageFull(
                        f"{path}: uploads in parts that were begun need {promised} bytes of the quota of"
                        f" {prefix}, and {max(0, left)} are left beside this one; end those first"
                    )

    def add(self, changes: Mapping[str, int], *, check: str = "") -> None:
        """Count bytes that have come or gone, by prefix.

        Args:
            changes: As :meth:`weigh` gives it.
            check: Path to name when what comes must still fit; empty: it is there already.

        Raises:
            StorageFull: it does not fit; nothing was counted.
        """
        with self._held():
            for i, prefix in enumerate(self.prefixes):
                more = changes.get(prefix, 0)
                left = self._limits[prefix] - self._spoken_for(i)
                if check and 0 < more > left:
                    raise StorageFull(
                        f"{check}: {more} bytes do not fit into the quota of {prefix}, {max(0, left)} do"
                    )
            for i, prefix in enumerate(self.prefixes):
                at = MARK + i
                self._cells[at] = max(0, self._cells[at] + changes.get(prefix, 0))

    def weigh(self, path: str, size: int) -> dict[str, int]:
        """The bytes of one file, for each prefix that it counts for."""
        return {prefix: size for _, prefix in self._covering(path)}

    def weigh_tree(self, fd: int, path: str) -> dict[str, int]:
        """The bytes of all files below a directory, for each prefix that they count for.

        Args:
            fd: Descriptor of the directory, wherever it is.
            path: What it is called, or was, or will be.
        """
        sums = dict.fromkeys(self.prefixes, 0)
        inner = [p for p in self.prefixes if p != path and covers(path, p)]
        for below, size in _files(fd, path, deep=bool(inner)):
            for prefix in self.prefixes:
                if covers(prefix, below):
                    sums[prefix] += size
        return {prefix: size for prefix, size in sums.items() if size}

    def space(self, path: str) -> Space | None:
        """What the quotas say of a path: the innermost one's use, and what is left of the tightest."""
        with self._lock:
            found = [
                (len(prefix), self._cells[MARK + i], self._limits[prefix] - self._spoken_for(i))
                for i, prefix in self._covering(path)
            ]
        if not found:
            return None
        return Space(max(found)[1], max(0, min(left for _, _, left in found)))

    def _covering(self, path: str) -> list[tuple[int, str]]:
        return [(i, prefix) for i, prefix in enumerate(self.prefixes) if covers(prefix, path)]

    def _spoken_for(self, i: int) -> int:
        """Bytes that are there, and those set aside in all rows."""
        return sum(self._cells[MARK + i :: len(self.prefixes)].tolist())

    def _own_cells(self) -> memoryview:
        start = MARK + (1 + self._row) * len(self.prefixes)
        return self._cells[start : start + len(self.prefixes)]

    def _take_row(self, folder: int) -> bool:
        """Take a row of our own, clear those of the dead; whether nobody else has one."""
        free = [row for row in range(ROWS) if not _taken(folder, row)]
        if not free:
            raise TooManyRequests(f"more than {ROWS} processes share this store; stop some")
        for self._row in free:
            self._own_cells()[:] = memoryview(bytearray(8 * len(self.prefixes))).cast("q")
        self._row = free[0]
        self._own = os.open(str(self._row), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644, dir_fd=folder)
        fcntl.flock(self._own, fcntl.LOCK_EX)
        return len(free) == ROWS

    @contextmanager
    def _held(self) -> Iterator[None]:
        with self._lock:
            if self._fd < 0:
                yield
                return
            fcntl.flock(self._fd, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.flock(self._fd, fcntl.LOCK_UN)


class Held:
    """What one write has set aside.

    Args:
        quota: None: there are no limits, and every call does nothing.
        path: What is written.
        size: Bytes announced.
        credit: Bytes of the file that is replaced.

    Raises:
        StorageFull: they do not fit.
    """

    STEP = 16 << 20
    """Bytes that a write of unknown length sets aside at once."""

    def __init__(self, quota: Quota | None, path: str, size: int = 0, credit: int = 0) -> None:
        self._quota = quota
        self._path = path
        self.credit = credit
        self.size = 0
        if quota is not None and size > credit:
            self._more(size - credit)

    def cover(self, size: int) -> None:
        """See that the file may have so many bytes. Raises StorageFull."""
        if self._quota is not None and (more := size - self.credit - self.size) > 0:
            with suppress(StorageFull):
                self._more(max(more, self.STEP))
                return
            self._more(more)

    def end(self) -> None:
        """Give everything back. Idempotent."""
        if self._quota is not None and self.size:
            self._quota.reserve(self._path, -self.size)
            self.size = 0

    def _more(self, size: int) -> None:
        assert self._quota is not None
        self._quota.reserve(self._path, size)
        self.size += size


def _taken(folder: int, row: int) -> bool:
    """Whether a living process has a row."""
    try:
        fd = os.open(str(row), os.O_RDWR | os.O_CLOEXEC, dir_fd=folder)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def _files(fd: int, path: str, *, deep: bool) -> Iterator[tuple[str, int]]:
    """Path and size of each file below a directory; without ``deep`` all under the path of the top."""
    waiting = [""]
    while waiting:
        inside = waiting.pop()
        below = f"{path.rstrip('/')}{inside}" if deep else path
        for name, found in _look(fd, inside):
            if modes.S_ISREG(found.st_mode):
                yield (f"{below.rstrip('/')}/{name}" if deep else path), found.st_size
            elif modes.S_ISDIR(found.st_mode):
                waiting.append(f"{inside}/{name}")


def _look(top: int, inside: str) -> Iterator[tuple[str, os.stat_result]]:
    """The entries of a directory; none if it is gone meanwhile."""
    with suppress(OSError):
        fd = directory(top, inside)
        try:
            with os.scandir(fd) as entries:
                for entry in entries:
                    if not entry.name.startswith(RESERVED):
                        with suppress(OSError):
                            yield entry.name, os.stat(entry.name, dir_fd=fd, follow_symlinks=False)
        finally:
            os.close(fd)
