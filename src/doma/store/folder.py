"""What a file store changes on the disk, call by call: blocking, and safe to run in any thread.

Errors are as in :mod:`doma.store.looking`.
"""

import errno
import os
import stat as modes
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress

from doma.core.checksum import adler32
from doma.core.errors import AlreadyExists, Conflict, NotFound, PreconditionFailed, Refused, StorageFull
from doma.store.beneath import parts_of
from doma.store.looking import Looking, described
from doma.store.marks import Mark
from doma.store.notes import drop_inside
from doma.store.protocol import Buffer, Stat
from doma.store.quota import Held
from doma.store.session import Blocks, Parts
from doma.store.upload import Temporary, move
from doma.store.writing import Tally, check_move, check_replaceable, check_target, check_version

AT_ONCE = 64 << 20
"""Bytes of a file that goes away on the event loop at most: a file system frees the blocks one by one."""
PLENTY = 64 << 20
"""Bytes that may be announced at most …"""
LOOK = 0.1
"""… for small files to be written for so many seconds without another look at what is free."""
_NAMELESS = getattr(os, "O_TMPFILE", 0) | os.O_RDWR | os.O_CLOEXEC
ATTEMPTS = 5
"""Times a publication makes its directories anew when somebody deletes them under its hands."""


class Folder(Looking):
    """The same, and all that changes something."""

    _nameless = hasattr(os, "O_TMPFILE")
    """The file system makes files without a name."""
    _roomy_until = 0.0
    """Until then (monotonic) small files need no look at how much is free."""

    def begin(
        self, path: str, size: int, room: int, if_version: str | None = None, if_absent: bool = False
    ) -> Temporary:
        """A temporary for a file to be, after the checks that can be made already.

        Args:
            path: Where it is to be published.
            size: Bytes announced.
            room: Bytes that must be free: those and what the other uploads under way have announced.
            if_version: As in ``Store.create``.
            if_absent: As in ``Store.create``.
        """
        with _parents(path), self.tree.nearest(path) as (fd, at):
            parts = parts_of(path)
            old = None
            if len(at) == len(parts) - 1:
                old = self.find_at(path, fd, parts[-1])
            elif not parts:
                old = self.find(path)
            check_replaceable(path, old, if_version=if_version, if_absent=if_absent)
            self._need(path, room, fd)
            spool = self._spool(path, at, fd)
            held = Held(self._quota, path, size, old.size if old else 0)
            return Temporary(spool.new, *spool.begin(), path, held)

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
            old = self.find(path)
            check_replaceable(path, old, if_version=if_version, if_absent=if_absent)
        for spool in self._spools.values():
            spool.sweep_parts(time.time())
        held = Held(self._quota, path, parts.size or 0, old.size if old else 0)
        try:
            if self._quota is not None:
                self._quota.allow(path, parts.others())
            temporary, blocks = parts.open(held)
        except BaseException:  # a cancellation, too: undone, and raised on
            held.end()
            raise
        try:
            self._need(path, room - blocks.size, temporary.fd)
        except BaseException:  # a cancellation, too: undone, and raised on
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
            if if_version is not None:  # No directories for what will not be published.
                check_version(path, self.find(path), if_version)
            old = self._place(temporary, path, if_version, if_absent)
            self._count(path, found.st_size - (old.size if old else 0))
        return described(path, found, mark, annotated=False)

    def land(self, path: str, data: Buffer, room: int) -> Stat | None:
        """Publish a small file where nothing is; None: nothing was done, :meth:`begin` tells why or can.

        The file has no name before its only one, so a kill leaves nothing, and the ``link`` that gives it
        decides atomically that nothing is there.

        Args:
            path: Its name.
            data: All of it.
            room: As for :meth:`begin`.

        Raises:
            StorageFull: nothing was published.
        """
        if not self._nameless:
            return None
        mark = Mark({"adler32": adler32(data)}, published=True)
        try:
            with self._held(path):
                above, name = self.tree.above(path)
                try:
                    if time.monotonic() > self._roomy_until or room > PLENTY:
                        self._roomy(path, room, above)
                    fd = self._unnamed(above)
                    try:
                        found = self._finish(fd, data, mark)
                        self._link(path, fd, found, name, above)
                    finally:
                        os.close(fd)
                finally:
                    os.close(above)
        except OSError:
            return None
        return described(path, found, mark, annotated=False)

    def _roomy(self, path: str, room: int, fd: int) -> None:
        """As :meth:`_need`; not looked at again for a moment where that is far off."""
        self._need(path, room, fd)
        with suppress(StorageFull):
            self._need(path, room + 16 * PLENTY, fd)
            self._roomy_until = time.monotonic() + LOOK

    def _unnamed(self, above: int) -> int:
        """A descriptor of a new file without a name, on the file system of a directory."""
        try:
            return os.open(".", _NAMELESS, 0o644, dir_fd=above)
        except OSError as e:
            self._nameless = e.errno not in {errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL}
            raise

    def _finish(self, fd: int, data: Buffer, mark: Mark) -> os.stat_result:
        """Write a whole file and all that is to be known of it."""
        if os.write(fd, data) != len(data):
            raise OSError(errno.ENOSPC, "not all of it was written")
        now = time.time_ns()
        os.utime(fd, ns=(now, now))
        found = os.fstat(fd)
        self._marks.write(fd, found, mark)
        os.fchmod(fd, found.st_mode & 0o555)  # Last: who may not write may set no attribute either.
        return found

    def _link(self, path: str, fd: int, found: os.stat_result, name: str, above: int) -> None:
        """Give a nameless file a name that nothing has."""
        changes: Mapping[str, int] = {}
        if self._quota is not None:
            changes = self._quota.weigh(path, found.st_size)
            self._quota.add(changes, check=path)
        try:
            os.link(f"/proc/self/fd/{fd}", name, dst_dir_fd=above)
        except OSError:
            self._counted(changes, -1)
            self._marks.forget(found)
            raise

    def remove(self, path: str) -> int | None:
        """Delete a small file: the bytes it had; None for anything else, which :meth:`delete` judges."""
        try:
            with self._held(path):
                above, name = self.tree.above(path)
                try:
                    found = os.stat(name, dir_fd=above, follow_symlinks=False)
                    if not modes.S_ISREG(found.st_mode) or found.st_size > AT_ONCE:
                        return None
                    os.unlink(name, dir_fd=above)
                    self._gone(path, found)
                finally:
                    os.close(above)
        except (FileNotFoundError, NotADirectoryError):
            return None
        return found.st_size

    def delete(self, path: str, version: str | None, recursive: bool) -> None:
        """See ``Store.delete``."""
        with self._held(path), self.tree.entry(path) as (above, name):
            there = self.find(path)
            found = os.stat(name, dir_fd=above, follow_symlinks=False)
            check_version(path, there, version)
            if not modes.S_ISDIR(found.st_mode):
                os.unlink(name, dir_fd=above)
                self._gone(path, found)
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
            gone = self._weigh(path)
            hidden = spool.discard(name, above)
            self._counted(gone, -1)
        spool.erase(hidden)

    def rename(self, source: str, target: str, overwrite: bool) -> bool:
        """See ``Store.rename``."""
        with self._held(source, target):
            moving, there = self.stat(source), self.find(target)
            check_move(source, target)
            check_target(target, moving, there, overwrite)
            entry = self.tree.entry
            with entry(source) as (above, name), _parents(target), entry(target) as (onto, new):
                changes = self._moved(source, target, moving, there)
                if changes and self._quota is not None:
                    self._quota.add(changes, check=target)
                try:
                    os.rename(name, new, src_dir_fd=above, dst_dir_fd=onto)
                except OSError:
                    self._counted(changes, -1)
                    raise
                self._sync(onto)
        return there is not None

    def link(self, source: str, target: str, version: str) -> Stat:
        """See ``CanLink.link``."""
        with self._held(source, target):
            there = self.find(source)
            if there is None or there.is_dir:
                raise NotFound(f"{source}: there is no such file to be linked; name one")
            check_version(source, there, version)
            with _parents(target), self.tree.entry(target, make=True) as (onto, new):
                changes = self._quota.weigh(target, there.size) if self._quota is not None else {}
                if self._quota is not None:
                    self._quota.add(changes, check=target)
                try:
                    with self.tree.entry(source) as (above, name):
                        os.link(name, new, src_dir_fd=above, dst_dir_fd=onto, follow_symlinks=False)
                except OSError as e:
                    self._counted(changes, -1)
                    if isinstance(e, FileExistsError):
                        raise PreconditionFailed(f"{target}: there is a file already; look again") from e
                    raise
                self._sync(onto)
                return self.stat(target)

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

    def _need(self, path: str, room: int, fd: int) -> None:
        """Raise StorageFull unless so many bytes are free where a descriptor lies."""
        disk = os.fstatvfs(fd)
        if room > (free := disk.f_bavail * disk.f_frsize):
            raise StorageFull(f"{path}: {room} bytes are needed and {free} are free; free some space")

    def _gone(self, path: str, found: os.stat_result) -> None:
        """Forget a file that was unlinked, unless it had another name; ``found``: as it was before."""
        if found.st_nlink == 1:
            self._marks.forget(found)
            self._notes.forget(found)
        self._count(path, -found.st_size)

    def _count(self, path: str, size: int) -> None:
        """Count bytes that have come below a path, or gone."""
        if self._quota is not None and size:
            self._quota.add(self._quota.weigh(path, size))

    def _counted(self, changes: Mapping[str, int], sign: int) -> None:
        if self._quota is not None and changes:
            self._quota.add({prefix: sign * size for prefix, size in changes.items()})

    def _weigh(self, path: str, name: str = "") -> Mapping[str, int]:
        """The bytes below a directory for each prefix, if it were called ``name``."""
        if self._quota is None:
            return {}
        fd = self.tree.directory(path)
        try:
            return self._quota.weigh_tree(fd, name or path)
        finally:
            os.close(fd)

    def _moved(self, source: str, target: str, moving: Stat, there: Stat | None) -> Mapping[str, int]:
        """What a move changes for each prefix."""
        quota = self._quota
        if quota is None:
            return {}
        if moving.is_dir:
            gone, come = self._weigh(source), self._weigh(source, target)
        else:
            gone, come = quota.weigh(source, moving.size), quota.weigh(target, moving.size)
        over = quota.weigh(target, there.size) if there else {}
        return {p: come.get(p, 0) - gone.get(p, 0) - over.get(p, 0) for p in quota.prefixes}

    def _held(self, *paths: str) -> AbstractContextManager[object]:
        assert self._locks is not None
        return self._locks.hold(*paths)

    def _place(self, temporary: Temporary, path: str, if_version: str | None, if_absent: bool) -> Stat | None:
        """Give a temporary its name, if the conditions hold; what was there before."""
        for left in reversed(range(ATTEMPTS)):
            with _parents(path), self.tree.entry(path, make=True) as (above, name):
                old = self.find_at(path, above, name)
                check_replaceable(path, old, if_version=if_version, if_absent=if_absent)
                try:
                    move(temporary, name, above, exclusively=if_absent)
                    self._sync(above)
                except FileNotFoundError:
                    if not left:
                        raise  # The directory is deleted again and again while we publish.
                except FileExistsError as e:
                    raise PreconditionFailed(f"{path}: a file appeared there meanwhile; look again") from e
                else:
                    return old
        raise AssertionError("the last attempt returns or raises")

    def _sync(self, folder: int) -> None:
        if self._fsync:
            fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=folder)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)


@contextmanager
def _parents(path: str) -> Iterator[None]:
    """Say ``Conflict`` for what is wrong on the way to a path that is to be made."""
    try:
        yield
    except FileNotFoundError as e:
        raise Conflict(f"{path}: its directory does not exist; make it first") from e
    except NotADirectoryError as e:
        raise Conflict(f"{path}: something above it is a file, nothing can lie below that") from e
