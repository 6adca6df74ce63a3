"""Plain TTrees straight from their bytes: names of thousands of branches in milliseconds, baskets by branch.

*Plain* is a branch with one leaf of numbers, one or a varying number of them per entry, or of vectors of
numbers: what NanoAOD and flat ntuples are made of, and most of what ATLAS and podio write. Everything else,
and whatever looks odd here, is left to uproot, which knows the rest and says what is broken; so this module
refuses (None, :class:`Odd`) rather than guesses.

Source: ROOT's streamed forms of TTree (versions 18-20), TBranch (10-13), TBranchElement (10), TLeaf (2) and
TObjArray (3), as written in ``TBufferFile`` and in the streamer infos of every file; ``EDataType``.
"""

import re
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from doma.columns.cursor import Cursor, Odd

Ints = npt.NDArray[np.int64]
Stored = bytes

_NEW, _CLASS = 0xFFFF_FFFF, 0x8000_0000
_MAP = 2
"""What ROOT adds to positions in its references."""
_U4, _PAIR = struct.Struct(">I"), struct.Struct(">ii")
_TREE = struct.Struct(">qqqqqdiiii")
_BRANCH, _BRANCH_TAIL = struct.Struct(">iiiiq"), struct.Struct(">iIiq")
_LEAF = struct.Struct(">iii??")
_KEYED, _BASKET, _NOTHING = struct.Struct(">ihiIhh"), struct.Struct(">Hiiii"), bytes(4)
_BASKET_SIZE = _BASKET.size + 1
_KINDS = {
    b"TLeafO": ("?", "?"), b"TLeafB": ("i1", "u1"), b"TLeafS": (">i2", ">u2"), b"TLeafI": (">i4", ">u4"),
    b"TLeafL": (">i8", ">u8"), b"TLeafF": (">f4", ">f4"), b"TLeafD": (">f8", ">f8"),
}  # fmt: skip

_FLAT, _ELEMENT = b"TBranch", b"TBranchElement"
_ELEMENT_TYPES = {
    1: "i1", 2: ">i2", 3: ">i4", 4: ">i8", 5: ">f4", 8: ">f8", 11: "u1", 12: ">u2", 13: ">u4", 14: ">u8",
    16: ">i8", 17: ">u8", 18: "?",
}  # fmt: skip
"""Of leaves, without the bits of a TObject (15), behind which more may stand."""
_OBJECT_TYPE = -1
_VECTORS = {
    "vector<bool>": "?", "vector<char>": "i1", "vector<unsigned char>": "u1", "vector<short>": ">i2",
    "vector<unsigned short>": ">u2", "vector<int>": ">i4", "vector<unsigned int>": ">u4",
    "vector<long>": ">i8", "vector<unsigned long>": ">u8", "vector<Long64_t>": ">i8",
    "vector<ULong64_t>": ">u8", "vector<float>": ">f4", "vector<double>": ">f8",
}  # fmt: skip
VECTOR = 10
"""Bytes before the members of a vector: byte count, version, number of members."""
_DEEP = 20
_FIXED = re.compile(r"\[[1-9][0-9]*\]")


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
    """(baskets,) First byte; 0: the basket lies in the tree."""
    sizes: Ints
    """(baskets,) Bytes, compressed, with header; 0 of those in the tree."""
    bytes: int
    """All values, uncompressed."""
    header: int = 0
    """Bytes before the values of each entry."""
    inside: tuple[Stored, ...] = ()
    """The last baskets, which lie in the tree, as they would be stored by themselves."""


@dataclass(eq=False, slots=True)
class _Node:
    """A branch among the others."""

    name: str
    path: str
    at: int
    """Where it begins."""
    is_element: bool
    inner: "list[_Node]"
    """Its branches."""


class PlainTree:
    """A TTree: its branches by name, of which some are plain.

    Branches within branches have the names that :mod:`doma.columns.branches` gives.

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
        c = Cursor(self._data, 0)
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
        self._paths: dict[str, _Node] = {}
        tops = self._nodes(self._objects(c), "", 0)
        self.nested = any(node.inner for node in tops)
        self._named: dict[str, _Node] = {}
        self._name(tops)
        names = (n.name if self._named[n.name] is n else p for p, n in self._paths.items())
        self.names = tuple(dict.fromkeys(names))
        if self.entries < 0:
            raise Odd

    def path(self, name: str) -> str | None:
        """From the top to a branch, by its name or by its path; None: there is none."""
        node = self._find(name)
        return None if node is None else node.path

    def branch(self, name: str) -> Branch:
        """A branch by its name or its path. Raises Odd: it is not plain, or not there."""
        node = self._find(name)
        if node is None or node.inner:
            raise Odd
        try:
            return self._branch(name, node)
        except (struct.error, IndexError, ValueError) as e:
            raise Odd from e

    def _find(self, name: str) -> _Node | None:
        return self._named.get(name) or self._paths.get(name.removeprefix("/"))

    def _nodes(self, objects: list[tuple[int, bytes]], above: str, depth: int) -> list[_Node]:
        """Branches with those in them; their paths are noted in this order."""
        found = []
        for at, class_ in objects:
            if class_ not in (_FLAT, _ELEMENT) or depth > _DEEP:
                raise Odd
            is_element = class_ == _ELEMENT
            name, inner = self._glance(at, is_element)
            if "/" in name:
                raise Odd
            path = above + name
            node = _Node(name, path, at, is_element, [])
            self._paths.setdefault(path, node)
            node.inner = self._nodes(inner, f"{path}/", depth + 1)
            found.append(node)
        return found

    def _name(self, nodes: list[_Node]) -> None:
        """The first of the uppermost branches has a name that several have."""
        for node in nodes:
            self._named.setdefault(node.name, node)
        for node in nodes:
            self._name(node.inner)

    def _glance(self, at: int, is_element: bool) -> tuple[str, list[tuple[int, bytes]]]:
        """The name of a branch, and the branches in it."""
        c = Cursor(self._data, at)
        if is_element:
            c.version()
        version, end = c.version()
        name, _ = c.named()
        _head(c, version)
        inner = self._objects(c)
        if c.at > end:
            raise Odd
        return name, inner

    def _branch(self, name: str, node: _Node) -> Branch:
        c = Cursor(self._data, node.at)
        if node.is_element and c.version()[0] != 10:
            raise Odd
        version, last = c.version()
        c.named()
        written, most, entries, total = _head(c, version)
        c.skip_sized()
        leaves = self._objects(c)
        places = self._objects(c, gaps=True)
        if len(leaves) != 1 or c.at > last:
            raise Odd
        stop = c.at
        sizes = c.array(">i4", most)
        borders = c.array(">i8", most)
        seeks = c.array(">i8", most)
        none = np.flatnonzero(seeks == 0)
        count = min(written, int(none[0]) if len(none) else most)
        c.at = last
        kind, jagged, header = self._values(c, node, *leaves[0])
        if count < most and count >= 0:
            borders = borders[: count + 1] if count else np.zeros(1, np.int64)
        elif borders[-1:].sum() != entries:
            raise Odd
        inside: list[Stored] = []
        if borders[-1] != entries:
            stops = [at for at, _ in places[1:]] + [stop]
            inside = [self._basket(*place, end) for place, end in zip(places, stops, strict=True)]
        more = np.array([_BASKET.unpack_from(b, _KEYED.unpack_from(b)[4] - _BASKET_SIZE)[3] for b in inside])
        borders = np.concatenate([borders, borders[-1] + np.cumsum(more, dtype=np.int64)])
        steps = np.diff(borders)
        if borders[0] or borders[-1] != entries or entries != self.entries or (steps < 0).any():
            raise Odd
        if count and int(sizes[:count].min()) <= 0:
            raise Odd
        seeks = np.concatenate([seeks[:count], np.zeros(len(inside), np.int64)])
        sizes = np.concatenate([sizes[:count], np.zeros(len(inside), np.int64)])
        total = max(total, sum(map(len, inside)))  # of what was never flushed the branch does not count
        return Branch(name, kind, jagged, borders, seeks, sizes, total, header, tuple(inside))

    def _basket(self, at: int, class_: bytes, end: int) -> Stored:
        """A basket that lies in the tree, with its offsets behind its values as in one that does not."""
        if class_ != b"TBasket":
            raise Odd
        size, version, _, date, header, cycle = _KEYED.unpack_from(self._data, at)
        begin = at + header
        _, _, width, entries, last = _BASKET.unpack_from(self._data, begin - _BASKET_SIZE)
        if size > header or header < _KEYED.size + _BASKET_SIZE or entries < 0 or last < header:
            raise Odd
        listed = 4 + 4 * entries if width * entries + header != last else 0
        # Behind the offsets the key stands once more.
        first = begin + listed + header
        if first + last - header > end:
            raise Odd
        offsets = self._data[begin : begin + listed] + bytes(4 if listed else 0)
        values = self._data[first : first + last - header]
        whole = len(values) + len(offsets)
        key = _KEYED.pack(header + whole, version, whole, date, header, cycle)
        return key + self._data[at + len(key) : at + header] + values + offsets

    def _values(self, c: Cursor, node: _Node, at: int, class_: bytes) -> tuple[np.dtype[Any], bool, int]:
        """Type of the values, whether there are lists of them, and bytes before each list."""
        if not node.is_element:
            return *self._leaf(at, class_), 0
        class_name = c.string()
        if class_ != b"TLeafElement":
            raise Odd
        leaf = Cursor(self._data, at)
        leaf.version()
        version, end = leaf.version()
        title = leaf.named()[1]
        length = leaf.take(_LEAF)[0]
        is_counted = leaf.take(_U4)[0] != 0
        leaf.at = end
        type_ = leaf.take(_PAIR)[1]
        if version != 2 or length != 1 or _FIXED.search(title):
            raise Odd
        if type_ in _ELEMENT_TYPES:
            return np.dtype(_ELEMENT_TYPES[type_]), is_counted, 0
        # What a vector within an object looks like, only the streamer infos tell.
        if type_ != _OBJECT_TYPE or is_counted or "/" in node.path or class_name not in _VECTORS:
            raise Odd
        return np.dtype(_VECTORS[class_name]), True, VECTOR

    def _leaf(self, at: int, class_: bytes) -> tuple[np.dtype[Any], bool]:
        if class_ not in _KINDS:
            raise Odd
        c = Cursor(self._data, at)
        c.version()
        if c.version()[0] != 2:
            raise Odd
        title = c.named()[1]
        length, width, _, _, unsigned = c.take(_LEAF)
        kind = np.dtype(_KINDS[class_][unsigned])
        if length != 1 or _FIXED.search(title) or width != kind.itemsize:
            raise Odd
        return kind, c.take(_U4)[0] != 0

    def _objects(self, c: Cursor, gaps: bool = False) -> list[tuple[int, bytes]]:
        """Where the members of a TObjArray begin, with their classes; the cursor goes behind the array."""
        end = c.sized()
        c.version()
        c.object()
        c.string()
        found = []
        for _ in range(c.take(_PAIR)[0]):
            if gaps and self._data[c.at : c.at + 4] == _NOTHING:
                c.at += 4
                continue
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


def _head(c: Cursor, version: int) -> tuple[int, int, int, int]:
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
