"""Paths inside an endpoint: decoded once, by component, never by string.

Source: WLCG token profile 1.3 §"Scope-based authorisation"; rules T12-T15 and W19 of the contracts.
"""

import re
from urllib.parse import quote, unquote_to_bytes

from doma.core.errors import BadPath, UriTooLong

MAX_COMPONENT = 255
MAX_PATH = 4096
MAX_DEPTH = 200
"""Names of one path: whoever walks a tree goes that deep."""
RESERVED = ".doma"
"""Names that begin so belong to the storage engines."""

_UNSAYABLE = re.compile("[\x00-\x1f\x7f\ud800-\udfff]").search


def normalise(raw: str) -> str:
    """The canonical form of a percent-encoded request path: ``/a/b``, ``/`` for the top.

    Decodes each component once, collapses ``//``, resolves ``.``; keeps no trailing slash.

    Args:
        raw: The path as on the wire, without query.

    Raises:
        BadPath: ``..``, an encoded ``/``, NUL, control bytes, bytes that are no UTF-8, a relative path,
            an over-long component or a reserved name.
        UriTooLong: more than 4 KiB.

    >>> normalise("/a//./b%20c/")
    '/a/b c'
    >>> normalise("/a/%2e%2e/b")
    Traceback (most recent call last):
    doma.core.errors.BadPath: /a/%2e%2e/b: '..' is not allowed in a path; write the path without it
    """
    if not raw.startswith("/"):
        raise BadPath(f"{_shown(raw)}: a path must begin with '/'")
    if len(raw) > MAX_PATH:
        raise UriTooLong(f"{_shown(raw)}: a path may have at most {MAX_PATH} bytes, this one has {len(raw)}")
    return _joined([_component(part, raw) for part in raw.split("/")], raw)


def checked(path: str) -> str:
    """The canonical form of an already decoded path (command line, JSON); same rules and errors."""
    if not path.startswith("/"):
        raise BadPath(f"{_shown(path)}: a path must begin with '/'")
    for part in path.split("/"):
        _check(part, path)
    return _joined(path.split("/"), path)


def nameable(path: str) -> bool:
    r"""Whether a request could name this decoded path at all; the disk below a store may hold others.

    >>> nameable("/a b"), nameable("/a\n")
    (True, False)
    """
    return not _UNSAYABLE(path)


def must_be_nameable(path: str) -> None:
    """Raise BadPath for a decoded path with control characters, or what is no character."""
    if _UNSAYABLE(path):
        raise BadPath(f"{_shown(path)}: control characters are not allowed in a path")


def covers(scope: str, path: str) -> bool:
    """Whether a scope path covers a canonical path, by component.

    A trailing slash means "directory": what lies below and the directory itself, not a file of that
    name; whether the path *is* a file only the caller knows, so both are covered here.

    >>> covers("/foo/bar", "/foo/bar/qux"), covers("/foo/bar", "/foo/bargain"), covers("/", "/x")
    (True, False, True)
    """
    scope = scope.rstrip("/")
    return path == scope or path.startswith(scope + "/") or not scope


def parent(path: str) -> str:
    """The directory of a canonical path; of ``/`` it is ``/``.

    >>> parent("/a/b"), parent("/a"), parent("/")
    ('/a', '/', '/')
    """
    return path.rpartition("/")[0] or "/"


def encode(path: str) -> str:
    """The percent-encoded form of a canonical path for a URL.

    >>> encode("/a/b c+#")
    '/a/b%20c%2B%23'
    """
    return quote(path, safe="/:@!$&'()*,;=~-._")


def _component(part: str, raw: str) -> str:
    if "%" in part:
        try:
            data = unquote_to_bytes(part)
            decoded = data.decode()
        except UnicodeError as e:  # encoding fails as well, where raw bytes stand beside encoded ones
            raise BadPath(f"{_shown(raw)}: a name must be UTF-8") from e
        if b"/" in data:
            raise BadPath(f"{_shown(raw)}: an encoded '/' is not allowed inside a name")
        part = decoded
    _check(part, raw)
    return part


def _check(part: str, raw: str) -> None:
    if part == "..":
        raise BadPath(f"{_shown(raw)}: '..' is not allowed in a path; write the path without it")
    if len(part) > MAX_COMPONENT // 4 and len(part.encode("utf-8", "surrogatepass")) > MAX_COMPONENT:
        raise BadPath(f"{_shown(raw)}: a name may have at most {MAX_COMPONENT} bytes")
    if part.startswith(RESERVED):
        raise BadPath(f"{_shown(raw)}: names that begin with {RESERVED!r} are reserved")
    if part.isascii() and part.isprintable():
        return
    if _UNSAYABLE(part):
        raise BadPath(f"{_shown(raw)}: control characters are not allowed in a path")


def _joined(parts: list[str], raw: str) -> str:
    names = [p for p in parts if p not in {"", "."}]
    if len(names) > MAX_DEPTH:
        raise BadPath(f"{_shown(raw)}: a path may have at most {MAX_DEPTH} names, this one has {len(names)}")
    path = "/" + "/".join(names)
    if len(path.encode()) > MAX_PATH:
        raise UriTooLong(f"{_shown(raw)}: a path may have at most {MAX_PATH} bytes")
    return path


def _shown(raw: str) -> str:
    """The path as it may stand in a message: short and printable."""
    text = raw if raw.isprintable() else ascii(raw)[1:-1]
    return text if len(text) <= 200 else text[:200] + "…"
