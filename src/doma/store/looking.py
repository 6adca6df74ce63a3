"""What a file store sees on the disk, call by call: blocking, and safe to run in any thread.

Calls raise ``OSError`` as the system gave it (the store translates it) and our errors where we judge.
"""

import os
import stat as modes
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from doma.core.checksum import Hasher
from doma.core.errors import ConfigError, Conflict, NotFound, PreconditionFailed
from doma.core.paths import RESERVED
from doma.store.beneath import Tree
from doma.store.content import Content
from doma.store.marks import Mark, Marks, version_of
from doma.store.notes import Notes
from doma.store.protocol import PIECE, Space, Stat
from doma.store.quota import Quota
from doma.store.spool import PathLocks, Spool


class Looking:
    """A folder with its hidden spool, locks and marks, and all that changes nothing in it.

    Args:
        root: The folder; made if it is missing, unless ``read_only``.
        read_only: Write nothing at all into it, and take its files for changeable by others.
        fsync: Make files durable before they are published.
        quota: Limits of what may lie in it.

    Raises:
        ConfigError: the folder is not there or cannot be used.
    """

    def __init__(self, root: Path, *, read_only: bool, fsync: bool, quota: Quota | None = None) -> None:
        self._read_only = read_only
        self._fsync = fsync
        self._spools: dict[int, Spool] = {}
        self._side: int | None = None
        self._locks: PathLocks | None = None
        self._notes = Notes(None)
        self._quota = quota
        self._counts = -1
        try:
            if not read_only:
                root.mkdir(parents=True, exist_ok=True)
            self.tree = Tree(root)
            if not read_only:
                spool = self._spool("/", [])
                self._side = spool.folder("marks")
                self._locks = PathLocks(spool.folder("locks"))
                self._notes = Notes(spool.folder("notes"))
                if quota is not None:
                    self._counts = spool.folder("quota")
                    quota.attach(self._counts, lambda: quota.weigh_tree(self.tree.fd, "/"))
        except OSError as e:
            why = e.strerror or type(e).__name__
            raise ConfigError(
                f"file://{root}: cannot be used as a store ({why}); correct the endpoint"
            ) from e
        self._marks = Marks(self._side)

    def close(self) -> None:
        """Give all descriptors back. Idempotent."""
        if self.tree.fd < 0:
            return
        if self._quota is not None and self._counts >= 0:
            self._quota.close(self._counts)
            os.close(self._counts)
        self.tree.close()
        for spool in self._spools.values():
            spool.close()
        if self._locks is not None:
            self._locks.close()
        if self._side is not None:
            os.close(self._side)
        self._notes.close()

    def stat(self, path: str) -> Stat:
        """Raises NotFound, also for what is neither a file nor a directory."""
        with self.tree.target(path) as (above, name, found):
            return self._described(path, above, name, found)

    def names(self, path: str) -> list[str]:
        """The names in a directory that clients can say, sorted. Raises Conflict for a file."""
        if not self.stat(path).is_dir:
            raise Conflict(f"{path}: this is a file; only a directory can be listed")
        fd = self.tree.directory(path)
        try:
            return sorted(name for name in os.listdir(fd) if _sayable(name))
        finally:
            os.close(fd)

    def look_up(self, path: str, names: Sequence[str]) -> list[Stat]:
        """The entries of a directory by name, without what vanished meanwhile or leads out of the store."""
        entries = []
        fd = self.tree.directory(path)
        try:
            for name in names:
                child = f"{path.rstrip('/')}/{name}"
                try:
                    found = os.stat(name, dir_fd=fd, follow_symlinks=False)
                    link = modes.S_ISLNK(found.st_mode)
                    entries.append(self.stat(child) if link else self._described(child, fd, name, found))
                except (OSError, NotFound):
                    continue
        finally:
            os.close(fd)
        return entries

    def open(self, path: str) -> Content:
        """Raises NotFound; Conflict for a directory."""
        with self.tree.target(path) as (above, name, found):
            if modes.S_ISDIR(found.st_mode):
                raise Conflict(f"{path}: this is a directory; open a file below it")
            _must_be_file(path, found)
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=above)
        try:
            found = os.fstat(fd)
            _must_be_file(path, found)
            mark = self._marks.read(fd, found)
            mapped = mark.published and not self._read_only
            return Content(fd, found, described(path, found, mark), mapped=mapped)
        except BaseException:  # a cancellation, too: undone, and raised on
            os.close(fd)
            raise

    def sum(self, content: Content, algorithm: str, digest: Hasher) -> str:
        """Compute a checksum of a whole file and keep it. Raises what :meth:`Content.pread` raises."""
        for start in range(0, content.stat.size, PIECE):
            digest.update(content.pread(start, min(start + PIECE, content.stat.size)))
        value, found = digest.hexdigest(), os.fstat(content.fd)
        if not content.is_still(found):
            raise PreconditionFailed(f"{content.stat.path}: the file changed while it was read; ask again")
        mark = self._marks.read(content.fd, found)
        sums = {**mark.checksums, algorithm: value}
        self._marks.write(content.fd, found, replace(mark, checksums=sums))
        return value

    def annotations(self, path: str) -> dict[str, str]:
        """See ``CanAnnotate.annotations``."""
        with self._opened(path) as (fd, found):
            return self._notes.read(fd, found)

    def space(self, path: str = "/") -> Space:
        """By the quotas that count for a path, and of the whole file system."""
        disk = os.fstatvfs(self.tree.fd)
        free = disk.f_bavail * disk.f_frsize
        if self._quota is not None and (said := self._quota.space(path)) is not None:
            return Space(said.used, min(said.available, free))
        return Space((disk.f_blocks - disk.f_bfree) * disk.f_frsize, free)

    def find(self, path: str) -> Stat | None:
        """What is there, if anything is, without its checksums and the like."""
        try:
            with self.tree.target(path) as (_, _, found):
                return glanced(path, found)
        except (FileNotFoundError, NotADirectoryError, NotFound):
            return None

    def find_at(self, path: str, above: int, name: str) -> Stat | None:
        """The same for a name in an open directory."""
        try:
            found = os.stat(name, dir_fd=above, follow_symlinks=False)
        except FileNotFoundError:
            return None
        return self.find(path) if modes.S_ISLNK(found.st_mode) else glanced(path, found)

    @contextmanager
    def _opened(self, path: str) -> Iterator[tuple[int, os.stat_result]]:
        """A file or directory, open for reading."""
        with self.tree.target(path) as (above, name, found):
            if not modes.S_ISDIR(found.st_mode):
                _must_be_file(path, found)
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=above)
        try:
            yield fd, os.fstat(fd)
        finally:
            os.close(fd)

    def _described(self, path: str, above: int, name: str, found: os.stat_result) -> Stat:
        if modes.S_ISDIR(found.st_mode):
            return Stat(path, 0, version_of(found), found.st_mtime, is_dir=True)
        _must_be_file(path, found)
        where = f"/proc/self/fd/{above}/{name}"
        return described(path, found, self._marks.read(where, found), annotated=self._notes.any(where, found))

    def _spool(self, path: str, at: Sequence[str], folder: int | None = None) -> Spool:
        """The spool on the file system of a directory: at the highest directory of ours that lies on it."""
        device = os.fstat(self.tree.fd if folder is None else folder).st_dev
        if device not in self._spools:
            for depth in range(len(at) + 1):
                top = self.tree.directory("/" + "/".join(at[:depth]))
                try:
                    if os.fstat(top).st_dev == device:
                        spool = self._spools.setdefault(device, Spool(top))
                        spool.sweep(time.time())
                        break
                finally:
                    os.close(top)
            else:
                raise Conflict(f"{path}: its directory moved meanwhile; try again")
        return self._spools[device]


def described(path: str, found: os.stat_result, mark: Mark, *, annotated: bool = True) -> Stat:
    """What a store says of a file."""
    return Stat(
        path,
        found.st_size,
        version_of(found),
        found.st_mtime,
        checksums=mark.checksums,
        upload=mark.upload,
        annotated=annotated,
    )


def glanced(path: str, found: os.stat_result) -> Stat:
    """A file or directory, of which only the ``stat`` is known. Raises NotFound if it is neither."""
    is_dir = modes.S_ISDIR(found.st_mode)
    if not is_dir:
        _must_be_file(path, found)
    return Stat(path, 0 if is_dir else found.st_size, version_of(found), found.st_mtime, is_dir=is_dir)


def _must_be_file(path: str, found: os.stat_result) -> None:
    if not modes.S_ISREG(found.st_mode):
        raise NotFound(f"{path}: no such file or directory; devices, pipes and sockets are not served")


def _sayable(name: str) -> bool:
    """Whether a name can come in a request: not reserved, printable UTF-8."""
    if name.startswith(RESERVED):
        return False
    return (name.isascii() and name.isprintable()) or not any(
        ord(c) < 0x20 or ord(c) == 0x7F or 0xD800 <= ord(c) < 0xE000 for c in name
    )
