"""How types are written down in the record: the reference's environment reads this, too."""

from typing import Any

import awkward as ak


def plain(kind: Any) -> str:
    """The type of one row, whether values may be missing or not."""
    if isinstance(kind, ak.types.OptionType):
        return plain(kind.content)
    if isinstance(kind, ak.types.RecordType):
        names = [str(i) for i in range(len(kind.contents))] if kind.is_tuple else kind.fields
        return "{" + ", ".join(f"{n}: {plain(c)}" for n, c in zip(names, kind.contents, strict=True)) + "}"
    if isinstance(kind, ak.types.ListType) and kind.parameters.get("__array__") != "string":
        return f"var * {plain(kind.content)}"
    return str(kind)
