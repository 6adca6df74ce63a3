"""Arithmetic, comparison, logic, conversion and choice: element by element, with NumPy's promotion."""

from typing import Any

import awkward as ak
import numpy as np

from doma.columns import plain
from doma.columns.values import Fields, Scope, Value, array, check_element, deepest, element, levels
from doma.core.errors import BadQuery


def ufunc(name: str, values: list[Value]) -> Value:
    """An allow-listed NumPy ufunc; raises BadQuery where the operands do not fit."""
    scope = deepest(values)
    for value in values:
        check_element(value, name)
    parts: list[Any] = [
        # Constants stay scalars, so that they promote weakly; among themselves they are NumPy's, so that
        # 10**10**10 costs nothing.
        (v.data if scope is not None else _scalar(v.data, name)) if v.scope is None else operand(v, scope)
        for v in values
    ]
    if scope is not None and any(p is None for p in parts):
        raise BadQuery(f"query: {name} with None is not offered")
    kinds = {
        "text" if isinstance(p, str) else element(p) if isinstance(p, ak.Array) else "numbers" for p in parts
    }
    if "text" in kinds and (len(kinds) > 1 or name not in {"equal", "not_equal"}):
        raise BadQuery(f"query: {name} does not work on {' and '.join(sorted(kinds))}")
    function = getattr(np, name)
    try:
        result = _call(function, *parts[: max(1, min(2, len(parts)))])
        for part in parts[2:]:
            result = _call(function, result, part)
    except (TypeError, ValueError, OverflowError, AttributeError) as e:
        types = ", ".join(str(p.type.content) if isinstance(p, ak.Array) else repr(p) for p in parts)
        raise BadQuery(f"query: {name} does not work on {types}{_why(e)}") from e
    return Value(scope, result if scope is not None else result.item())


def _call(function: Any, *parts: Any) -> Any:
    quick = plain.ufunc(function, parts) if any(isinstance(p, ak.Array) for p in parts) else None
    return function(*parts) if quick is None else quick


def _why(error: Exception) -> str:
    text = str(error)
    if "cannot broadcast nested list" in text or "cannot broadcast RegularArray" in text:
        return ": the sequences have different lengths within an event; use a lambda over one of them"
    if isinstance(error, OverflowError):
        return ": the constant does not fit the type; convert the other side, as in np.int64(…)"
    if "negative integer powers" in text:
        return ": negative powers of integers; write the base as 2.0, or np.float64(…) of it"
    return ""


def _scalar(value: Any, name: str) -> Any:
    if not isinstance(value, bool | int | float):
        raise BadQuery(f"query: {name} does not work on {value!r}")
    return np.asarray(value)[()]


def operand(value: Value, scope: Scope | None) -> ak.Array:
    """A value as an operand: fixed-size lists are lists, so that they pair by event."""
    assert scope is not None
    data = array(value, scope)
    layout = data.layout
    while isinstance(layout, ak.contents.ListOffsetArray):
        layout = layout.content
    plain_numbers = layout.is_numpy and layout.purelist_depth == 1
    return data if plain_numbers else ak.from_regular(data, axis=None)


def cast(dtype: str, value: Value) -> Value:
    """Numbers as another dtype."""
    check_element(value, dtype)
    if value.scope is None:
        return Value(None, np.asarray(_scalar(value.data, dtype)).astype(dtype)[()])
    data = operand(value, value.scope)
    if element(data) != "numbers":
        raise BadQuery(f"query: {dtype} needs numbers, this has {element(data)}")
    return Value(value.scope, ak.values_astype(data, dtype, including_unknown=True))


def _side(value: Value, scope: Scope) -> Any:
    """One side of a choice; numbers stay scalars, so that they promote weakly."""
    if value.scope is None and value.data is not None and not isinstance(value.data, str):
        return value.data
    return operand(value, scope)


def choice(test: Value, yes: Value, no: Value) -> Value:
    """Element-wise choice, of records field by field; a missing condition is false."""
    if isinstance(yes.data, Fields) and isinstance(no.data, Fields):
        if yes.data.values.keys() != no.data.values.keys() or yes.data.is_tuple != no.data.is_tuple:
            raise BadQuery("query: if … else: both records need the same fields")
        parts = {n: choice(test, v, no.data.values[n]) for n, v in yes.data.values.items()}
        return Value(deepest([test, yes, no]), Fields(parts, yes.data.is_tuple))
    for value in (test, yes, no):
        check_element(value, "if … else")
    scope = deepest([test, yes, no])
    if scope is None or test.scope is None:
        return yes if test.data else no
    condition = ak.fill_none(operand(test, scope), False, axis=-1)
    sides = [_side(v, scope) for v in (yes, no)]
    if levels(condition) and any(isinstance(s, ak.Array) and element(s) == "text" for s in sides):
        raise BadQuery("query: if … else: text is chosen one by one; use a lambda over the sequence")
    try:
        result = ak.where(condition != 0, *sides)
    except (TypeError, ValueError) as e:
        raise BadQuery(f"query: if … else: the parts do not fit each other{_why(e)}") from e
    if result.layout.is_union:
        raise BadQuery("query: if … else: both parts must have the same type")
    return Value(scope, result)
