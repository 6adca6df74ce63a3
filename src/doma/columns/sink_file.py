"""What all result files share: rows are gathered, trees come and go, the end is durable or leaves nothing."""

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

import awkward as ak

from doma.columns.sink import TREE
from doma.core.errors import BadQuery, StorageFull, StorageUnavailable

if TYPE_CHECKING:
    from doma.columns.evaluate import Table

GROUP = 16 << 20
"""Bytes gathered into one row group, cluster or basket …"""
ROWS = 100_000
"""… and its rows at most."""


class Output(Protocol):
    """One table of a result."""

    def add(self, columns: Mapping[str, ak.Array]) -> int:
        """Take rows, checked against the table's columns; the bytes they hold until the next flush."""

    def flush(self) -> None:
        """Write what was taken."""


class FileSink(ABC):
    """A result file; a subclass says what its tables are."""

    trees = True

    def __init__(self, path: Path) -> None:
        self._path = path
        self._outputs: dict[str, Output] = {}
        self._held = self._rows_held = 0
        self.rows = 0
        self._closed = False
        with self._writing():
            self._file = path.open("x+b")

    @abstractmethod
    def _begin(self, tree: str, columns: Mapping[str, ak.Array]) -> Output:
        """A table with the names and types of these columns."""

    @abstractmethod
    def _finish(self) -> None:
        """Write what makes the file whole."""

    @abstractmethod
    def copy(self, path: str, thing: Any) -> None:
        """Store a histogram."""

    def write(self, table: "Table", tree: str = TREE) -> None:
        name = tree if self.trees else ""
        size = len(next(iter(table.columns.values()))) if table.columns else 0
        with self._writing():
            output = self._outputs.get(name)
            if output is None:
                output = self._outputs[name] = self._begin(tree, table.columns)
            # A step that grew (combinations) is cut, so that a basket stays far below its 2 GiB.
            for start in range(0, max(size, 1), ROWS):
                part = {n: a[start : start + ROWS] for n, a in table.columns.items()}
                self._held += output.add(part)
                self._rows_held += min(ROWS, size - start)
                if self._held >= GROUP or self._rows_held >= ROWS:
                    self._flush()
        self.rows += size

    def close(self) -> int:
        with self._writing():
            self._flush()
            self._finish()
            self._file.close()
            with self._path.open("r+b") as file:  # uproot closes the one it was given
                os.fsync(file.fileno())
            self._closed = True
            return self._path.stat().st_size

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None or not self._closed:
            self._abandon()
            self._path.unlink(missing_ok=True)

    def _abandon(self) -> None:
        try:
            self._file.close()
        except OSError:
            # A full disk is told again when buffers are dropped; the file goes away in any case.
            self._file.raw.close()

    def _flush(self) -> None:
        for output in self._outputs.values():
            output.flush()
        self._held = self._rows_held = 0

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as e:
            raise _translated(self._path, e) from e


def same_names(tree: str, known: tuple[str, ...], names: tuple[str, ...]) -> None:
    """Raises BadQuery when rows come with other columns than the table has."""
    if set(known) != set(names):
        extra, lost = sorted(set(names) - set(known)), sorted(set(known) - set(names))
        listed = "; ".join([f"{n!r} is new" for n in extra[:3]] + [f"{n!r} is missing" for n in lost[:3]])
        raise BadQuery(f"query: what is written to {tree!r} must have the same columns every time: {listed}")


def _translated(path: Path, error: OSError) -> StorageFull | StorageUnavailable:
    if error.errno in {28, 122}:  # ENOSPC, EDQUOT
        return StorageFull(f"{path.name}: no space left for the result; free some and submit again")
    return StorageUnavailable(f"{path.name}: the result cannot be written: {error.strerror or error}")
