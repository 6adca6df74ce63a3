"""Results as RNTuples: nested lists, records and missing values stay what they are.

Source: servicex.md §9 of the project's contracts.
"""

from typing import Any

import awkward as ak
from awkward import contents, types

from doma.columns.sink_root import RootOutput, RootSink
from doma.columns.sink_tree import UNNAMED
from doma.core.errors import BadQuery


class NtupleSink(RootSink):
    """A ROOT file with RNTuples."""

    kind = "RNTuple"

    def _table(self, tree: str, kinds: dict[str, types.Type]) -> "_Ntuple":
        return _Ntuple(self._root, tree, kinds)


class _Ntuple(RootOutput):
    def __init__(self, root: Any, tree: str, kinds: dict[str, types.Type]) -> None:
        super().__init__(tree, NtupleSink.kind, kinds)
        names = [n or UNNAMED for n in kinds]
        if len(set(names)) < len(names):
            raise BadQuery(f"query: the column without a name would be a second {UNNAMED!r}; name it")
        form = ak.forms.RecordForm([ak.forms.from_type(k) for k in kinds.values()], names)
        try:
            self._to = root.mkrntuple(tree, form)
        except (TypeError, ValueError, NotImplementedError) as e:
            raise BadQuery(f"query: the columns of {tree!r} do not fit into an RNTuple: {e}") from e

    def _write(self, columns: dict[str, ak.Array]) -> None:
        names = [n or UNNAMED for n in columns]
        self._to.extend(ak.Array(contents.RecordArray([c.layout for c in columns.values()], names)))
