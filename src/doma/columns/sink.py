"""Results: columns in, a file out, in any of the formats that are offered.

``parquet`` is one table; ``root-file`` holds TTrees and ``root-rntuple`` RNTuples, by name, and both hold
histograms. A format's module is imported when its first result is opened.

Source: servicex.md §9 of the project's contracts.
"""

from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

from doma.core.errors import BadQuery

if TYPE_CHECKING:
    from doma.columns.evaluate import Table

FORMATS = ("parquet", "root-file", "root-rntuple")

TREE = "servicex"
"""The output tree of a query that names none."""


class Sink(Protocol):
    """A result being written; leaving its context by an error, or before it is closed, removes the file."""

    rows: int
    """Rows so far, of all trees."""
    trees: bool
    """Whether trees are kept apart by name; without that, all rows follow each other in one table."""

    def write(self, table: "Table", tree: str = TREE) -> None:
        """Append rows to an output tree; its first table, which may have no rows, fixes names and types.

        Raises:
            BadQuery: a column that the format cannot hold, or that differs from the tree's, named.
            StorageFull, StorageUnavailable.
        """

    def copy(self, path: str, thing: Any) -> None:
        """Store a histogram under its path, byte for byte; ``thing`` is uproot's directory of the input.

        Raises:
            BadQuery: the format, or this kind of object, does not allow it.
        """

    def close(self) -> int:
        """Finish and make durable; the size in bytes."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def open_sink(path: Path, format_: str) -> Sink:
    """A result file to be made; it must not be read before it is closed. Raises BadQuery: unknown format."""
    match format_:
        case "parquet":
            from doma.columns.sink_parquet import ParquetSink

            return ParquetSink(path)
        case "root-file":
            from doma.columns.sink_tree import TreeSink

            return TreeSink(path)
        case "root-rntuple":
            from doma.columns.sink_ntuple import NtupleSink

            return NtupleSink(path)
        case _:
            raise BadQuery(f"result-format: {format_[:40]!r} is not offered; there is {', '.join(FORMATS)}")
