"""ROOT files as a source: TTree and RNTuple through uproot, shown with Arrow types.

Counters keep their width and sign, jagged branches are lists, split sub-branches stand beside the others.
What has no Arrow type is not shown. Types are worked out from metadata, never by reading entries.

Source: scan.md §5.
"""

import struct
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import cramjam
import pyarrow as pa
import uproot

from doma.core.errors import BadQuery, CorruptFile, DomaError, LimitExceeded
from doma.scan.columnar import arrow_array, type_of_cpp, type_of_form
from doma.scan.groups import Group, batch_of
from doma.scan.names import unknown

_CLASSES = ("TTree", "TNtuple", "TNtupleD", "ROOT::RNTuple", "ROOT::Experimental::RNTuple")
_MIN_ROWS = 16 << 10
_MAX_BASKET = 256 << 20
BROKEN = (
    ValueError, OSError, KeyError, IndexError, TypeError, AttributeError, NotImplementedError, AssertionError,
    RuntimeError, OverflowError, EOFError, UnicodeDecodeError, struct.error, zlib.error,
    LookupError, ArithmeticError, MemoryError, cramjam.DecompressionError,
    uproot.deserialization.DeserializationError, uproot.interpretation.objects.CannotBeAwkward,
)  # fmt: skip
"""What uproot raises on damaged bytes: it has no family of its own."""


def open_root(name: str, file: BinaryIO, tree: str | None) -> "RootSource":
    """The source of one tree or RNTuple of a ROOT file.

    Raises:
        CorruptFile: not readable as ROOT.
        BadQuery: several trees have entries; the text lists them.
        UnknownColumn: no tree of that name; the text has the nearest.
    """
    try:
        directory = uproot.open(file)
        classes = directory.classnames(recursive=True, cycle=False)
        names = [key for key, kind in classes.items() if kind in _CLASSES]
        if tree is None:
            sizes = {key: int(directory[key].num_entries) for key in names}
            filled = [key for key, rows in sizes.items() if rows] or names
        else:
            filled = [tree] if tree in names else []
    except BROKEN as e:
        raise broken(name, e) from e
    if tree is not None and not filled:
        raise unknown(tree, names, name, "tree")
    if not filled:
        raise BadQuery(f"{name}: the file has no tree and no RNTuple; scan another file", path=name)
    if len(filled) > 1:
        raise BadQuery(
            f"{name}: several trees have entries: {', '.join(filled[:20])}; choose one by the option 'tree'",
            path=name,
            trees=filled[:20],
        )
    try:
        found = directory[filled[0]]
        if isinstance(found, uproot.TTree):
            return TreeSource(name, file, directory, found)
        return NTupleSource(name, file, directory, found)
    except BROKEN as e:
        raise broken(name, e) from e


class RootSource(ABC):
    """What trees and RNTuples share: columns read one by one over entry ranges."""

    def __init__(
        self, name: str, file: BinaryIO, directory: Any, types: dict[str, pa.DataType], rows: int
    ) -> None:
        self.name = name
        self.rows = rows
        self.schema = pa.schema([pa.field(column, kind) for column, kind in types.items()])
        self._file = file
        self._directory = directory

    def groups(self, columns: Sequence[str]) -> list[Group]:
        try:
            borders = self._borders(columns)
        except BROKEN as e:
            raise broken(self.name, e) from e
        out: list[Group] = []
        start = 0
        for stop in (*borders, self.rows):
            if stop - start >= _MIN_ROWS or (stop == self.rows and stop > start):
                out.append(Group(len(out), start, stop))
                start = stop
        return out

    def size(self, group: Group, columns: Sequence[str]) -> int:
        share = group.rows / max(self.rows, 1)
        return int(sum(self._bytes(column) for column in columns) * share * 1.2)

    def read(self, group: Group, columns: Sequence[str]) -> pa.RecordBatch:
        found = {column: self._column(column, group.start, group.stop) for column in columns}
        return batch_of(found, columns, group.rows)

    def stream(self, group: Group, columns: Sequence[str], rows: int) -> Iterator[pa.RecordBatch]:
        for start in range(group.start, group.stop, rows):
            yield self.read(Group(group.index, start, min(start + rows, group.stop)), columns)

    def bounds(self, group: Group, column: str) -> tuple[int, int] | None:
        return None

    def close(self) -> None:
        self._directory.close()
        self._file.close()

    def _column(self, column: str, start: int, stop: int) -> pa.Array:
        try:
            array = arrow_array(self._layout(column, start, stop), self.schema.field(column).type)
        except DomaError:
            raise
        except (*BROKEN, pa.ArrowException) as e:
            raise broken(self.name, e, column, start) from e
        if len(array) != stop - start:
            lost = ValueError(f"{len(array)} entries where {stop - start} were announced")
            raise broken(self.name, lost, column, start)
        return array

    @abstractmethod
    def _borders(self, columns: Sequence[str]) -> Sequence[int]:
        """Entry numbers at which the file's own clusters begin, ascending."""

    @abstractmethod
    def _bytes(self, column: str) -> int:
        """About the bytes that a whole column takes in memory."""

    @abstractmethod
    def _layout(self, column: str, start: int, stop: int) -> Any:
        """Awkward layout of the entries ``[start, stop)`` of a column."""


class TreeSource(RootSource):
    """A TTree."""

    def __init__(self, name: str, file: BinaryIO, directory: Any, tree: Any) -> None:
        self._tree = tree
        self._branches: dict[str, Any] = {}
        types: dict[str, pa.DataType] = {}
        for path, branch in tree.iteritems(recursive=True):
            if branch.branches:
                continue
            column = branch.name if branch.name not in types else path
            kind = _branch_type(branch)
            if kind is not None and column not in types:
                types[column], self._branches[column] = kind, branch
        super().__init__(name, file, directory, types, int(tree.num_entries))

    def _borders(self, columns: Sequence[str]) -> Sequence[int]:
        chosen = [self._branches[column] for column in columns]
        if not chosen:
            return []
        common = set(chosen[0].entry_offsets)
        for branch in chosen[1:]:
            common &= set(branch.entry_offsets)
        return sorted(int(n) for n in common if 0 < n < self.rows)

    def _bytes(self, column: str) -> int:
        branch = self._branches[column]
        return int(branch.uncompressed_bytes) + 8 * self.rows

    def _layout(self, column: str, start: int, stop: int) -> Any:
        branch = self._branches[column]
        mean = int(branch.uncompressed_bytes) // max(int(branch.num_baskets), 1)
        if mean > _MAX_BASKET:
            raise LimitExceeded(
                f"{self.name}: baskets of {column!r} have {mean} bytes, at most {_MAX_BASKET} fit; rewrite it"
            )
        # Without the cache of the file: it would keep what was read beyond the bound of the query.
        return branch.array(entry_start=start, entry_stop=stop, array_cache=None, library="ak").layout


class NTupleSource(RootSource):
    """An RNTuple: its top-level fields."""

    def __init__(self, name: str, file: BinaryIO, directory: Any, ntuple: Any) -> None:
        self._ntuple = ntuple
        self._fields: dict[str, Any] = {}
        types: dict[str, pa.DataType] = {}
        # Not by keys() or to_akform(): they take seconds to minutes on wide ntuples.
        for field in ntuple.fields:
            kind = None if field.name.startswith("_") else type_of_cpp(field.typename)
            if kind is not None:
                types[field.name], self._fields[field.name] = kind, field
        super().__init__(name, file, directory, types, int(ntuple.num_entries))

    def _borders(self, columns: Sequence[str]) -> Sequence[int]:
        return [int(cluster.num_first_entry) for cluster in self._ntuple.cluster_summaries]

    def _bytes(self, column: str) -> int:
        return 64 * self.rows

    def _layout(self, column: str, start: int, stop: int) -> Any:
        return self._fields[column].array(entry_start=start, entry_stop=stop, array_cache=None).layout


def _branch_type(branch: Any) -> pa.DataType | None:
    interpretation = branch.interpretation
    if isinstance(interpretation, uproot.interpretation.identify.UnknownInterpretation):
        return None
    try:
        return type_of_form(interpretation.awkward_form(branch.file))
    except BROKEN:
        return None  # uproot cannot show it as columns: not part of the schema


def broken(name: str, error: BaseException, column: str | None = None, entry: int | None = None) -> DomaError:
    """The error for damaged bytes, naming the file and, if known, the column and entry."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, DomaError):
            return cause
        cause = cause.__cause__
    where = "" if column is None else f", column {column!r} from entry {entry}"
    text = " ".join(str(error).split())[:200]
    facts: dict[str, Any] = {"path": name} if column is None else {"path": name, "column": column}
    return CorruptFile(f"{name}{where}: cannot be read as ROOT ({text}); upload the file again", **facts)
