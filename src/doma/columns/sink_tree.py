"""Results as TTrees: flat and jagged branches; a jagged one has a counter, members of records their own.

A column ``jets`` of lists of records ``{pt, eta}`` becomes ``jets_pt[njets]`` and ``jets_eta[njets]``.
Missing floats are NaN; other missing values make the file fail.

Source: servicex.md §9 of the project's contracts.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import awkward as ak
import numpy as np
from awkward import types

from doma.columns.sink_root import RootOutput, RootSink, naming
from doma.columns.sink_types import Unfit, is_text, members
from doma.core.errors import BadQuery

UNNAMED = "branch"
"""The branch of a single array without a name."""


@dataclass(frozen=True, slots=True)
class Leaf:
    """A branch: the members that lead to it from a column, what it holds, the list that counts it."""

    column: str
    path: tuple[str, ...]
    kind: types.Type
    counted: str | None

    @property
    def branch(self) -> str:
        return "_".join((self.column or UNNAMED, *self.path))


class TreeSink(RootSink):
    """A ROOT file with TTrees."""

    kind = "TTree"

    def _table(self, tree: str, kinds: dict[str, types.Type]) -> "_Tree":
        return _Tree(self._root, tree, {n: _plain(k) for n, k in kinds.items()})


class _Tree(RootOutput):
    def __init__(self, root: Any, tree: str, kinds: dict[str, types.Type]) -> None:
        super().__init__(tree, TreeSink.kind, kinds, nan=True)
        leaves: dict[str, Leaf] = {}
        for name, kind in kinds.items():
            with naming(name, TreeSink.kind):
                for leaf in _leaves(Leaf(name, (), kind, None)):
                    if leaf.branch in leaves:
                        raise Unfit(f"would give a second branch {leaf.branch!r}; name it otherwise")
                    leaves[leaf.branch] = leaf
        counters: dict[str, str] = {}
        for leaf in leaves.values():
            if leaf.counted is not None and leaf.counted not in counters:
                counter = f"n{leaf.counted}"
                while counter in leaves or counter in counters.values():
                    counter += "_"
                counters[leaf.counted] = counter
        self._leaves = leaves
        of = {b: counters[leaf.counted] for b, leaf in leaves.items() if leaf.counted is not None}
        try:
            self._to = root.mktree(
                tree, {b: _spec(leaf.kind) for b, leaf in leaves.items()}, counter_name=of.__getitem__
            )
        except (TypeError, ValueError) as e:
            raise BadQuery(f"query: the columns of {tree!r} do not fit into a TTree: {e}") from e

    def _write(self, columns: dict[str, ak.Array]) -> None:
        arrays = {}
        for branch, leaf in self._leaves.items():
            data = columns[leaf.column]
            arrays[branch] = data[leaf.path] if leaf.path else data
        self._to.extend(arrays)


def _plain(kind: types.Type) -> types.Type:
    """A type without missing values."""
    match kind:
        case types.OptionType(content=content):
            return _plain(content)
        case types.ListType(content=content) if not is_text(kind):
            return types.ListType(_plain(content))
        case types.RegularType(content=content, size=size):
            return types.RegularType(_plain(content), size)
        case types.RecordType():
            inner = [_plain(c) for c in kind.contents]
            return types.RecordType(inner, None if kind.is_tuple else kind.fields)
        case _:
            return kind


def _leaves(at: Leaf) -> Iterator[Leaf]:
    """The branches of a column; members of a list of records are lists."""
    lists, kind = [], at.kind
    while isinstance(kind, types.ListType | types.RegularType) and not is_text(kind):
        lists.append(kind)
        kind = kind.content
    counted = at.counted
    if lists and isinstance(lists[0], types.ListType) and counted is None:
        counted = at.branch
    if isinstance(kind, types.RecordType):
        if not kind.contents:
            raise Unfit("holds records without members")
        for field, inner in zip(members(kind), kind.contents, strict=True):
            for wrap in reversed(lists):
                inner = (
                    types.ListType(inner)
                    if isinstance(wrap, types.ListType)
                    else (types.RegularType(inner, wrap.size))
                )
            yield from _leaves(Leaf(at.column, (*at.path, field), inner, counted))
        return
    if len(lists) > 1 and any(isinstance(w, types.ListType) for w in lists):
        # Fixed-size arrays in lists as well: uproot writes wrong offsets for them.
        raise Unfit("holds lists of lists, which a TTree cannot; ask for parquet or root-rntuple")
    if lists and is_text(kind):
        raise Unfit("holds lists of strings, which a TTree cannot; ask for parquet or root-rntuple")
    yield Leaf(at.column, at.path, at.kind, counted)


def _spec(kind: types.Type) -> Any:
    """A branch's type as uproot takes it."""
    if isinstance(kind, types.ListType):
        return kind
    shape = []
    while isinstance(kind, types.RegularType):
        shape.append(kind.size)
        kind = kind.content
    return np.dtype((kind.primitive, tuple(shape)) if shape else kind.primitive)
