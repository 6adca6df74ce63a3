"""Histograms and other objects of a ROOT file, and what only uproot's own reading tells: type names."""

from collections.abc import Iterator
from contextlib import contextmanager

import uproot

from doma.columns.branches import Branches
from doma.columns.fetch import FileLike
from doma.columns.raw_filter import Filter
from doma.columns.remote import Bytes
from doma.columns.source_root import TREES
from doma.columns.source_uproot import BROKEN
from doma.core.errors import BadQuery, CorruptFile, DomaError

FOLDERS = ("TDirectory", "TDirectoryFile")


class RootFile:
    """A ROOT file's objects."""

    def __init__(self, data: Bytes) -> None:
        if data.size < 4 or data.read(0, 4) != b"root":
            raise BadQuery(f"{data.url}: it is no ROOT file, and has no histograms and no type names")
        self._url = data.url
        with self._guarded():
            self.directory = uproot.open(FileLike(data), object_cache=None, array_cache=None)

    def objects(self, wanted: Filter) -> tuple[str, ...]:
        """Paths of objects that pass; of trees and folders only those named exactly.

        A tree by its exact name is not left out, so that its copy is refused with a reason.
        """
        with self._guarded():
            classes = dict(self.directory.iterclassnames(cycle=False))
        return tuple(
            path
            for path, kind in classes.items()
            if wanted(path) and (path in wanted.exact or kind not in (*TREES, *FOLDERS))
        )

    def type_names(self, tree: str) -> dict[str, str]:
        """C++ type by branch, as uproot says it."""
        with self._guarded():
            found = self.directory[tree]
            if hasattr(found, "branches"):
                branches = Branches(tree, found)
                return {n: branches.find(n).typename for n in branches.names}
            return {f.name: f.typename for f in found.fields}

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except DomaError:
            raise
        except (*BROKEN, RecursionError) as e:
            text = " ".join(str(e).split())[:300] or type(e).__name__
            raise CorruptFile(f"{self._url}: not readable as ROOT: {text}") from e
