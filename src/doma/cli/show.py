"""How the command shows things: tables for people, JSON for machines, errors on one line."""

import json
import sys
from collections.abc import Sequence
from typing import Any

from doma.core.errors import DomaError, problem


def fail(error: DomaError) -> None:
    """The error on standard error: one line, or a problem object when ``--json`` was asked for."""
    # of the demo, --json names a file
    if "--json" in sys.argv and "demo" not in sys.argv and not sys.stderr.isatty():
        print(json.dumps(problem(error)), file=sys.stderr)
    else:
        print(f"doma: {error.message}", file=sys.stderr)


def as_json(value: Any) -> None:
    """One JSON document on standard output."""
    print(json.dumps(value, indent=1))


def table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], right: Sequence[str] = ()
) -> None:
    """A table; columns named in ``right`` are aligned to the right."""
    from rich.console import Console
    from rich.table import Table

    out = Table(title=title, title_justify="left", title_style="bold")
    for name in columns:
        out.add_column(name, justify="right" if name in right else "left", overflow="fold")
    for row in rows:
        out.add_row(*(str(cell) for cell in row))
    Console(width=None if sys.stdout.isatty() else 160).print(out)


def counted(count: int, what: str) -> str:
    """A number of things, in words.

    >>> counted(1, "object"), counted(1200, "object")
    ('1 object', '1,200 objects')
    """
    return f"{count:,} {what}{'s' * (count != 1)}"


def size(count: float) -> str:
    """Bytes for people.

    >>> size(0), size(1536), size(5 << 30)
    ('0 B', '1.5 KiB', '5.0 GiB')
    """
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(count) < 1024 or unit == "TiB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError
