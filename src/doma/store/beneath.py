"""A folder that nothing leads out of: names are opened one by one below a descriptor.

Every component is opened with ``O_NOFOLLOW`` relative to the one above it, and a symbolic link is resolved
by us: its target counts only if it lies within the folder. So there is no moment between a check and its
use in which a swapped link could lead elsewhere; ``realpath`` and a prefix test would have that moment.
Where the kernel walks a path without links by itself (``openat2``, Linux 5.6), it does so in one call.

All calls raise plain ``OSError``: ``ENOENT`` for what is missing *or leads outside*, ``ENOTDIR`` for a file
in the place of a directory.
"""

import ctypes
import errno
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

MAX_LINKS = 40
"""Symbolic links followed in one path, as in the kernel."""

# O_PATH asks only for search permission and has no side effects; elsewhere than on Linux plain reading does.
_STEP = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def parts_of(path: str) -> list[str]:
    """The components of a canonical path; none for ``/``."""
    return [part for part in path.split("/") if part]


def _straight(fd: int, path: str) -> int:
    """A directory below another one by several names at once, none of them a link; -1: walk step by step.

    That tells what is wrong, or can do without ``openat2(2)``.
    """
    if _syscall is None:
        return -1
    found: int = _syscall(_OPENAT2, fd, path.encode("utf-8", "surrogateescape"), _HOW, _HOW_SIZE)
    return found


AT_ONCE = 1000
"""Characters of a path that the kernel takes in one call, however many bytes each of them needs."""


def directory(top: int, path: str) -> int:
    """A descriptor to list a directory below another one with; the caller closes it.

    Args:
        top: Descriptor of the other one.
        path: Names, however many, of which none may be a link.
    """
    fd, left = os.dup(top), path.strip("/")
    try:
        while left:
            some = left if len(left) <= AT_ONCE else left[: left.rindex("/", 0, AT_ONCE)]
            inner = _straight(fd, some)
            if inner < 0:
                some = left.partition("/")[0]
                inner = os.open(some, _STEP, dir_fd=fd)
            os.close(fd)
            fd, left = inner, left[len(some) + 1 :]
        return os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=fd)
    finally:
        os.close(fd)


def _system_call() -> Callable[..., int] | None:
    try:
        call = ctypes.CDLL(None).syscall
    except (OSError, AttributeError, TypeError):
        return None
    call.restype = ctypes.c_long
    call.argtypes = (ctypes.c_long, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_size_t)
    return call


_syscall = _system_call() if hasattr(os, "O_PATH") else None
_OPENAT2 = 437  # the same on every architecture
# flags, mode, resolve: RESOLVE_NO_MAGICLINKS | RESOLVE_NO_SYMLINKS | RESOLVE_BENEATH
_HOW = (ctypes.c_uint64 * 3)(_STEP, 0, 0x02 | 0x04 | 0x08)
_HOW_SIZE = ctypes.sizeof(_HOW)


class Tree:
    """A folder and what lies below."""

    def __init__(self, root: Path) -> None:
        self.fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self.real = os.path.realpath(root)

    def close(self) -> None:
        """Give up the folder. Idempotent."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    @contextmanager
    def nearest(self, path: str) -> Iterator[tuple[int, list[str]]]:
        """The deepest directory on the way to a path that exists, and its real components.

        Raises:
            NotADirectoryError: something on the way is a file.
        """
        fd, at = self._walk(parts_of(path)[:-1], missing="stop")
        try:
            yield fd, at
        finally:
            os.close(fd)

    def above(self, path: str) -> tuple[int, str]:
        """A path as a descriptor of its directory, which the caller closes, and its last name.

        Args:
            path: Canonical; ``/`` gives the name ``.``.
        """
        above, _, name = path[1:].rpartition("/")
        if above and (fd := _straight(self.fd, above)) >= 0:
            return fd, name
        return self._walk(parts_of(above))[0], name or "."

    @contextmanager
    def entry(self, path: str, *, make: bool = False) -> Iterator[tuple[int, str]]:
        """As :meth:`above`, and closed afterwards; ``make`` makes missing directories on the way."""
        *above, name = parts_of(path) or ["."]
        fd, _ = self._walk(above, missing="make" if make else "raise")
        try:
            yield fd, name
        finally:
            os.close(fd)

    @contextmanager
    def target(self, path: str) -> Iterator[tuple[int, str, os.stat_result]]:
        """As :meth:`entry`, with a link in the last place followed too, and what stands there."""
        parts = parts_of(path)
        for _ in range(MAX_LINKS):
            *above, name = parts or ["."]
            fd, at = self._walk(above)
            try:
                found = os.stat(name, dir_fd=fd, follow_symlinks=False)
                if (found.st_mode & 0o170000) != 0o120000:
                    yield fd, name, found
                    return
                parts = self._inside(at, os.readlink(name, dir_fd=fd))
            finally:
                os.close(fd)
        raise OSError(errno.ELOOP, "too many symbolic links")

    def directory(self, path: str) -> int:
        """A descriptor of a directory that can be listed; the caller closes it."""
        fd, _ = self._walk(parts_of(path))
        try:
            return os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=fd)
        finally:
            os.close(fd)

    def _walk(self, parts: Sequence[str], missing: str = "raise") -> tuple[int, list[str]]:
        if not parts:
            return os.dup(self.fd), []
        if (fd := _straight(self.fd, "/".join(parts))) >= 0:
            return fd, list(parts)
        todo, at, links = list(reversed(parts)), list[str](), 0
        fd = self.fd
        try:
            while todo:
                name = todo.pop()
                try:
                    inner = os.open(name, _STEP, dir_fd=fd)
                except FileNotFoundError:
                    if missing == "stop":
                        break
                    if missing == "raise":
                        raise
                    _make(name, fd)
                    todo.append(name)
                    continue
                except OSError as e:
                    if e.errno not in {errno.ELOOP, errno.ENOTDIR}:
                        raise
                    links += 1
                    if links > MAX_LINKS:
                        raise OSError(errno.ELOOP, "too many symbolic links") from e
                    todo += reversed(self._inside(at, _link(name, fd)))
                    inner, at = os.dup(self.fd), []
                else:
                    at.append(name)
                if fd != self.fd:
                    os.close(fd)
                fd = inner
            return (os.dup(fd) if fd == self.fd else fd), at
        except BaseException:  # a cancellation, too: undone, and raised on
            if fd != self.fd:
                os.close(fd)
            raise

    def _inside(self, at: Sequence[str], link: str) -> list[str]:
        """The components from the top that a link found in directory ``at`` means."""
        if link.startswith("/"):
            if link != self.real and not link.startswith(self.real.rstrip("/") + "/"):
                raise FileNotFoundError(errno.ENOENT, "the link leads out of the store")
            at, link = [], link[len(self.real) :]
        found = list(at)
        for part in parts_of(link):
            if part == "..":
                if not found:
                    raise FileNotFoundError(errno.ENOENT, "the link leads out of the store")
                found.pop()
            elif part != ".":
                found.append(part)
        return found


def _make(name: str, fd: int) -> None:
    with suppress(FileExistsError):  # Somebody else was quicker.
        os.mkdir(name, 0o755, dir_fd=fd)


def _link(name: str, fd: int) -> str:
    try:
        return os.readlink(name, dir_fd=fd)
    except OSError as e:
        raise NotADirectoryError(errno.ENOTDIR, "not a directory") from e
