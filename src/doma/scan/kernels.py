"""Comparison and arithmetic by value over Arrow arrays: what pyarrow's kernels leave to the caller's types.

Every function takes arrays or scalars of the same length (at least one array) and gives an array. Nulls give
nulls, floats follow IEEE 754, integers are compared by value whatever their width and sign.

Arithmetic: integers go to the wider signed type (uint64 stays with uint64) and are checked; a float32 with
integers stays float32, as in pyarrow; ``/`` of integers is float64.

Source: the table "Semantics" of scan.md §3.
"""

import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

from doma.scan.literal import Literal

_COMPARE: dict[str, tuple[Any, Callable[[Any], Any]]] = {
    "<": (pc.less, lambda s: s < 0),
    "<=": (pc.less_equal, lambda s: s <= 0),
    ">": (pc.greater, lambda s: s > 0),
    ">=": (pc.greater_equal, lambda s: s >= 0),
    "==": (pc.equal, lambda s: s == 0),
    "!=": (pc.not_equal, lambda s: s != 0),
}
_WIDER = {pa.uint8(): pa.int16(), pa.uint16(): pa.int32(), pa.uint32(): pa.int64()}
_CHECKED = {"+": pc.add_checked, "-": pc.subtract_checked, "*": pc.multiply_checked, "//": pc.divide_checked}
_FLOATING = {"+": pc.add, "-": pc.subtract, "*": pc.multiply, "/": pc.divide, "//": pc.divide, "**": pc.power}
_CURVES = {
    "sqrt": pc.sqrt, "exp": pc.exp, "log": pc.ln, "log10": pc.log10, "sin": pc.sin, "cos": pc.cos,
    "tan": pc.tan, "sinh": pc.sinh, "cosh": pc.cosh, "tanh": pc.tanh, "asin": pc.asin, "acos": pc.acos,
    "atan": pc.atan,
}  # fmt: skip
CURVES = frozenset(_CURVES)


class TypeMismatch(Exception):
    """Operands that the operator does not take; becomes an error of the family where the place is known."""


def arrow_type(name: str) -> pa.DataType:
    """The Arrow type of a type name of the language."""
    if name.startswith("timestamp["):
        return pa.timestamp(name[10:-1])
    return {"bool": pa.bool_(), "string": pa.string()}.get(name) or getattr(pa, name)()


def scalar_of(literal: Literal, other: pa.DataType | None = None) -> pa.Scalar:
    """A literal beside an operand: in its type where that is exact, else in the widest of its own kind."""
    value = literal.value
    if literal.type is not None:
        return pa.scalar(value, arrow_type(literal.type))
    if value is None:
        return pa.scalar(None, other or pa.null())
    if isinstance(value, bool | str):
        return pa.scalar(value)
    if other is not None and fits(value, other):
        return pa.scalar(float(value) if pt.is_floating(other) else int(value), other)
    if isinstance(value, float):
        return pa.scalar(value, pa.float64())
    return pa.scalar(value, pa.int64() if value < 1 << 63 else pa.uint64())


def fits(value: float, kind: pa.DataType) -> bool:
    """Whether a number is exactly a value of a numeric type (an integer never becomes a float's type here).

    >>> fits(0.1, pa.float32()), fits(2.5, pa.float32()), fits(-1, pa.uint32()), fits(2, pa.uint32())
    (False, True, False, True)
    """
    if pt.is_integer(kind):
        low = 0 if pt.is_unsigned_integer(kind) else -(1 << kind.bit_width - 1)
        return isinstance(value, int) and low <= value < low + (1 << kind.bit_width)
    try:
        if pt.is_float64(kind):
            return int(float(value)) == value if isinstance(value, int) else True
        if pt.is_float32(kind):
            narrow = struct.unpack("f", struct.pack("f", value))[0]
            return bool(narrow == value) or value != value
    except OverflowError:
        return False
    return False


def compare(op: str, a: Any, b: Any) -> pa.Array:
    """``a op b`` by value, bool with null where either is null."""
    a, b = _null_typed(a, b), _null_typed(b, a)
    kernel, decide = _COMPARE[op]
    ta, tb = a.type, b.type
    if pt.is_null(ta):
        return pa.nulls(len(a) if isinstance(a, pa.Array) else len(b), pa.bool_())
    if pt.is_boolean(ta) and pt.is_boolean(tb):
        return kernel(a.cast(pa.uint8()), b.cast(pa.uint8()))
    if _numeric(ta) and _numeric(tb):
        if pt.is_floating(ta) and pt.is_floating(tb):
            return kernel(_to(a, pa.float64()), _to(b, pa.float64())) if ta != tb else kernel(a, b)
        if _small(ta) and _small(tb):
            wide = pa.float64() if pt.is_floating(ta) or pt.is_floating(tb) else pa.int64()
            return kernel(_to(a, wide), _to(b, wide))
        if (
            pt.is_integer(ta)
            and pt.is_integer(tb)
            and pt.is_unsigned_integer(ta) == pt.is_unsigned_integer(tb)
        ):
            wide = pa.uint64() if pt.is_unsigned_integer(ta) else pa.int64()
            return kernel(_to(a, wide), _to(b, wide))
        sign, unordered, valid = _signs(a, b)
        # Kept apart from the comparison itself: NaN is unequal to all and in no order.
        answer = np.where(unordered, op == "!=", decide(sign))
        return pa.array(np.atleast_1d(answer), mask=None if valid is None else ~valid)
    if _text(ta) and _text(tb):
        return kernel(a.cast(pa.large_string()), b.cast(pa.large_string()))
    if ta == tb and (pt.is_temporal(ta) or pt.is_decimal(ta) or _bytes(ta)):
        return kernel(a, b)
    if pt.is_timestamp(ta) and pt.is_timestamp(tb):
        return kernel(a.cast(pa.timestamp(ta.unit)), b.cast(pa.timestamp(tb.unit)))
    raise TypeMismatch(f"{ta} cannot be compared with {tb}")


def arithmetic(op: str, a: Any, b: Any) -> pa.Array:
    """``a op b`` for ``+ - * / // % **``, ``atan2``, ``min2``, ``max2``.

    Raises:
        pa.ArrowInvalid: overflow or integer division by zero somewhere.
    """
    a, b = _null_typed(a, b), _null_typed(b, a)
    if not (_numeric(a.type) and _numeric(b.type)):
        raise TypeMismatch(f"{op!r} needs numbers, here are {a.type} and {b.type}")
    common = pa.float64() if op == "atan2" and not pt.is_floating(a.type) else common_type(a.type, b.type)
    if op == "/" and pt.is_integer(common):
        common = pa.float64()
    a, b = _to(a, common), _to(b, common)
    if op in ("min2", "max2"):
        kernel = pc.min_element_wise if op == "min2" else pc.max_element_wise
        return kernel(a, b, skip_nulls=False)
    if op == "atan2":
        return pc.atan2(_floated(a), _floated(b))
    if op == "%":
        return _remainder(a, b, common)
    if pt.is_floating(common):
        return _FLOATING[op](a, b)
    return pc.power_checked(a, b) if op == "**" else _CHECKED[op](a, b)


def common_type(a: pa.DataType, b: pa.DataType) -> pa.DataType:
    """The type that arithmetic on two numeric types is done in.

    >>> common_type(pa.uint32(), pa.int8()), common_type(pa.float32(), pa.int64())
    (DataType(int64), DataType(float))
    """
    if pt.is_floating(a) or pt.is_floating(b):
        return pa.float64() if pa.float64() in (a, b) else pa.float32()
    if a == b == pa.uint64():
        return a
    a, b = (_WIDER.get(t, pa.int64() if t == pa.uint64() else t) for t in (a, b))
    return a if a.bit_width >= b.bit_width else b


def unify(a: Any, b: Any) -> tuple[Any, Any]:
    """Two branches of a choice in one type."""
    a, b = _null_typed(a, b), _null_typed(b, a)
    if a.type == b.type:
        return a, b
    if _numeric(a.type) and _numeric(b.type):
        common = common_type(a.type, b.type)
        return _to(a, common), _to(b, common)
    if _text(a.type) and _text(b.type):
        return a.cast(pa.large_string()), b.cast(pa.large_string())
    raise TypeMismatch(f"the branches are {a.type} and {b.type}; cast one of them")


def curve(op: str, a: pa.Array) -> pa.Array:
    """A function of one real number; out of its domain it gives NaN."""
    if not _numeric(a.type):
        raise TypeMismatch(f"{op!r} needs a number, here is {a.type}")
    return _CURVES[op](_floated(a))


def unary(op: str, a: pa.Array) -> pa.Array:
    """``neg abs floor ceil round is_nan is_finite`` of numbers."""
    if not _numeric(a.type):
        raise TypeMismatch(f"{op!r} needs a number, here is {a.type}")
    whole = pt.is_integer(a.type)
    if op == "neg":
        return pc.negate_checked(_to(a, common_type(a.type, pa.int8()))) if whole else pc.negate(a)
    if op == "abs":
        return pc.abs_checked(a) if whole else pc.abs(a)
    if op in ("is_nan", "is_finite"):
        return (pc.is_nan if op == "is_nan" else pc.is_finite)(_floated(a))
    return a if whole else {"floor": pc.floor, "ceil": pc.ceil, "round": pc.round}[op](a)


def among(a: pa.Array, members: tuple[Literal, ...], null: bool, nan: bool) -> pa.Array:
    """Membership by value; a null value gives ``true`` if asked, else null (false for no members)."""
    kept: list[Any] = []
    for member in members:
        scalar = scalar_of(member, a.type)
        if scalar.as_py() is None:
            continue
        exact = _exactly(scalar, a.type)
        if exact is not None:
            kept.extend((0.0, -0.0) if pt.is_floating(a.type) and exact == 0 else (exact,))
    if pt.is_null(a.type):
        found = pa.nulls(len(a), pa.bool_())
    else:
        found = pc.is_in(a, value_set=pa.array(kept, a.type))
    if pt.is_floating(a.type):
        isnan = pc.fill_null(pc.is_nan(a), False)
        found = pc.or_(found, isnan) if nan else pc.and_not(found, isnan)
    if null:
        return pc.if_else(pc.is_null(a), True, found)
    if not members and not nan:
        return pa.array(np.zeros(len(a), bool))
    return pc.if_else(pc.is_null(a), pa.scalar(None, pa.bool_()), found)


def _exactly(scalar: pa.Scalar, kind: pa.DataType) -> Any:
    """The value of a literal in a column's type, or None where the column cannot hold it."""
    value = scalar.as_py() if not pt.is_timestamp(scalar.type) else scalar.value
    if pt.is_boolean(kind) and isinstance(value, bool):
        return value
    if _numeric(kind) and _numeric(scalar.type):
        if value != value:
            return None
        if pt.is_integer(kind):
            whole = not isinstance(value, float) or value.is_integer()
            return int(value) if whole and fits(int(value), kind) else None
        return float(value) if fits(value, kind) else None
    if _text(kind) and isinstance(value, str):
        return value
    if pt.is_timestamp(kind) and pt.is_timestamp(scalar.type):
        steps = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
        number, rest = divmod(value * steps[kind.unit], steps[scalar.type.unit])
        return number if not rest and fits(number, pa.int64()) else None
    raise TypeMismatch(f"{kind} cannot be compared with {scalar.type}")


def numpy_of(a: Any) -> tuple[Any, Any]:
    """Values with nulls as zero, and where they are valid (None: everywhere)."""
    if isinstance(a, pa.Scalar):
        value = a.as_py()
        dtype = a.type.to_pandas_dtype()
        return np.full(1, 0 if value is None else value, dtype), None if value is not None else np.zeros(
            1, bool
        )
    valid = None
    if a.null_count:
        valid = a.is_valid().to_numpy(zero_copy_only=False)
        a = a.fill_null(False if pt.is_boolean(a.type) else 0)
    return a.to_numpy(zero_copy_only=False), valid


def both(a: Any, b: Any) -> Any:
    """Where both are valid; None: everywhere."""
    return a if b is None else b if a is None else a & b


def _signs(a: Any, b: Any) -> tuple[Any, Any, Any]:
    """Sign of a - b, exact between 64-bit integers of both kinds and floats; where unordered; where valid."""
    (x, vx), (y, vy) = numpy_of(a), numpy_of(b)
    flipped = x.dtype.kind == "f"
    if flipped:
        x, y = y, x
    if y.dtype.kind != "f":  # uint64 with a signed type: a negative number is below every unsigned one
        if x.dtype.kind != "u":
            x, y, flipped = y, x, not flipped
        wide = y.astype(np.int64)
        rest = wide.astype(np.uint64)
        x = x.astype(np.uint64)
        sign = np.where(wide < 0, 1, (x > rest).astype(np.int8) - (x < rest))
        unordered = np.zeros(sign.shape, bool)
    else:
        y = y.astype(np.float64)
        rounded = x.astype(np.float64)
        sign = (rounded > y).astype(np.int8) - (rounded < y)
        top = 2.0**64 if x.dtype.kind == "u" else 2.0**63
        tie = rounded == y
        exact = np.where(tie & (y < top), y, 0).astype(x.dtype)
        sign = np.where(tie, np.where(y >= top, -1, (x > exact).astype(np.int8) - (x < exact)), sign)
        unordered = np.broadcast_to(np.isnan(y), sign.shape)
    valid = both(vx, vy)
    return (
        -sign if flipped else sign,
        unordered,
        None if valid is None else np.broadcast_to(valid, sign.shape),
    )


def _remainder(a: Any, b: Any, common: pa.DataType) -> pa.Array:
    (x, vx), (y, vy) = numpy_of(a), numpy_of(b)
    valid = both(vx, vy)
    if pt.is_integer(common):
        zero = y == 0
        y = np.where(zero, y.dtype.type(1), y)
        valid = both(valid, ~zero)
    with np.errstate(all="ignore"):
        answer = np.fmod(x, y)
    answer = np.atleast_1d(answer)
    return pa.array(answer, common, mask=None if valid is None else ~np.broadcast_to(valid, answer.shape))


def _to(a: Any, kind: pa.DataType) -> Any:
    """A numeric cast: integers checked, to floats rounding to nearest."""
    if a.type == kind:
        return a
    return a.cast(kind, safe=pt.is_integer(kind))


def _floated(a: Any) -> Any:
    return a if pt.is_floating(a.type) else _to(a, pa.float64())


def _null_typed(a: Any, other: Any) -> Any:
    return a.cast(other.type) if pt.is_null(a.type) and not pt.is_null(other.type) else a


def _numeric(kind: pa.DataType) -> bool:
    return bool(pt.is_integer(kind) or pt.is_floating(kind))


def _small(kind: pa.DataType) -> bool:
    """Whether float64 and int64 hold every value."""
    return kind not in (pa.int64(), pa.uint64())


def _text(kind: pa.DataType) -> bool:
    return bool(pt.is_string(kind) or pt.is_large_string(kind))


def _bytes(kind: pa.DataType) -> bool:
    return bool(pt.is_binary(kind) or pt.is_large_binary(kind) or pt.is_fixed_size_binary(kind))
