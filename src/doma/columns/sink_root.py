"""Results as ROOT files: what TTrees and RNTuples share, written by uproot.

Source: servicex.md §9 of the project's contracts.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import awkward as ak
import uproot
from awkward import contents, types

from doma.columns.sink_file import FileSink, Output, same_names
from doma.columns.sink_types import Missing, Unfit, fit, storable
from doma.core.errors import BadQuery
from doma.core.text import line_of

LONGEST = 1000
"""Of a name in a ROOT file, in bytes."""


class RootSink(FileSink):
    """A ROOT file."""

    kind = ""
    """What its tables are, for messages."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._objects: set[str] = set()
        self._created: Any = None

    @property
    def _root(self) -> Any:
        if self._created is None:
            # A file of ours instead of a path: uproot would take ``:`` in it for the start of an object.
            self._created = uproot.create(self._file, compression=uproot.ZSTD(3))
        return self._created

    @abstractmethod
    def _table(self, tree: str, kinds: dict[str, types.Type]) -> Output:
        """A table of columns with storable types."""

    def _begin(self, tree: str, columns: Mapping[str, ak.Array]) -> Output:
        self._claim(tree)
        if not columns:
            raise BadQuery(f"query: the output tree {tree!r} has no columns; a {self.kind} needs one")
        kinds = {}
        for name, data in columns.items():
            with naming(name, self.kind):
                kinds[name] = storable(data.layout.form.type)
        return self._table(tree, kinds)

    def copy(self, path: str, thing: Any) -> None:
        self._claim(path)
        try:
            with self._writing():
                self._root.copy_from(thing, filter_name=lambda name: name == path)
        except (NotImplementedError, TypeError, ValueError, uproot.KeyInFileError) as e:
            raise BadQuery(
                f"copy_histograms: {path!r} cannot be copied: {line_of(str(e)) or type(e).__name__}"
            ) from e

    def _finish(self) -> None:
        self._root.close()

    def _claim(self, path: str) -> None:
        checked(path, "the output tree")
        parts = path.split("/")
        if not all(parts) or ";" in path or {".", ".."} & set(parts):
            raise BadQuery(f"query: {path[:80]!r} is no name for an object in a ROOT file")
        folders = {"/".join(parts[:n]) for n in range(1, len(parts))}
        if (
            path in self._objects
            or folders & self._objects
            or any(o.startswith(f"{path}/") for o in self._objects)
        ):
            raise BadQuery(f"query: {path!r} would be in the output twice; give one of them another name")
        self._objects.add(path)


class RootOutput(ABC):
    """A table being gathered; a subclass writes."""

    def __init__(self, tree: str, kind: str, kinds: dict[str, types.Type], nan: bool = False) -> None:
        self._tree, self._kind, self._kinds, self._nan = tree, kind, kinds, nan
        self._waiting: dict[str, list[contents.Content]] = {n: [] for n in kinds}

    def add(self, columns: Mapping[str, ak.Array]) -> int:
        same_names(self._tree, tuple(self._kinds), tuple(columns))
        held = 0
        for name, kind in self._kinds.items():
            with naming(name, self._kind):
                layout = fit(columns[name].layout, kind, self._nan)
            self._waiting[name].append(layout)
            held += layout.nbytes
        return held

    def flush(self) -> None:
        waiting, self._waiting = self._waiting, {n: [] for n in self._kinds}
        parts = {n: [p for p in w if len(p)] for n, w in waiting.items()}
        if any(parts.values()):
            self._write({n: ak.concatenate(p) if len(p) > 1 else ak.Array(p[0]) for n, p in parts.items()})

    @abstractmethod
    def _write(self, columns: dict[str, ak.Array]) -> None:
        """Append rows to the file; the columns are equally long."""


@contextmanager
def naming(name: str, kind: str) -> Iterator[None]:
    """Give what does not fit its column's name and a remedy."""
    try:
        checked(name, "the column")
        yield
    except Missing as e:
        raise BadQuery(
            f"query: the column {name!r} {e}, and no {kind} holds one there; "
            "select events with Where(… Count() > 0), or ask for parquet"
        ) from e
    except Unfit as e:
        raise BadQuery(f"query: the column {name!r} {e}") from e


def checked(name: str, what: str) -> None:
    """Raises BadQuery for a name that ROOT files cannot hold."""
    try:
        long = len(name.encode()) > LONGEST
    except UnicodeEncodeError:
        raise BadQuery(f"query: {what} {name[:80]!r} has a name that is no text") from None
    if long or any(ord(c) < 32 or ord(c) == 127 for c in name):
        raise BadQuery(
            f"query: {what} {name[:80]!r} has a name that ROOT cannot hold: "
            + (f"longer than {LONGEST} bytes" if long else "a control character")
        )
