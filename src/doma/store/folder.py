"""What a file store does on the disk, call by call: blocking, and safe to run in any thread.

Calls raise ``OSError`` as the system gave it (the store translates it) and our errors where we judge.
"""

import errno
import os
import stat as modes
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path

from doma.core.checksum import Hasher
from doma.core.errors import (
    AlreadyExists,
    ConfigError,
    Conflict,
    NotFound,
    PreconditionFailed,
    Refused,
    StorageFull,
)
from doma.core.paths import RESERVED
from doma.store.beneath import Tree, parts_of
from doma.store.content import Content
from doma.store.marks import Mark, Marks, version_of
from doma.store.notes import Notes, drop_inside
from doma.store.protocol import PIECE, Space, Stat
from doma.store.session import Blocks, Parts
from doma.store.spool import PathLocks, Spool
from doma.store.upload import Temporary, move
from doma.store.writing import Tally, check_move, check_replaceable, check_target, check_version

ATTEMPTS = 5
"""Times a publication makes its directories anew when somebody deletes them under its hands."""


class Folder:
    """A folder with its hidden spool, locks and marks.

    Args:
        root: The folder; made if it is missing, unless ``read_only``.
        read_only: Write nothing at all into it, and take its files for changeable by others.
        fsync: Make files durable before they are published.

    Raises:
        ConfigError: the folder is not there or cannot be used.
    """

    def __init__(self, root: Path, *, read_only: bool, fsync: bool) -> None:
        self._read_only = read_only
        self._fsync = fsync
        self._spools: dict[int, Spool] = {}
        self._side: int | None = None
        self._locks: PathLocks | None = None
        self._notes = Notes(None)
        try:
            if not read_only:
                root.mkdir(parents=True, exist_ok=True)
            self.tree = Tree(root)
            if not read_only:
                spool = self._spool("/", [])
                self._side = spool.folder("marks")
                self._locks = PathLocks(spool.folder("locks"))
                self._notes = Notes(spool.folder("notes"))
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
        self.tree.close()
        for spool in self._spools.values():
            spool.close()
        if self._locks is not None:
            self._locks.close()
        if self._side is not None:
            os.close(self._side)
        self._notes.close()

    # --- looking ---

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
            return Content(fd, found, _stat(path, found, mark), mapped=mapped)
        except BaseException:
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

    def space(self) -> Space:
        """Of the whole file system."""
        disk = os.fstatvfs(self.tree.fd)
        return Space((disk.f_blocks - disk.f_bfree) * disk.f_frsize, disk.f_bavail * disk.f_frsize)

    # --- changing ---

    def begin(
        self, path: str, room: int, if_version: str | None = None, if_absent: bool = False
    ) -> Temporary:
        """A temporary for a file to be, after the checks that can be made already.

        Args:
            path: Where it is to be published.
            room: Bytes that must be free: announced by this and the other uploads under way.
            if_version: As in ``Store.create``.
            if_absent: As in ``Store.create``.
        """
        with _parents(path), self.tree.nearest(path) as (fd, at):
            check_replaceable(path, self._find(path), if_version=if_version, if_absent=if_absent)
            self._need(path, room, fd)
            spool = self._spool(path, at, fd)
            return Temporary(spool.new, *spool.begin(), path)

    def parts(self, path: str, key: str, size: int | None = None) -> Parts:
        """Where an upload in parts lies."""
        with _parents(path), self.tree.nearest(path) as (fd, at):
            return Parts(self._spool(path, at, fd).parts, key, path, size)

    def resume(
        self, parts: Parts, room: int, if_version: str | None, if_absent: bool
    ) -> tuple[Temporary, Blocks]:
        """An upload in parts, after the checks that :meth:`begin` makes."""
        path = parts.path
        with _parents(path):
            check_replaceable(path, self._find(path), if_version=if_version, if_absent=if_absent)
        for spool in self._spools.values():
            spool.sweep_parts(time.time())
        temporary, blocks = parts.open()
        try:
            self._need(path, room - blocks.size, temporary.fd)
        except BaseException:
            temporary.keep()
            raise
        return temporary, blocks

    def publish(
        self,
        temporary: Temporary,
        tally: Tally,
        *,
        if_version: str | None = None,
        if_absent: bool = False,
        named: str = "",
    ) -> Stat:
        """Judge a finished temporary and put it in its place in one step.

        Raises:
            WrongSize, ChecksumMismatch, PreconditionFailed, Conflict: nothing was published.
        """
        path, sums = tally.path, tally.finish()
        fd, now = temporary.fd, time.time_ns()
        os.fchmod(fd, os.fstat(fd).st_mode & 0o555)  # Ours are never changed in place; say so.
        os.utime(fd, ns=(now, now))
        found = os.fstat(fd)
        mark = Mark(sums, published=True, upload=named)
        self._marks.write(fd, found, mark)
        if self._fsync:
            os.fsync(fd)
        with self._held(path):
            old = self._find(path)
            check_replaceable(path, old, if_version=if_version, if_absent=if_absent)
            self._place(temporary, path, if_absent)
        return _stat(path, found, mark, annotated=False)

    def delete(self, path: str, version: str | None, recursive: bool) -> None:
        """See ``Store.delete``."""
        with self._held(path), self.tree.entry(path) as (above, name):
            there = self._find(path)
            found = os.stat(name, dir_fd=above, follow_symlinks=False)
            check_version(path, there, version)
            if not modes.S_ISDIR(found.st_mode):
                os.unlink(name, dir_fd=above)
                self._marks.forget(found)
                self._notes.forget(found)
                return
            if path == "/":
                raise Refused("/: the top of a store cannot be deleted; delete what lies below")
            if not recursive:
                try:
                    os.rmdir(name, dir_fd=above)
                except OSError as e:
                    if e.errno not in {errno.ENOTEMPTY, errno.EEXIST}:
                        raise
                    if not drop_inside(name, above):
                        raise Conflict(
                            f"{path}: the directory is not empty; delete recursively or empty it"
                        ) from e
                    os.rmdir(name, dir_fd=above)
                return
            spool = self._spool(path, parts_of(path)[:-1], above)
            hidden = spool.discard(name, above)
        spool.erase(hidden)

    def rename(self, source: str, target: str, overwrite: bool) -> bool:
        """See ``Store.rename``."""
        with self._held(source, target):
            moving, there = self.stat(source), self._find(target)
            check_move(source, target)
            check_target(target, moving, there, overwrite)
            entry = self.tree.entry
            with entry(source) as (above, name), _parents(target), entry(target) as (onto, new):
                os.rename(name, new, src_dir_fd=above, dst_dir_fd=onto)
                self._sync(onto)
        return there is not None

    def make_dir(self, path: str) -> None:
        """See ``Store.make_dir``."""
        with _parents(path), self.tree.entry(path) as (above, name):
            try:
                os.mkdir(name, 0o755, dir_fd=above)
            except FileExistsError as e:
                raise AlreadyExists(f"{path}: there is already a file or directory of this name") from e

    def annotate(self, path: str, changes: Mapping[str, str | None]) -> None:
        """See ``CanAnnotate.annotate``."""
        with self._held(path), self._opened(path) as (fd, found):
            self._notes.change(path, fd, found, changes)

    # --- inside ---

    def _need(self, path: str, room: int, fd: int) -> None:
        """Raise StorageFull unless so many bytes are free where a descriptor lies."""
        disk = os.fstatvfs(fd)
        if room > (free := disk.f_bavail * disk.f_frsize):
            raise StorageFull(f"{path}: {room} bytes are needed and {free} are free; free some space")

    def _find(self, path: str) -> Stat | None:
        try:
            return self.stat(path)
        except (FileNotFoundError, NotADirectoryError, NotFound):
            return None

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
        return _stat(path, found, self._marks.read(where, found), annotated=self._notes.any(where, found))

    def _held(self, *paths: str) -> AbstractContextManager[None]:
        assert self._locks is not None
        return self._locks.hold(*paths)

    def _place(self, temporary: Temporary, path: str, if_absent: bool) -> None:
        for left in reversed(range(ATTEMPTS)):
            with _parents(path), self.tree.entry(path, make=True) as (above, name):
                try:
                    move(temporary, name, above, exclusively=if_absent)
                    self._sync(above)
                except FileNotFoundError:
                    if not left:
                        raise  # The directory is deleted again and again while we publish.
                except FileExistsError as e:
                    raise PreconditionFailed(f"{path}: a file appeared there meanwhile; look again") from e
                else:
                    return

    def _sync(self, folder: int) -> None:
        if self._fsync:
            fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=folder)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)

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


@contextmanager
def _parents(path: str) -> Iterator[None]:
    """Say ``Conflict`` for what is wrong on the way to a path that is to be made."""
    try:
        yield
    except FileNotFoundError as e:
        raise Conflict(f"{path}: its directory does not exist; make it first") from e
    except NotADirectoryError as e:
        raise Conflict(f"{path}: something above it is a file, nothing can lie below that") from e


def _stat(path: str, found: os.stat_result, mark: Mark, *, annotated: bool = True) -> Stat:
    return Stat(
        path,
        found.st_size,
        version_of(found),
        found.st_mtime,
        checksums=mark.checksums,
        upload=mark.upload,
        annotated=annotated,
    )


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
