"""A client's own properties, kept with their file or directory.

Of a file: in an extended attribute, or, where the file system has none or too little room in one, in a side
file named by the version, which no other content ever has. Of a directory: in a hidden file inside it, so
that it moves and goes with the directory. Calls block, and raise ``OSError`` as the system gave it.

Source: RFC 4918 §4 (dead properties); rule W15 of the storage contract.
"""

import json
import os
import stat as modes
from collections.abc import Mapping
from contextlib import suppress

from doma.core.errors import LimitExceeded
from doma.core.paths import RESERVED
from doma.store.marks import Side, clear_attribute, read_attribute, set_attribute, version_of

ATTRIBUTE = "user.doma.notes"
INSIDE = RESERVED + ".notes"
"""The hidden file of a directory."""
LIMIT = 64 << 10
"""Bytes of JSON that one path may have."""


class Notes:
    """The properties of one store.

    Args:
        side: Directory descriptor for side files, owned from now on; None: read only.
    """

    def __init__(self, side: int | None) -> None:
        self._side = side
        self._files = Side(side) if side is not None else None

    def close(self) -> None:
        """Give the descriptor back."""
        if self._side is not None:
            os.close(self._side)
            self._side = self._files = None

    def read(self, fd: int, found: os.stat_result) -> dict[str, str]:
        """Of an open file or directory."""
        if modes.S_ISDIR(found.st_mode):
            return _parsed(_content(INSIDE, fd))
        text = read_attribute(fd, ATTRIBUTE)
        if not text and self._side is not None:
            text = _content(version_of(found), self._side)
        return _parsed(text)

    def any(self, where: int | str, found: os.stat_result) -> bool:
        """Whether a file may have some; ``where`` is as for ``Marks.read``."""
        if read_attribute(where, ATTRIBUTE):
            return True
        if self._side is None:
            return False
        try:
            os.stat(version_of(found), dir_fd=self._side)
        except OSError:
            return False
        return True

    def change(self, path: str, fd: int, found: os.stat_result, changes: Mapping[str, str | None]) -> None:
        """Set or (None) remove, all of them or none.

        Raises:
            LimitExceeded: more than :data:`LIMIT` bytes would be kept.
        """
        assert self._side is not None
        notes = {**self.read(fd, found), **changes}
        kept = {name: value for name, value in notes.items() if value is not None}
        text = json.dumps(kept).encode() if kept else b""
        if len(text) > LIMIT:
            raise LimitExceeded(
                f"{path}: its own properties would take {len(text)} bytes, {LIMIT} are kept; remove some"
            )
        if modes.S_ISDIR(found.st_mode):
            _replace(INSIDE, fd, text)
            return
        if text and set_attribute(fd, ATTRIBUTE, text):
            text = b""
        elif read_attribute(fd, ATTRIBUTE):
            # An old value in the attribute would be read before the side file.
            clear_attribute(fd, ATTRIBUTE)
        _replace(version_of(found), self._side, text)
        if self._files is not None:
            self._files.put()

    def forget(self, found: os.stat_result) -> None:
        """Drop the side file of a content that is gone."""
        if self._files is not None:
            self._files.forget(found)


def drop_inside(name: str, above: int) -> bool:
    """Remove the hidden file of a directory that holds nothing else, so that the directory can go."""
    fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=above)
    try:
        if os.listdir(fd) != [INSIDE]:
            return False
        os.unlink(INSIDE, dir_fd=fd)
    finally:
        os.close(fd)
    return True


def _content(name: str, folder: int) -> bytes:
    try:
        fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=folder)
    except FileNotFoundError:
        return b""
    with os.fdopen(fd, "rb") as file:
        return file.read(LIMIT + 1)


def _replace(name: str, folder: int, text: bytes) -> None:
    if not text:
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=folder)
        return
    fresh = f"{RESERVED}.{name}.{os.getpid()}"
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644, dir_fd=folder)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(text)
        os.rename(fresh, name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:  # a cancellation, too: undone, and raised on
        with suppress(OSError):
            os.unlink(fresh, dir_fd=folder)
        raise


def _parsed(text: bytes) -> dict[str, str]:
    try:
        found = json.loads(text or b"{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
