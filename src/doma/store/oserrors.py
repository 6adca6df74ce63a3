"""What the operating system refuses, said in our words."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from doma.core.errors import (
    BadPath,
    Conflict,
    DomaError,
    Forbidden,
    NotFound,
    Refused,
    StorageFull,
    StorageUnavailable,
    Unsupported,
)

# EFBIG is what a process limit on file sizes gives; for the client that is the same as a full disk.
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_DENIED = {errno.EACCES, errno.EPERM}


def translate(error: OSError, path: str) -> DomaError:
    """The error of our family that an ``OSError`` means for a path of the store.

    The message names the path as the client knows it, never the place on this machine.
    """
    code, why = error.errno, error.strerror or type(error).__name__
    if code in {errno.ENOENT, errno.ELOOP}:
        return NotFound(f"{path}: no such file or directory")
    if code == errno.ENOTDIR:
        return NotFound(f"{path}: no such file or directory; something above it is a file")
    if code in _FULL:
        return StorageFull(f"{path}: the disk is full ({why}); nothing was published, free some space")
    if code in _DENIED:
        return Forbidden(
            f"{path}: the server's own user may not do this; the operator must change the permissions"
        )
    if code == errno.EROFS:
        return Refused(f"{path}: the file system is read-only; write to another endpoint")
    if code in {errno.EISDIR, errno.ENOTEMPTY, errno.EEXIST, errno.EBUSY}:
        return Conflict(f"{path}: {why.lower()}")
    if code in {errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ}:
        return BadPath(f"{path[:200]}: the file system cannot hold this name ({why.lower()})")
    if code == errno.EXDEV:
        return Unsupported(
            f"{path}: lies on another file system of the store; copy it and delete the old one"
        )
    return StorageUnavailable(f"{path}: the disk failed ({why}); try another replica")


@contextmanager
def translated(path: str) -> Iterator[None]:
    """Raise our errors instead of ``OSError``."""
    try:
        yield
    except OSError as e:
        raise translate(e, path) from e
