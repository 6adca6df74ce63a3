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


def read_private(path: Path, limit: int = 1 << 20) -> bytes | None:
    """The content of a file that only its owner may read; None if there is none.

    Raises:
        ConfigError: it is no plain file, is larger than ``limit``, has another owner or can be read or
            written by others; the message has the remedy.
    """
    try:
        # Without O_NONBLOCK a FIFO of that name would hold us for ever.
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as e:
        raise ConfigError(f"{path}: cannot be read: {e.strerror}") from e
    with os.fdopen(handle, "rb") as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise ConfigError(f"{path}: is not a plain file; move it away")
        if found.st_uid != os.geteuid():
            raise ConfigError(f"{path}: belongs to user {found.st_uid}; it must be your own")
        if found.st_mode & 0o077:
            raise ConfigError(f"{path}: others can read or change it; run: chmod 600 {path}")
        if found.st_size > limit:
            raise ConfigError(f"{path}: has {found.st_size} bytes, at most {limit} are expected")
        try:
            return file.read(limit + 1)
        except OSError as e:
            raise ConfigError(f"{path}: cannot be read: {e.strerror}") from e
