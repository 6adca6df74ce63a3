"""A sink in memory, for queries whose result files are of no interest."""

from typing import Any, Self

import awkward as ak

from doma.columns.evaluate import Table


class Kept:
    """Keeps the tables, tree by tree; ``trees`` says whether the format would."""

    def __init__(self, trees: bool = True) -> None:
        self.trees, self.rows = trees, 0
        self.tables: dict[str, list[dict[str, ak.Array]]] = {}

    def write(self, table: Table, tree: str = "servicex") -> None:
        self.tables.setdefault(tree, []).append(table.columns)
        self.rows += len(next(iter(table.columns.values())))

    def copy(self, path: str, thing: Any) -> None:
        raise NotImplementedError

    def close(self) -> int:
        return 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None: ...

    def columns(self, tree: str | None = None) -> dict[str, ak.Array]:
        """All rows of a tree, or of the only one."""
        if tree is None:
            (tree,) = self.tables
        parts = self.tables[tree]
        return {n: ak.concatenate([p[n] for p in parts]) for n in parts[0]}
