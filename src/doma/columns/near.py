"""Near matches: what somebody may have meant by a name that is not known."""

import difflib
from collections.abc import Iterable

from doma.core.errors import UnknownColumn


def near(name: str, names: Iterable[str], most: int = 4) -> list[str]:
    """The known names that look most like one that is not known."""
    pool = list(names)
    folded = {n.lower(): n for n in pool}
    close = difflib.get_close_matches(name.lower(), folded, n=most, cutoff=0.6)
    return [folded[c] for c in close]


def unknown(what: str, name: str, names: Iterable[str]) -> UnknownColumn:
    """The error for a name that is not there: ``what`` and the name, and the nearest ones."""
    known, name = list(names), name[:100]
    return UnknownColumn(f"{what} {name!r}; {did_you_mean(name, known)}", name=name, near=near(name, known))


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """The tail of a message: near matches, or the first known names."""
    pool = sorted(set(names))
    close = near(name, pool)
    if close:
        return f"did you mean {', '.join(close)}?"
    shown = ", ".join(pool[:8]) + (f", … ({len(pool)} in all)" if len(pool) > 8 else "")
    return f"there are: {shown}" if pool else "there are none"
