"""What a selection means, before anything is delivered: what it reads, in which steps, and what it costs.

Rendering-free: :class:`Explained` is data; ``text`` gives plain lines and ``as_json`` what JSON can hold.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from doma.columns.query import compile_query
from doma.columns.remote import Bytes
from doma.core.errors import BadQuery

if TYPE_CHECKING:
    from doma.columns.evaluate import Table
    from doma.columns.source import Source

Part = tuple["Source", tuple[str, ...], tuple[str, ...]]
"""A tree, all names that are read of it, and those among them that filters need."""
STEP = 64 << 20
"""Bytes of one step, as the workers take them."""


@dataclass(frozen=True, slots=True)
class Step:
    """One step in words; steps of greater depth belong to the one before them."""

    depth: int
    text: str


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the output, of this type per row."""

    name: str
    type: str


@dataclass(frozen=True, slots=True)
class FileFacts:
    """What the selection would take of a file."""

    url: str
    place: str
    """URL and tree."""
    entries: int
    size: int
    """Bytes of the whole file."""
    compressed: int
    """Bytes of the columns that are read, in the file; 0: not known."""
    uncompressed: int
    filters: int
    """Compressed bytes of those that event filters need; the others are read where events survive."""
    windows: int
    """Steps in which the file is read."""


@dataclass(frozen=True, slots=True)
class Explained:
    """A selection, explained."""

    codegen: str
    digest: str
    tree: str | None
    """None: the only one of the file."""
    tree_out: str
    branches: tuple[str, ...] | None
    """What is read; None: everything."""
    filters: tuple[str, ...]
    """What event filters need: read first."""
    steps: tuple[Step, ...]
    columns: tuple[Column, ...] = ()
    """The output; empty where no file says its types."""
    file: FileFacts | None = None

    def as_json(self) -> dict[str, Any]:
        """What JSON can hold."""
        return asdict(self)

    def text(self) -> str:
        """Plain lines."""
        lines = [f"language  {self.codegen}", f"tree      {self.tree or 'the only one of the file'}"]
        if self.filters:
            lines.append(f"filters   {', '.join(self.filters)}  (read first)")
        rest = None if self.branches is None else [b for b in self.branches if b not in self.filters]
        lines.append(f"reads     {'every branch' if rest is None else ', '.join(rest) or 'nothing else'}")
        lines += ["steps", *("  " * (s.depth + 1) + s.text for s in self.steps)]
        if self.columns:
            width = max(len(c.name or "(unnamed)") for c in self.columns)
            lines.append("columns")
            lines += [f"  {c.name or '(unnamed)':{width}}  {c.type}" for c in self.columns]
        if self.file is not None:
            lines += _file_lines(self.file)
        return "\n".join(lines)


@runtime_checkable
class CanExplain(Protocol):
    """A query that can say what it would do."""

    def explain(self, data: Bytes | None, step: int) -> Explained:
        """What the query reads and does; with a file also types and bytes. Raises DomaError."""


def explain(codegen: str, selection: str, data: Bytes | None = None, step: int = STEP) -> Explained:
    """What a selection reads, does and costs; nothing is delivered.

    Args:
        codegen: The language.
        selection: As a client sends it.
        data: A file to compare it with; it stays open.
        step: Bytes of one step.

    Raises:
        DomaError: what is wrong with the selection or the file; BadQuery: a language without plans.
    """
    query = compile_query(codegen, selection)
    if not isinstance(query, CanExplain):
        raise BadQuery(f"codegen: selections of {codegen!r} cannot be explained; they are programs")
    return query.explain(data, step)


def facts(data: Bytes, parts: Iterable[Part], step: int) -> FileFacts:
    """What a selection would take of a file; several trees are summed up."""
    found = list(parts)
    whole, early = [s.sizes(names) for s, names, _ in found], [s.sizes(first)[0] for s, _, first in found]
    return FileFacts(
        data.url, "; ".join(dict.fromkeys(s.place for s, _, _ in found)) or data.url,
        sum(s.entries for s, _, _ in found), data.size, sum(c for c, _ in whole), sum(u for _, u in whole),
        sum(early), sum(1 for s, names, first in found for _ in s.windows(names, step, first)),
    )  # fmt: skip


def columns_of(empty: "Table") -> tuple[Column, ...]:
    """The columns of an output without rows."""
    return tuple(Column(name, str(data.type.content)) for name, data in empty.columns.items())


def _file_lines(facts: FileFacts) -> list[str]:
    lines = ["file", f"  {facts.place}", f"  {facts.entries:,} entries, {facts.size:,} bytes"]
    if facts.compressed:
        share = 100 * facts.compressed / max(facts.size, 1)
        lines.append(
            f"  at most {facts.compressed:,} bytes are read ({share:.3g} % of the file), "
            f"{facts.uncompressed:,} when unpacked"
        )
        if facts.filters:
            lines.append(f"  {facts.filters:,} of them for the filters; the rest only where events survive")
    lines.append(f"  in {facts.windows:,} step{'s' if facts.windows != 1 else ''}")
    return lines
