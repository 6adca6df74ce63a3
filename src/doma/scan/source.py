"""What a scan reads from: one file as rows in groups, whatever its format.

A source belongs to one query at a time. It reads through the file object it is given and counts nothing
itself: the file object does. Engine errors become :class:`CorruptFile` with the file's name.

Source: scan.md §4 and §5.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO, Protocol

import pyarrow as pa

from doma.core.errors import CorruptFile
from doma.scan import parquet, root
from doma.scan.groups import Group


class Source(Protocol):
    """One file, open."""

    @property
    def schema(self) -> pa.Schema: ...

    @property
    def rows(self) -> int: ...

    def groups(self, columns: Sequence[str]) -> list[Group]:
        """Ranges of rows in file order that are cheap to read whole for these columns."""

    def size(self, group: Group, columns: Sequence[str]) -> int:
        """Bytes in memory, estimated from the file's metadata, on the high side."""

    def read(self, group: Group, columns: Sequence[str]) -> pa.RecordBatch:
        """A whole group; every column in one piece."""

    def stream(self, group: Group, columns: Sequence[str], rows: int) -> Iterator[pa.RecordBatch]:
        """A group in slices of at most ``rows`` rows."""

    def bounds(self, group: Group, column: str) -> tuple[int, int] | None:
        """Least and greatest value of an integer column, if the file says so reliably; nulls apart."""

    def close(self) -> None:
        """Give up the file. Idempotent."""


@dataclass(frozen=True, slots=True)
class Named:
    """A file object and what to call it in messages."""

    name: str
    file: BinaryIO
    size: int


def open_source(named: Named, tree: str | None) -> Source:
    """The source for a file, chosen by its first bytes.

    Args:
        named: The open file.
        tree: Name of the tree or RNTuple; None: the only one with entries.

    Raises:
        CorruptFile: empty, neither Parquet nor ROOT, or broken.
        BadQuery, UnknownColumn: several trees, or none of that name.
    """
    named.file.seek(0)
    head = named.file.read(4)
    named.file.seek(0)
    if not head:
        raise CorruptFile(f"{named.name}: the file is empty (0 bytes); upload it again", path=named.name)
    if head == b"PAR1":
        return parquet.ParquetSource(named.name, named.file)
    if head == b"root":
        return root.open_root(named.name, named.file, tree)
    raise CorruptFile(
        f"{named.name}: neither a Parquet nor a ROOT file (it begins with {bytes(head)!r})", path=named.name
    )
