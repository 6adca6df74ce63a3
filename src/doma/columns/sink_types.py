"""Types of columns in ROOT files: which there are, and rows brought into exactly one of them.

A table's types are fixed by its first rows; awkward holds the same type in many layouts, and a later step
may come with a narrower number or without missing values. :func:`fit` gives the one layout of a type.
"""

import awkward as ak
import numpy as np
from awkward import contents, types
from awkward.index import Index64

NUMBERS = frozenset(
    ["bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float32", "float64"]
)


class Unfit(ValueError):
    """A type or value that does not fit; the text follows the column's name."""


class Missing(Unfit):
    """A missing value where none can be held."""


def storable(kind: types.Type) -> types.Type:
    """The type that ROOT keeps for a column: half floats grow, an unknown type is a float.

    A missing record becomes a record of missing members, and a list of records may not be missing: uproot
    reads both as what they are not.

    Raises:
        Unfit: no type of ROOT's.
    """
    match kind:
        case types.OptionType(content=types.RecordType() as record):
            inner = [storable(types.OptionType(c)) for c in record.contents]
            return types.RecordType(inner, record.fields if not record.is_tuple else None)
        case types.OptionType(content=types.OptionType() as inner_option):
            return storable(inner_option)
        case types.OptionType(content=content):
            inside = storable(content)
            return inside if _holds_record(inside) else types.OptionType(inside)
        case types.RecordType():
            inner = [storable(c) for c in kind.contents]
            return types.RecordType(inner, None if kind.is_tuple else kind.fields)
        case types.ListType() if kind.parameter("__array__") == "string":
            return kind
        case types.ListType() if kind.parameter("__array__") == "bytestring":
            raise Unfit("holds bytes, which ROOT has no type for")
        case types.ListType(content=content):
            return types.ListType(storable(content))
        case types.RegularType(content=content, size=size) if size:
            return types.RegularType(storable(content), size)
        case types.UnknownType():
            return types.NumpyType("float64")
        case types.NumpyType(primitive="float16"):
            return types.NumpyType("float32")
        case types.NumpyType(primitive=primitive) if primitive in NUMBERS:
            return types.NumpyType(primitive)
        case types.UnionType():
            raise Unfit("mixes types; give both parts of its if … else one type")
        case _:
            raise Unfit(f"has the type {kind}, which ROOT has no type for")


def _holds_record(kind: types.Type) -> bool:
    while isinstance(kind, types.ListType | types.RegularType | types.OptionType):
        kind = kind.content
    return isinstance(kind, types.RecordType)


def members(kind: types.RecordType) -> list[str]:
    """Names of a record's members; those of a tuple are numbers."""
    return [str(i) for i in range(len(kind.contents))] if kind.is_tuple else list(kind.fields)


def fit(layout: contents.Content, kind: types.Type, nan: bool = False) -> contents.Content:
    """A layout as the one layout of a type.

    Args:
        layout: Any layout of that type, or one that can be promoted to it without loss.
        kind: A result of :func:`storable`.
        nan: Write NaN for a missing float where the type knows no missing values.

    Raises:
        Missing: a value is missing where the type knows none. Unfit: another type.
    """
    if layout.is_unknown:
        return ak.forms.from_type(kind).length_zero_array(highlevel=False)
    if layout.is_indexed and not layout.is_option:
        layout = layout.project()
    if isinstance(kind, types.RecordType):
        if sorted(ak.fields(layout)) != sorted(members(kind)):
            raise Unfit(f"changes its type within the file: {layout.form.type} is not {kind}")
        inner = [fit(layout[f], c, nan) for f, c in zip(members(kind), kind.contents, strict=True)]
        return contents.RecordArray(inner, None if kind.is_tuple else kind.fields, length=len(layout))
    if isinstance(kind, types.OptionType):
        return _option(layout, kind.content)
    if layout.is_option:
        return fit(_without_missing(layout, kind, nan), kind, nan)
    if isinstance(kind, types.NumpyType) and layout.is_numpy and layout.purelist_depth == 1:
        return contents.NumpyArray(_numbers(np.asarray(layout.data), kind.primitive))
    if isinstance(layout, contents.NumpyArray):
        layout = layout.to_RegularArray()
    if isinstance(kind, types.ListType) and layout.is_list and is_text(layout) == is_text(kind):
        if is_text(kind):
            return contents.ListOffsetArray(*_list(layout), parameters=kind.parameters)
        offsets, inside = _list(layout)
        return contents.ListOffsetArray(offsets, fit(inside, kind.content, nan))
    if isinstance(kind, types.RegularType) and layout.is_regular and layout.size == kind.size:
        inside = layout.content[: len(layout) * kind.size]
        return contents.RegularArray(fit(inside, kind.content, nan), kind.size, zeros_length=0)
    raise Unfit(f"changes its type within the file: {layout.form.type} is not {kind}")


def is_text(of: contents.Content | types.Type) -> bool:
    """Whether its lists are strings."""
    return bool(of.parameter("__array__") == "string")


def _list(layout: contents.Content) -> tuple[Index64, contents.Content]:
    lists = layout.to_ListOffsetArray64(True)
    offsets = np.asarray(lists.offsets.data)
    return Index64(offsets), lists.content[: offsets[-1]]


def _option(layout: contents.Content, kind: types.Type) -> contents.Content:
    if not layout.is_option:
        return contents.IndexedOptionArray(Index64(np.arange(len(layout))), fit(layout, kind))
    there = ~np.asarray(layout.mask_as_bool(valid_when=False))
    index = np.where(there, np.cumsum(there) - 1, -1)
    return contents.IndexedOptionArray(Index64(index), fit(layout.project(), kind))


def _without_missing(layout: contents.Content, kind: types.Type, nan: bool) -> contents.Content:
    missing = int(np.asarray(layout.mask_as_bool(valid_when=False)).sum())
    if not missing:
        return layout.project()
    if nan and isinstance(kind, types.NumpyType) and kind.primitive.startswith("float"):
        return ak.fill_none(layout, np.nan, axis=0, highlevel=False)
    raise Missing(f"has {missing} missing values")


def _numbers(data: np.ndarray, primitive: str) -> np.ndarray:
    target = np.dtype(primitive)
    if data.dtype == target:
        return np.ascontiguousarray(data)
    with np.errstate(all="ignore"):
        cast = data.astype(target)
        if not np.can_cast(data.dtype, target, "safe") and not np.array_equal(
            cast.astype(data.dtype), data, equal_nan=data.dtype.kind == "f"
        ):
            raise Unfit(f"changes its type within the file: {data.dtype} is not {target}")
    return cast
