"""Checksums, and the headers that carry them.

Inside DOMA a checksum is lower-case hex under one of the names of :data:`ALGORITHMS`. On the wire it is
whatever RFC 3230 (``Digest``), RFC 9530 (``Repr-Digest``), ``Content-MD5`` or OwnCloud's ``Oc-Checksum``
say; we write strictly and read what grid clients really send (rules W36-W40 of the storage contract).
"""

import base64
import binascii
import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

import crc32c
from zlib_ng import zlib_ng

from doma.core.errors import BadRequest, Unsupported

Buffer = bytes | bytearray | memoryview

ALGORITHMS: Mapping[str, int] = {
    "adler32": 4,
    "crc32c": 4,
    "md5": 16,
    "sha-256": 32,
    "sha-512": 64,
    "sha-1": 20,
    "cksum": 4,
}
"""Name to length in bytes; the order is the one in which we list them unasked."""

COMPUTABLE = ("adler32", "crc32c", "md5", "sha-256", "sha-512", "sha-1")
"""What :func:`hasher` offers; ``cksum`` is only passed on."""

_WIRE = {"adler": "adler32", "sha": "sha-1", "sha1": "sha-1", "sha256": "sha-256", "sha512": "sha-512"}
_WIRE |= {"unixcksum": "cksum", **{name: name for name in ALGORITHMS}}
_DIGEST = {"sha-1": "sha", "cksum": "UNIXcksum"}
_REPR = {"adler32": "adler", "crc32c": "crc32c", "md5": "md5", "sha-256": "sha-256", "sha-512": "sha-512"}
_HASHLIB = {"md5": "md5", "sha-1": "sha1", "sha-256": "sha256", "sha-512": "sha512"}
_HEX = re.compile(r"[0-9a-fA-F]+")


class Hasher(Protocol):
    """An incremental checksum."""

    def update(self, data: Buffer, /) -> None: ...

    def hexdigest(self) -> str: ...


class _Rolling:
    """A 32-bit checksum whose state is its value."""

    __slots__ = ("_step", "value")

    def __init__(self, step: Callable[[Buffer, int], int], start: int) -> None:
        self._step = step
        self.value = start

    def update(self, data: Buffer) -> None:
        self.value = self._step(data, self.value)

    def hexdigest(self) -> str:
        return f"{self.value:08x}"


def hasher(algorithm: str) -> Hasher:
    """A fresh checksum of that name.

    adler32 runs at some 40 GB/s, crc32c at 20, md5 at 0.7: only the first two belong on an event loop.

    Raises:
        Unsupported: a name that cannot be computed here.

    >>> h = hasher("adler32"); h.update(b"Wikipedia"); h.hexdigest()
    '11e60398'
    """
    if algorithm == "adler32":
        return _Rolling(zlib_ng.adler32, 1)
    if algorithm == "crc32c":
        return _Rolling(crc32c.crc32c, 0)
    if algorithm in _HASHLIB:
        return hashlib.new(_HASHLIB[algorithm], usedforsecurity=False)
    raise Unsupported(f"checksum {algorithm!r} cannot be computed; known: {', '.join(COMPUTABLE)}")


def adler32(data: Buffer) -> str:
    """The adler32 of all of it.

    >>> adler32(b"Wikipedia")
    '11e60398'
    """
    return f"{zlib_ng.adler32(data, 1):08x}"


def combine_adler32(first: str, second: str, length: int) -> str:
    """The adler32 of two joined pieces, from theirs and the length of the second in bytes.

    Source: zlib's ``adler32_combine``; RFC 1950 §8.2 for the sums.

    >>> a, b = hasher("adler32"), hasher("adler32"); a.update(b"Wiki"); b.update(b"pedia")
    >>> combine_adler32(a.hexdigest(), b.hexdigest(), 5)
    '11e60398'
    """
    base = 65521
    one, two = int(first, 16), int(second, 16)
    low = (one & 0xFFFF) + (two & 0xFFFF) - 1
    high = (one >> 16) + (two >> 16) + length * ((one & 0xFFFF) - 1)
    return f"{(high % base) << 16 | low % base:08x}"


def canonical(name: str) -> str | None:
    """Our name of an algorithm as others spell it, or None: ``ADLER32``, ``adler``, ``SHA``, ``sha256``."""
    return _WIRE.get(name.strip().lower())


def same(algorithm: str, one: str, other: str) -> bool:
    """Whether two hex values mean the same number: padding and case do not matter."""
    width = 2 * ALGORITHMS.get(algorithm, 0)
    return one.lower().rjust(width, "0") == other.lower().rjust(width, "0")


def parse_checksum(algorithm: str, text: str) -> str:
    """Canonical hex of a value in any encoding that is met: hex, unpadded hex, base64, decimal (cksum).

    Raises:
        BadRequest: it is none of them.

    >>> parse_checksum("adler32", "BE7E86"), parse_checksum("adler32", "ChssPQ==")
    ('00be7e86', '0a1b2c3d')
    """
    size, text = ALGORITHMS[algorithm], text.strip().strip('"')
    if algorithm == "cksum":
        if text.isascii() and text.isdigit() and len(text) <= 10 and int(text) < 1 << 32:
            return f"{int(text):08x}"
    elif _HEX.fullmatch(text) and (len(text) == 2 * size or (size == 4 and len(text) < 8)):
        return text.lower().rjust(2 * size, "0")
    elif len(text) <= 4 * size:
        try:
            data = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
        except (binascii.Error, ValueError):
            data = b""
        if len(data) == size:
            return data.hex()
    raise BadRequest(f"{text[:80]!r} is no {algorithm} value; send {2 * size} hex digits or base64")


def read_digests(headers: Iterable[tuple[str, str]], *, strict: bool = False) -> dict[str, str]:
    """What the headers of a request or answer say about the content: algorithm to hex.

    Reads ``Digest``, ``Repr-Digest``, ``Content-MD5``, ``Oc-Checksum``, each any number of times. Unknown
    algorithms are left out.

    Args:
        headers: Name and value, names in any case.
        strict: For requests: a broken or contradictory value is an error instead of being left out.

    Raises:
        BadRequest: only if ``strict``.

    >>> read_digests([("Digest", "Adler32:be007e86, md5=1B2M2Y8AsgTpgAmY7PhCfg==")])
    {'adler32': 'be007e86', 'md5': 'd41d8cd98f00b204e9800998ecf8427e'}
    """
    found: dict[str, str] = {}
    for header, value in headers:
        for name, text in _items(header.lower(), value):
            algorithm = canonical(name)
            if algorithm is None:
                continue
            try:
                digest = parse_checksum(algorithm, text)
            except BadRequest:
                if strict:
                    raise
                continue
            if found.setdefault(algorithm, digest) != digest and strict:
                raise BadRequest(f"{header}: two different {algorithm} values are stated; send one")
    return found


def wanted(want_digest: str | None, want_repr_digest: str | None) -> tuple[str, ...]:
    """The algorithms a client asks for, best first: ``Want-Digest`` by ``q``, ``Want-Repr-Digest`` by weight.

    >>> wanted("md5;q=0.3, ADLER32", None), wanted(None, "adler=1, sha-256=5, md5=0")
    (('adler32', 'md5'), ('sha-256', 'adler32'))
    """
    weights: dict[str, float] = {}
    for item in (want_digest or "").split(","):
        name, _, rest = item.partition(";")
        key, _, weight = rest.partition("=")
        _weigh(weights, name, weight if key.strip().lower() == "q" else "1", 1.0)
    for item in (want_repr_digest or "").split(","):
        name, _, weight = item.partition("=")
        _weigh(weights, name, weight or "1", 10.0)
    return tuple(sorted(weights, key=lambda name: -weights[name]))


def digest_header(checksums: Mapping[str, str], want: Iterable[str] | None = None) -> str | None:
    """The value of ``Digest`` (RFC 3230), or None when there is nothing to say.

    Args:
        checksums: Algorithm to hex, as stored.
        want: What :func:`wanted` gave, in that order; None or empty: all that is stored.

    >>> digest_header({"adler32": "0a1b2c3d", "md5": "d41d8cd98f00b204e9800998ecf8427e"}, ["md5", "adler32"])
    'md5=1B2M2Y8AsgTpgAmY7PhCfg==,adler32=0a1b2c3d'
    """
    items = []
    for name in _chosen(checksums, want):
        text = _padded(checksums, name)
        if name == "cksum":
            text = str(int(text, 16))
        elif name != "adler32":
            text = _b64(text)
        items.append(f"{_DIGEST.get(name, name)}={text}")
    return ",".join(items) or None


def repr_digest_header(checksums: Mapping[str, str], want: Iterable[str] | None = None) -> str | None:
    """The value of ``Repr-Digest`` (RFC 9530), or None; arguments as :func:`digest_header`.

    >>> repr_digest_header({"adler32": "0a1b2c3d"})
    'adler=:ChssPQ==:'
    """
    names = (name for name in _chosen(checksums, want) if name in _REPR)
    return ", ".join(f"{_REPR[name]}=:{_b64(_padded(checksums, name))}:" for name in names) or None


def _items(header: str, value: str) -> list[tuple[str, str]]:
    """Name and text of each digest in one header."""
    if header == "content-md5":
        return [("md5", value)]
    if header == "oc-checksum":
        return [_split(part, ":") for part in value.split()]
    if header == "digest":
        # Some servers write ``Adler32:be007e86``; no encoding in use holds a colon.
        return [_split(part, "=" if "=" in part.partition(":")[0] else ":") for part in value.split(",")]
    if header == "repr-digest":
        pairs = (_split(part, "=") for part in value.split(","))
        return [(name, text.partition(";")[0].strip().strip(":")) for name, text in pairs]
    return []


def _split(part: str, mark: str) -> tuple[str, str]:
    name, _, text = part.partition(mark)
    return name, text


def _weigh(weights: dict[str, float], name: str, weight: str, top: float) -> None:
    algorithm = canonical(name)
    try:
        value = min(float(weight) / top, 1.0)
    except ValueError:
        value = 1.0 / top
    if algorithm is not None and value > 0:
        weights.setdefault(algorithm, value)


def _chosen(checksums: Mapping[str, str], want: Iterable[str] | None) -> list[str]:
    return [name for name in (tuple(want or ()) or ALGORITHMS) if name in checksums]


def _padded(checksums: Mapping[str, str], name: str) -> str:
    return checksums[name].lower().rjust(2 * ALGORITHMS[name], "0")


def _b64(text: str) -> str:
    return base64.b64encode(bytes.fromhex(text)).decode("ascii")
