"""The top directory of a ROOT file: which objects it holds, by name, and their bytes.

What is not plain (directories within, names with a slash, anything that does not fit) is left to uproot,
which also says what is wrong with a damaged file.

Source: ROOT's TFile, TDirectory and TKey records.
"""

import struct
from dataclasses import dataclass

from doma.columns.baskets import unzipped
from doma.columns.cursor import Odd
from doma.columns.fetch import Fetcher
from doma.core.errors import CorruptFile

_FILE, _DIRECTORY = struct.Struct(">4sii"), struct.Struct(">hIIii")
_KEY = struct.Struct(">ihiIhh")
_PLACES = struct.Struct(">ii"), struct.Struct(">qq")
_SEEKS = struct.Struct(">iii"), struct.Struct(">qqq")
_HEAD = 1024
"""Bytes that hold the header of a file and, nearly always, its top directory."""
_MOST = 16 << 20
"""Bytes of the list of keys."""


@dataclass(frozen=True, slots=True)
class Key:
    """An object of the directory."""

    name: str
    kind: str
    """Its class."""
    cycle: int
    start: int
    """First byte, of its header."""
    stored: int
    """Bytes with the header, compressed."""
    header: int
    size: int
    """Bytes uncompressed, without the header."""


def listing(fetcher: Fetcher) -> dict[str, Key]:
    """The newest object of each name.

    Raises:
        Odd: there is more to it.
    """
    try:
        return _listing(fetcher)
    except (struct.error, IndexError, ValueError) as e:
        raise Odd from e


def loaded(fetcher: Fetcher, key: Key) -> bytes:
    """An object, uncompressed. Raises Odd: it is not whole, or packed in a way for uproot."""
    body = _read(fetcher, key.start, key.stored)[key.header :]
    if len(body) == key.size:
        return bytes(body)
    try:
        return bytes(unzipped(body, key.size))
    except CorruptFile as e:
        raise Odd from e


def _listing(fetcher: Fetcher) -> dict[str, Key]:
    head = _read(fetcher, 0, min(_HEAD, fetcher.data.size))
    magic, version, begin = _FILE.unpack_from(head)
    # Behind the ends of file and of free list, whose width depends on the version, and two numbers.
    (name_size,) = struct.unpack_from(">i", head, 12 + (16 if version >= 1_000_000 else 8) + 8)
    at = begin + name_size
    if magic != b"root" or begin < 0 or not 0 < name_size < _HEAD:
        raise Odd
    kind, _, _, size, _ = _DIRECTORY.unpack_from(head, at)
    _, _, keys = _SEEKS[kind > 1000].unpack_from(head, at + _DIRECTORY.size)
    if not 0 < size <= _MOST:
        raise Odd
    data = _read(fetcher, keys, size)
    (_, at) = _key(data, 0)
    (count,) = struct.unpack_from(">i", data, at)
    at += 4
    found: dict[str, Key] = {}
    for _ in range(count):
        key, at = _key(data, at)
        held = found.setdefault(key.name, key)
        if key.kind.startswith("TDirectory") or "/" in key.name or ";" in key.name or held.kind != key.kind:
            raise Odd
        if key.cycle > held.cycle:
            found[key.name] = key
    return found


def _key(data: memoryview, at: int) -> tuple[Key, int]:
    """A key, and where it ends."""
    stored, version, size, _, header, cycle = _KEY.unpack_from(data, at)
    begin, at = at, at + _KEY.size
    places = _PLACES[version > 1000]
    start, _ = places.unpack_from(data, at)
    words, at = [], at + places.size
    for _ in range(3):
        word, at = _word(data, at)
        words.append(word)
    if at != begin + header or not 0 <= header <= stored or size < 0 or start < 0:
        raise Odd
    return Key(words[1], words[0], cycle, start, stored, header, size), at


def _word(data: memoryview, at: int) -> tuple[str, int]:
    size, at = data[at], at + 1
    if size == 255:
        size, at = struct.unpack_from(">i", data, at)[0], at + 4
    if not 0 <= size <= len(data) - at:
        raise Odd
    return bytes(data[at : at + size]).decode(), at + size


def _read(fetcher: Fetcher, start: int, size: int) -> memoryview:
    if start < 0 or start + size > fetcher.data.size:
        raise Odd
    return fetcher.read([(start, start + size)])[0]
