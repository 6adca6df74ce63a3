"""Texts inside root:// answers: stat lines, listings, logins, redirects, credentials. No I/O.

Source: §2, §4, §8 and §9 of the project's root:// contract; xrootd's ``XrdXrootdXeq.cc``.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from struct import Struct
from urllib.parse import quote, urlsplit

from doma.core.errors import BadCredential, OriginFailed

SEARCHABLE, DIRECTORY, OTHER, OFFLINE, READABLE, WRITABLE, BACKUP = 1, 2, 4, 8, 16, 32, 128
"""Flags of a stat line."""
_NUMBER = re.compile(r"-?[0-9]{1,20}")
_ZTN = Struct(">4sBBHH")
_LEADING = b".\n0 0 0 0\n"


@dataclass(frozen=True, slots=True)
class StatLine:
    """``id size flags mtime``, and what current servers add."""

    id: int
    """Device and inode."""
    size: int
    flags: int
    modified: int
    """Unix seconds."""
    mode: str = ""

    @property
    def is_dir(self) -> bool:
        return bool(self.flags & DIRECTORY)

    def __str__(self) -> str:
        mode = self.mode or ("0755" if self.is_dir else "0644")
        times = f"{self.modified} {self.modified} {self.modified}"
        return f"{self.id} {self.size} {self.flags} {times} {mode} doma doma"


def stat_line(text: str) -> StatLine:
    """Read a stat line.

    Raises:
        OriginFailed: it has fewer than four numbers.

    >>> stat_line("9 131 48 1795356134 1795356134 1795356134 0644 daemon daemon").size
    131
    """
    words = text.split()
    if len(words) < 4 or not all(_NUMBER.fullmatch(word) for word in words[:4]) or int(words[1]) < 0:
        raise OriginFailed(f"{text[:100]!r} does not describe a file")
    number, size, flags, modified = (int(word) for word in words[:4])
    return StatLine(number, size, flags, modified, words[6] if len(words) > 6 else "")


def listing(body: bytes) -> Iterator[tuple[str, StatLine]]:
    """Names and stat lines of a whole dirlist answer.

    Raises:
        OriginFailed: it has no stat lines, or its lines are no pairs.

    >>> [name for name, _ in listing(listing_text([("a b", stat_line("1 2 16 3"))]))]
    ['a b']
    """
    if not body:
        return
    if not body.startswith(_LEADING[:-1]):
        raise OriginFailed("a listing without the sizes that were asked for")
    lines = body[len(_LEADING) :].rstrip(b"\0\n").split(b"\n")
    if lines == [b""]:
        return
    if len(lines) % 2:
        raise OriginFailed("a listing whose last entry is not whole")
    for name, line in zip(lines[::2], lines[1::2], strict=True):
        if name not in {b".", b".."} and b"/" not in name:
            yield name.decode("utf-8", "surrogateescape"), stat_line(line.decode("latin-1"))


def listing_text(entries: Iterable[tuple[str, StatLine]]) -> bytes:
    """What :func:`listing` reads."""
    return (_LEADING + b"".join(f"{name}\n{line}\n".encode() for name, line in entries))[:-1] + b"\0"


def protocols(text: str) -> dict[str, str]:
    """Ways to authenticate that a server offers behind its login answer, with their parameters.

    >>> protocols("&P=ztn,0:4096:&P=unix")
    {'ztn': '0:4096:', 'unix': ''}
    """
    parts = (part.partition(",") for part in text.split("&P=")[1:])
    return {name.strip(): rest for name, _, rest in parts}


def ztn(token: str) -> bytes:
    """A token as credential; goes over TLS only.

    Raises:
        BadCredential: longer than its length field can say.
    """
    data = token.encode() + b"\0"
    if len(data) > 0xFFFF:
        raise BadCredential(
            f"a token of {len(data) - 1} bytes is too long for root://; ask for a shorter one"
        )
    return _ZTN.pack(b"ztn\0", 0, ord("T"), 0, len(data)) + data


def ztn_token(data: bytes) -> str:
    """The token in a credential; for a server.

    Raises:
        BadCredential: it is malformed.

    >>> ztn_token(ztn("abc") + bytes(3))
    'abc'
    """
    if len(data) < _ZTN.size:
        raise BadCredential("a ztn credential that is too short; send a token")
    kind, version, act, _, length = _ZTN.unpack_from(data)
    token = data[_ZTN.size : _ZTN.size + length]
    good = kind == b"ztn\0" and version == 0 and act == ord("T") and len(token) == length > 1
    if not good or token[-1] or 0 in token[:-1] or not token[:-1].isascii():
        raise BadCredential("a malformed ztn credential; send version 0 with a token that ends in NUL")
    return token[:-1].decode("ascii")


@dataclass(frozen=True, slots=True)
class Target:
    """Where a redirect leads."""

    host: str
    port: int
    opaque: str
    """To be added behind the ``?`` of the repeated request."""


def redirect(port: int, text: str) -> Target:
    """Read a redirect.

    Args:
        port: -1: the text is a whole URL.
        text: ``host[?cgi[?more]]``.

    Raises:
        OriginFailed: it names no host or port, or another protocol.

    >>> redirect(1095, "[::1]?tried=a")
    Target(host='::1', port=1095, opaque='tried=a')
    >>> redirect(-1, "root://b.org:1/x?y=1").port
    1
    """
    front, _, cgi = text.partition("?")
    opaque = cgi.partition("?")[0].strip("&")
    try:
        parts = urlsplit(front if port < 0 else f"root://{front}")
        host, found = parts.hostname, parts.port
    except ValueError as e:
        raise OriginFailed(f"redirects to {front[:200]!r}, which is no address") from e
    if parts.scheme not in {"root", "roots", "xroot", "xroots"} or not host or "@" in parts.netloc:
        raise OriginFailed(f"redirects to {front[:200]!r}, which is no root:// server")
    if port == -1:
        return Target(host, found or 1094, opaque)
    if not 0 < port < 1 << 16 or parts.path or found is not None:
        raise OriginFailed(f"redirects to port {port} of {front[:200]!r}, which is no address")
    return Target(host, port, opaque)


def with_cgi(path: str, *cgi: str) -> bytes:
    """A path with what stands behind its ``?``; a path with ``?``, ``&`` or NUL in it is none for root://.

    >>> with_cgi("/a", "", "x=1", "y=2")
    b'/a?x=1&y=2'
    """
    more = "&".join(part for part in cgi if part)
    return (f"{path}?{more}" if more else path).encode("utf-8", "surrogateescape")


def authz(token: str) -> str:
    """A token as it stands behind the ``?`` of a path."""
    return "authz=Bearer%20" + quote(token, safe="-._~")
