"""Checksums kept with their file, so that a stale one is never believed.

A mark names the size and modification time of the content it was made for; when the file's differ, the
mark counts for nothing. It lives in an extended attribute, set before the file is published and so atomic
with it; where the file system has none (or the file may not be changed) in a side file named by the version;
and for folders that we must not touch, in memory.
"""

import errno
import os
import time
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from doma.core.checksum import ALGORITHMS

ATTRIBUTE = "user.doma.marks"
REMEMBERED = 4096
"""Marks held in memory at most."""

LOOK = 1.0
"""Seconds for which a folder of side files is taken to be empty, as far as another process fills it."""

_LARGEST = 1024


def version_of(found: os.stat_result) -> str:
    """The strong validator of a file: inode, size, modification time.

    Our own publications set the time in full nanoseconds, so that a recycled inode number cannot repeat it.
    """
    return f"{found.st_ino:x}-{found.st_size:x}-{found.st_mtime_ns:x}"


@dataclass(frozen=True, slots=True)
class Mark:
    """What is known of a content beyond its ``stat``."""

    checksums: Mapping[str, str] = field(default_factory=dict)
    published: bool = False
    """Written by us, so never changed in place: it may be mapped into memory."""
    upload: str = ""
    """The client's id of the upload."""


NOTHING = Mark()


class Marks:
    """The marks of one store.

    Args:
        side: Directory descriptor for side files; None: remember in memory only, write nothing.
    """

    def __init__(self, side: int | None) -> None:
        self._side = side
        self._files = Side(side) if side is not None else None
        self._memory: OrderedDict[str, Mark] = OrderedDict()

    def read(self, where: int | str, found: os.stat_result) -> Mark:
        """The mark of a file, by descriptor or by ``/proc/self/fd/…`` path; an empty one if there is none."""
        text = read_attribute(where, ATTRIBUTE)
        mark = _parse(text, found) if text else None
        if mark is None and self._side is not None:
            mark = _parse(self._read_side(version_of(found)), found)
        return mark or self._memory.get(version_of(found)) or NOTHING

    def write(self, fd: int, found: os.stat_result, mark: Mark) -> None:
        """Keep a mark, in the best place there is.

        Raises:
            OSError: the disk is full or broken.
        """
        text = _format(mark, found)
        if self._side is None or not (
            set_attribute(fd, ATTRIBUTE, text) or self._write_side(version_of(found), text)
        ):
            self._memory[version_of(found)] = mark
            if len(self._memory) > REMEMBERED:
                self._memory.popitem(last=False)

    def forget(self, found: os.stat_result) -> None:
        """Drop the side file of a content that is gone."""
        if self._files is not None:
            self._files.forget(found)

    def _read_side(self, version: str) -> bytes:
        assert self._side is not None
        try:
            fd = os.open(version, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=self._side)
        except OSError:
            return b""
        try:
            return os.read(fd, _LARGEST)
        finally:
            os.close(fd)

    def _write_side(self, version: str, text: bytes) -> bool:
        assert self._files is not None
        fresh = f"{version}.{os.getpid()}.new"
        try:
            fd = os.open(
                fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644, dir_fd=self._side
            )
            try:
                os.write(fd, text)
            finally:
                os.close(fd)
            os.rename(fresh, version, src_dir_fd=self._side, dst_dir_fd=self._side)
        except PermissionError:
            return False
        self._files.put()
        return True


def _format(mark: Mark, found: os.stat_result) -> bytes:
    if len(mark.checksums) == 1 and mark.published and not mark.upload:  # nearly every one
        ((name, value),) = mark.checksums.items()
        return f"1 published {found.st_size} {found.st_mtime_ns} {name}={value}".encode()
    sums = ",".join([f"{name}={value}" for name, value in mark.checksums.items()])
    kind = "published" if mark.published else "found"
    return f"1 {kind} {found.st_size} {found.st_mtime_ns} {sums} {mark.upload}".rstrip(" ").encode()


def _parse(text: bytes, found: os.stat_result) -> Mark | None:
    """The mark, or None when it was made for another content or is none of ours."""
    words = [*text.decode("ascii", "replace").split(" "), "", ""]
    if len(words) > 8 or words[0] != "1" or words[2:4] != [str(found.st_size), str(found.st_mtime_ns)]:
        return None
    pairs = (item.partition("=") for item in words[4].split(","))
    sums = {name: value for name, _, value in pairs if len(value) == 2 * ALGORITHMS.get(name, -1)}
    return Mark(sums, published=words[1] == "published", upload=words[5])


class Side:
    """A folder of side files, by version; it is empty where files can have attributes.

    Args:
        fd: Its descriptor; whoever gave it closes it.
    """

    __slots__ = ("_fd", "_look_at", "_used")

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._look_at = 0.0
        self._used = False

    def forget(self, found: os.stat_result) -> None:
        """Drop the file of a content that is gone. If it stays, it names a version that never comes back."""
        now = time.monotonic()
        if now >= self._look_at:
            self._look_at = now + LOOK
            with os.scandir(self._fd) as files:
                self._used = next(files, None) is not None
        if self._used and os.access(version_of(found), os.F_OK, dir_fd=self._fd):  # cheaper than an error
            with suppress(OSError):
                os.unlink(version_of(found), dir_fd=self._fd)

    def put(self) -> None:
        """Say that a file was put there."""
        self._look_at = 0.0


def read_attribute(where: int | str, name: str) -> bytes:
    """An extended attribute of a file; nothing where there is none."""
    try:
        return os.getxattr(where, name)
    except (OSError, AttributeError):  # AttributeError: not Linux
        return b""


def clear_attribute(fd: int, name: str) -> None:
    """Remove an extended attribute that was read before."""
    os.removexattr(fd, name)


def set_attribute(fd: int, name: str, text: bytes) -> bool:
    """Set an extended attribute; False where that cannot be."""
    try:
        os.setxattr(fd, name, text)
    except AttributeError:
        return False
    except OSError as e:
        if e.errno in {errno.ENOTSUP, errno.EPERM, errno.EACCES, errno.EROFS, errno.ENOSPC, errno.E2BIG}:
            return False  # No attributes here, or none left on this file: the side file takes it.
        raise
    return True
