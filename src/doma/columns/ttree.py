"""Plain TTrees straight from their bytes: names of thousands of branches in milliseconds, baskets by branch.

*Plain* is a branch with one leaf of numbers, one or a varying number of them per entry: what NanoAOD and flat
ntuples are made of. Everything else, and whatever looks odd here, is left to uproot, which knows the rest and
says what is broken; so this module refuses (None, :class:`Odd`) rather than guesses.

Source: ROOT's streamed forms of TTree (versions 18-20), TBranch (10-13), TLeaf (2) and TObjArray (3), as
written in ``TBufferFile`` and in the streamer infos of every file.
"""

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]

_COUNT, _NEW, _CLASS = 0x4000_0000, 0xFFFF_FFFF, 0x8000_0000
_MAP = 2
"""What ROOT adds to positions in its references."""
_IS_REFERENCED = 1 << 4
_U4, _OBJECT, _PAIR = struct.Struct(">I"), struct.Struct(">HII"), struct.Struct(">ii")
_TREE = struct.Struct(">qqqqqdiiii")
_BRANCH, _BRANCH_TAIL = struct.Struct(">iiiiq"), struct.Struct(">iIiq")
_LEAF = struct.Struct(">iii??")
_KINDS = {
    b"TLeafO": ("?", "?"), b"TLeafB": ("i1", "u1"), b"TLeafS": (">i2", ">u2"), b"TLeafI": (">i4", ">u4"),
    b"TLeafL": (">i8", ">u8"), b"TLeafF": (">f4", ">f4"), b"TLeafD": (">f8", ">f8"),
}  # fmt: skip


class Odd(Exception):
    """Not one of the forms that are known here."""


@dataclass(frozen=True, slots=True)
class Branch:
    """A plain branch and where its baskets lie."""

    name: str
    kind: np.dtype[Any]
    """Of one value, as stored."""
    jagged: bool
    entries: Ints
    """(baskets + 1,) First entry of each basket, and the end."""
    seeks: Ints
    """(baskets,) First byte."""
    sizes: Ints
    """(baskets,) Bytes, compressed, with header."""
    bytes: int
    """All values, uncompressed."""


class PlainTree:
    """A TTree whose branches all are plain ``TBranch`` objects without sub-branches.

    Args:
        data: The streamed object, uncompressed.
        header: Bytes of its key, which references count from.

    Raises:
        Odd: there is more to it.
    """

    def __init__(self, data: bytes, header: int) -> None:
        self._data, self._header = data, header
        try:
            self._begin()
        except (struct.error, IndexError, ValueError) as e:
            raise Odd from e

    def _begin(self) -> None:
        c = _Cursor(self._data, 0)
        version = c.version()[0]
        if not 18 <= version <= 20:
            raise Odd
        for _ in range(4):  # TNamed, TAttLine, TAttFill, TAttMarker
            c.skip_sized()
        self.entries = int(c.take(_TREE)[0])
        ranges = c.take(_U4)[0] if version > 18 else 0
        c.at += 6 * 8
        if version > 18:
            c.at += 2 * (1 + 8 * ranges)
        if version > 19:
            c.skip_sized()
        self._places: dict[str, int] = {}
        for at, kind in self._objects(c):
            if kind != b"TBranch":
                raise Odd
            name = self._glance(at)
            if "." in name or "/" in name or name in self._places:
                raise Odd
            self._places[name] = at
        self.names = tuple(self._places)
        if self.entries < 0:
            raise Odd

    def branch(self, name: str) -> Branch:
        """A branch by its name. Raises Odd: it is not plain."""
        try:
            return self._branch(name, _Cursor(self._data, self._places[name]))
        except (struct.error, IndexError, ValueError) as e:
            raise Odd from e

    def _glance(self, at: int) -> str:
        """The name of a branch, once it is clear that it has no sub-branches."""
        c = _Cursor(self._data, at)
        version, _ = c.version()
        name, _ = c.named()
        _head(c, version)
        c.version()
        c.object()
        c.string()
        if c.take(_PAIR)[0]:
            raise Odd
        return name

    def _branch(self, name: str, c: "_Cursor") -> Branch:
        version, _ = c.version()
        c.named()
        written, most, entries, total = _head(c, version)
        c.skip_sized()
        leaves = list(self._objects(c))
        end = c.sized()
        c.version()
        c.object()
        c.string()
        c.take(_PAIR)
        # Baskets that lie in the tree itself are uproot's matter.
        if len(leaves) != 1 or any(self._data[c.at : end]):
            raise Odd
        c.at = end
        sizes = c.array(">i4", most)
        borders = c.array(">i8", most)
        seeks = c.array(">i8", most)
        none = np.flatnonzero(seeks == 0)
        count = min(written, int(none[0]) if len(none) else most)
        kind, jagged = self._leaf(*leaves[0])
        if count < most and count >= 0:
            borders = borders[: count + 1] if count else np.zeros(1, np.int64)
        elif borders[-1:].sum() != entries:
            raise Odd
        steps = np.diff(borders)
        if borders[0] or borders[-1] != entries or entries != self.entries or (steps < 0).any():
            raise Odd
        if count and int(sizes[:count].min()) <= 0:
            raise Odd
        return Branch(name, kind, jagged, borders, seeks[:count], sizes[:count], total)

    def _leaf(self, at: int, class_: bytes) -> tuple[np.dtype[Any], bool]:
        if class_ not in _KINDS:
            raise Odd
        c = _Cursor(self._data, at)
        c.version()
        if c.version()[0] != 2:
            raise Odd
        c.named()
        length, width, _, _, unsigned = c.take(_LEAF)
        kind = np.dtype(_KINDS[class_][unsigned])
        if length != 1 or width != kind.itemsize:
            raise Odd
        return kind, c.take(_U4)[0] != 0

    def _objects(self, c: "_Cursor") -> "list[tuple[int, bytes]]":
        """Where the members of a TObjArray begin, with their classes; the cursor goes behind the array."""
        end = c.sized()
        c.version()
        c.object()
        c.string()
        found = []
        for _ in range(c.take(_PAIR)[0]):
            stop = c.sized()
            (tag,) = c.take(_U4, 4)
            if tag == _NEW:
                class_ = c.word(c.at)
                begin = c.at + len(class_) + 1
            elif tag & _CLASS:
                place = (tag & ~_CLASS) - _MAP - self._header
                if place < 0 or _U4.unpack_from(self._data, place)[0] != _NEW:
                    raise Odd
                class_, begin = c.word(place + 4), c.at
            else:
                raise Odd
            found.append((begin, class_))
            c.at = stop
        if c.at != end:
            raise Odd
        return found


def _head(c: "_Cursor", version: int) -> tuple[int, int, int, int]:
    """Baskets written, slots for baskets, entries and bytes of a TBranch, whose lists follow."""
    if not 10 <= version <= 13:
        raise Odd
    c.skip_sized()  # TAttFill
    written = c.take(_BRANCH)[3]
    if version > 12:
        c.skip_sized()
    _, most, _, entries = c.take(_BRANCH_TAIL)
    if version > 10:
        first = int.from_bytes(c.data[c.at : c.at + 8], "big")
        c.at += 8
        if first:
            raise Odd
    total = int.from_bytes(c.data[c.at : c.at + 8], "big")
    c.at += 16
    return written, most, entries, total


class _Cursor:
    """A place in the bytes; it never goes beyond them."""

    __slots__ = ("at", "data")

    def __init__(self, data: bytes, at: int) -> None:
        self.data, self.at = data, at

    def take(self, form: struct.Struct, skip: int = 0) -> tuple[Any, ...]:
        self.at += skip
        found = form.unpack_from(self.data, self.at)
        self.at += form.size
        return found

    def sized(self) -> int:
        """The end of what begins here with a byte count, which is not passed."""
        (count,) = _U4.unpack_from(self.data, self.at)
        end = self.at + 4 + (count & ~_COUNT)
        if not count & _COUNT or count == _NEW or end > len(self.data):
            raise Odd
        return int(end)

    def skip_sized(self) -> None:
        self.at = self.sized()

    def version(self) -> tuple[int, int]:
        """Version and end of an object; the cursor stands behind both."""
        end = self.sized()
        self.at += 6
        return int.from_bytes(self.data[self.at - 2 : self.at], "big"), end

    def object(self) -> None:
        """Pass a TObject."""
        version, _, bits = self.take(_OBJECT)
        if version != 1:
            raise Odd
        self.at += 2 if bits & _IS_REFERENCED else 0

    def named(self) -> tuple[str, str]:
        """Name and title of a TNamed."""
        end = self.version()[1]
        self.object()
        found = self.string(), self.string()
        if self.at != end:
            raise Odd
        return found

    def string(self) -> str:
        size = self.data[self.at]
        self.at += 1
        if size == 255:
            (size,) = self.take(_U4)
        if self.at + size > len(self.data):
            raise Odd
        self.at += size
        return self.data[self.at - size : self.at].decode()

    def word(self, at: int) -> bytes:
        """A name that ends with a zero byte."""
        return self.data[at : self.data.index(b"\0", at, at + 256)]

    def array(self, kind: str, count: int) -> Ints:
        """Numbers behind one byte that says whether there are any."""
        self.at += 1
        found = np.frombuffer(self.data, kind, count, self.at).astype(np.int64)
        self.at += found.size * np.dtype(kind).itemsize
        return found
