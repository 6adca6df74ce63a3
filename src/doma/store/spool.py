"""Where a store keeps what is not (or no longer) visible: ``.doma`` at the top of its file system.

    .doma/new/     unfinished uploads; each is locked (``flock``) by its writer as long as that lives
    .doma/parts/   uploads that come in parts: bytes by key, and what is known of them by key and ``.json``
    .doma/gone/    trees taken out of sight in one rename, being deleted
    .doma/marks/   side files of checksums
    .doma/locks/   one lock file a stripe of paths: publications exclude each other between processes too

After a crash uploads without a living writer and all of ``gone`` are swept; what comes in parts waits a day
for its client.
"""

import errno
import os
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from fcntl import LOCK_EX, LOCK_NB, LOCK_UN, flock
from zlib import crc32

from doma.core.paths import RESERVED

STRIPES = 64
HOUR = 3600.0
WAITS = 24 * HOUR
"""Seconds that an upload in parts may stand still before it is swept."""


class Spool:
    """The hidden folder of one file system of a store."""

    def __init__(self, top: int) -> None:
        self._fd = _folder(RESERVED, top)
        self.new = _folder("new", self._fd)
        self.parts = _folder("parts", self._fd)
        self._gone = _folder("gone", self._fd)
        self._swept = 0.0

    def close(self) -> None:
        """Give the descriptors back."""
        for fd in (self.new, self.parts, self._gone, self._fd):
            os.close(fd)

    def folder(self, name: str) -> int:
        """A descriptor of a folder of ours; the caller closes it."""
        return _folder(name, self._fd)

    def begin(self) -> tuple[str, int]:
        """A new temporary, locked: its name in ``new`` and a descriptor to write with."""
        while True:
            name = os.urandom(16).hex()
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
            fd = os.open(name, flags, 0o644, dir_fd=self.new)
            flock(fd, LOCK_EX)
            if os.fstat(fd).st_nlink:
                return name, fd
            os.close(fd)  # Swept by another process between open and lock.

    def discard(self, name: str, folder: int) -> str:
        """Take a tree out of sight in one step; :meth:`erase` deletes it.

        Raises:
            OSError: nothing was changed.
        """
        hidden = uuid.uuid4().hex
        os.rename(name, hidden, src_dir_fd=folder, dst_dir_fd=self._gone)
        return hidden

    def erase(self, hidden: str) -> None:
        """Delete a discarded tree, however deep; what cannot be deleted stays for the next sweep.

        Directories that are not empty are brought up one by one, so that one descriptor is enough: the way
        down could be longer than the stack, or than the limit of open files.
        """
        waiting = [hidden]
        while waiting:
            with suppress(OSError):
                waiting += _emptied(waiting.pop(), self._gone)

    def sweep(self, now: float) -> int:
        """Remove what dead processes left, and parts that nobody goes on with; how many uploads that were.

        Args:
            now: Unix seconds.
        """
        swept = _sweep(self.new, lambda _: True)
        swept += self.sweep_parts(now)
        for name in os.listdir(self._gone):
            self.erase(name)
        return swept

    def sweep_parts(self, now: float) -> int:
        """Remove parts that nobody goes on with; looks once an hour."""
        if now < self._swept + HOUR:
            return 0
        self._swept = now
        return _sweep(self.parts, lambda found: found.st_mtime < now - WAITS)


def _emptied(name: str, folder: int) -> list[str]:
    """Delete a file or a directory; the directories that were in it are brought up, and their names returned.

    Args:
        name: Of the entry.
        folder: Descriptor of the directory that it is in, and that takes what was in it.
    """
    try:
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=folder)
    except NotADirectoryError:
        os.unlink(name, dir_fd=folder)
        return []
    above = []
    try:
        with os.scandir(fd) as entries:
            found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
        for inner, is_dir in found:
            with suppress(OSError):  # it stays, and what it is in
                if not is_dir:
                    os.unlink(inner, dir_fd=fd)
                    continue
                try:
                    os.rmdir(inner, dir_fd=fd)
                except OSError:
                    above.append(uuid.uuid4().hex)
                    os.rename(inner, above[-1], src_dir_fd=fd, dst_dir_fd=folder)
        with suppress(OSError):
            os.rmdir(name, dir_fd=folder)
    finally:
        os.close(fd)
    return above


def _sweep(folder: int, stale: Callable[[os.stat_result], bool]) -> int:
    """Remove files that no process has locked."""
    swept = 0
    for name in os.listdir(folder):
        try:
            fd = os.open(name, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=folder)
        except OSError:
            continue
        try:
            if stale(os.fstat(fd)):
                flock(fd, LOCK_EX | LOCK_NB)
                with suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=folder)
                swept += 1
        except OSError as e:
            if e.errno != errno.EWOULDBLOCK:
                raise
        finally:
            os.close(fd)
    return swept


class Stripe:
    """Excludes all who work on its paths, other threads and other processes; a context, not reentrant."""

    __slots__ = ("fd", "lock")

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.lock = threading.Lock()

    def __enter__(self) -> None:
        self.lock.acquire()
        try:
            flock(self.fd, LOCK_EX)
        except BaseException:  # a cancellation, too: undone, and raised on
            self.lock.release()
            raise

    def __exit__(self, *reason: object) -> None:
        try:
            flock(self.fd, LOCK_UN)
        finally:
            self.lock.release()


class PathLocks:
    """Mutual exclusion by path, between threads and between processes that share the folder."""

    def __init__(self, folder: int) -> None:
        self._folder = folder
        self._stripes: dict[int, Stripe] = {}
        self._guard = threading.Lock()

    def hold(self, *paths: str) -> AbstractContextManager[object]:
        """Keep every other holder of one of these paths out; blocks, so call it in a thread."""
        if len(paths) == 1:  # nearly every call, and an ExitStack costs more than the locks
            stripe = crc32(paths[0].encode()) % STRIPES
            return self._stripes.get(stripe) or self._stripe(stripe)
        return self._all(sorted({crc32(path.encode()) % STRIPES for path in paths}))

    def close(self) -> None:
        """Give the lock files back."""
        for stripe in self._stripes.values():
            os.close(stripe.fd)
        self._stripes.clear()
        os.close(self._folder)

    @contextmanager
    def _all(self, stripes: list[int]) -> Iterator[None]:
        with ExitStack() as held:
            for stripe in stripes:
                held.enter_context(self._stripe(stripe))
            yield

    def _stripe(self, stripe: int) -> Stripe:
        if (known := self._stripes.get(stripe)) is not None:
            return known
        with self._guard:
            if stripe not in self._stripes:
                flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
                self._stripes[stripe] = Stripe(os.open(f"{stripe:02x}", flags, 0o644, dir_fd=self._folder))
            return self._stripes[stripe]


def _folder(name: str, above: int) -> int:
    with suppress(FileExistsError):
        os.mkdir(name, 0o755, dir_fd=above)
    return os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=above)
