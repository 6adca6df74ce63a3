"""The branches of a TTree as uproot shows it: by name, by ``parent/child``, and joined where they are split.

Names are not unique: of two with one name the upper one, and then the first, has it; the other is called by
its path. A branch that is nothing but its branches is a record of them.

Source: ``HasBranches.__getitem__`` of uproot, whose ``arrays`` by filter confuses branches of one name.
"""

from collections.abc import Iterator
from typing import Any

import awkward as ak
import uproot

from doma.columns.source import Columns
from doma.core.errors import BadQuery

Grouped = uproot.interpretation.grouped.AsGrouped
Unknown = uproot.interpretation.identify.UnknownInterpretation


class Branches:
    """What the names of a tree mean."""

    def __init__(self, place: str, tree: Any) -> None:
        self._place, self._tree = place, tree
        self._paths: dict[str, Any] = {}
        for path, branch in tree.iteritems(recursive=True):
            self._paths.setdefault(path, branch)
        self._named: dict[str, Any] = {}
        self._name(tree)
        self.names = tuple(
            dict.fromkeys(b.name if self._named[b.name] is b else p for p, b in self._paths.items())
        )

    def _name(self, parent: Any) -> None:
        for branch in parent.branches:
            self._named.setdefault(branch.name, branch)
        for branch in parent.branches:
            self._name(branch)

    def find(self, name: str) -> Any:
        """The branch of a name or of a path, which may begin with ``/``; None: there is none."""
        found = self._named.get(name, self._paths.get(name.removeprefix("/")))
        return self._tree.get(name) if found is None and "/" in name else found

    def path(self, name: str) -> str | None:
        """From the top to a branch, whatever it is called; None: there is none."""
        branch = self.find(name)
        return None if branch is None else self._path(branch)

    def _path(self, branch: Any) -> str:
        parts = []
        while branch is not self._tree:
            parts.append(branch.name)
            branch = branch.parent
        return "/".join(reversed(parts))

    def arrays(self, names: tuple[str, ...], start: int, stop: int) -> Columns:
        """Entries of branches.

        Raises:
            BadQuery: a branch, or a part of it, of a type that uproot cannot read.
        """
        wanted = {n: self.find(n) for n in names}
        parts = {
            n: {self._path(b): b for b in self._parts(wanted[n])} for n in names if wanted[n] is not None
        }
        paths = dict.fromkeys(f"/{p}" for found in parts.values() for p in found)
        arrays = self._tree.arrays(list(paths), entry_start=start, entry_stop=stop, how=dict)
        return {n: self._joined(wanted[n], arrays) for n in parts}

    def _joined(self, branch: Any, arrays: Columns) -> ak.Array:
        if not isinstance(branch.interpretation, Grouped):
            return arrays[f"/{self._path(branch)}"]
        return ak.zip({b.name: self._joined(b, arrays) for b in branch.branches}, depth_limit=1)

    def sizes(self, names: tuple[str, ...]) -> tuple[int, int]:
        """Bytes of branches, compressed and not."""
        found = [b for n in names if (b := self.find(n)) is not None]
        return sum(b.compressed_bytes for b in found), sum(b.uncompressed_bytes for b in found)

    def _parts(self, branch: Any) -> Iterator[Any]:
        """The branches that hold values."""
        if isinstance(branch.interpretation, Unknown):
            names = ", ".join(b.name for b in branch.branches[:8])
            raise BadQuery(
                f"{self._place}: the branch {branch.name!r} has a type that cannot be read as a column"
                f"{names and f'; those in it have their own names: {names}'}"
            )
        if not isinstance(branch.interpretation, Grouped):
            yield branch
            return
        for inner in branch.branches:
            yield from self._parts(inner)
