"""Small private files that are always whole: written to a temporary, synced, then named."""

import os
import stat
import tempfile
from pathlib import Path

from doma.core.errors import ConfigError, StorageFull

_FULL = frozenset({28, 122})  # ENOSPC, EDQUOT


def make_private_dir(folder: Path) -> None:
    """Make a directory that only its owner can enter; one that exists is left as it is.

    Raises:
        ConfigError: it cannot be made.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as e:
        raise ConfigError(f"{folder}: cannot be made: {e.strerror}") from e


def write_private(path: Path, data: bytes, *, replace: bool = True) -> bool:
    """Write a file with mode 0600 so that a reader sees all of it or none.

    Args:
        path: Where; its directory exists.
        data: The content.
        replace: False: leave a file that is there already.

    Returns:
        Whether the file now holds ``data``; False only without ``replace``.

    Raises:
        StorageFull, ConfigError: it cannot be written; what was there is unchanged.
    """
    temporary = ""
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mode 0600
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if replace:
            os.replace(temporary, path)
        else:
            os.link(temporary, path)  # unlike a rename, refuses to replace
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except FileExistsError:
        return False
    except OSError as e:
        kind = StorageFull if e.errno in _FULL else ConfigError
        raise kind(f"{path}: cannot be written: {e.strerror}") from e
    finally:
        if temporary:
            Path(temporary).unlink(missing_ok=True)
    return True


def read_private(
    path: Path, limit: int = 1 << 20, *, uid: int | None = None, follow: bool = True
) -> bytes | None:
    """The content of a file that only its owner may read or change; None if there is none.

    Args:
        path: Where.
        limit: Bytes it may have at most.
        uid: Who must own it; None: the effective user.
        follow: Whether it may be a symbolic link.

    Raises:
        ConfigError: it is no plain file, is too large, has another owner, or others can read or change
            it; the message has the remedy.
    """
    # Without O_NONBLOCK a FIFO of that name would hold us for ever.
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
    try:
        handle = os.open(path, flags)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as e:
        raise ConfigError(f"{path}: cannot be read: {e}") from e
    try:
        _check(path, os.fstat(handle), limit, os.geteuid() if uid is None else uid)
        with os.fdopen(handle, "rb", closefd=False) as file:
            return file.read(limit)
    except OSError as e:
        raise ConfigError(f"{path}: cannot be read: {e.strerror}") from e
    finally:
        os.close(handle)


def _check(path: Path, found: os.stat_result, limit: int, uid: int) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise ConfigError(f"{path}: is not a plain file; move it away")
    if found.st_uid != uid:
        raise ConfigError(f"{path}: belongs to user {found.st_uid}, not to {uid}; use a file of your own")
    if found.st_mode & 0o066:
        raise ConfigError(f"{path}: others can read or change it; run: chmod 600 {path}")
    if found.st_size > limit:
        raise ConfigError(f"{path}: has {found.st_size} bytes, at most {limit} are expected")
