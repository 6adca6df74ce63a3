"""pyarrow Expressions to the scan language, exactly, by their own serialised form.

``compute::Serialize`` writes an expression as an Arrow file: the schema's metadata are the tokens in order
(call, field_ref, literal, options, end), the columns of its one row the literals and options. The tokens
repeat keys, so they are read through the C data interface: pyarrow's own view of metadata is a dict.

Source: scan.md §3 "Converters"; Arrow C data interface, "ArrowSchema.metadata".
"""

import ctypes
import math
import struct
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.types as pt

from doma.core.errors import Unsupported
from doma.scan.literal import FLOATS, INTEGERS

_SAME = {
    "equal": "==", "not_equal": "!=", "less": "<", "less_equal": "<=", "greater": ">",
    "greater_equal": ">=",
    "and_kleene": "and", "or_kleene": "or", "invert": "not", "if_else": "if", "coalesce": "coalesce",
    "add": "+", "subtract": "-", "multiply": "*", "divide": "//", "power": "**", "negate": "neg",
    "abs": "abs", "sqrt": "sqrt", "exp": "exp", "ln": "log", "log10": "log10", "sin": "sin", "cos": "cos",
    "tan": "tan",
    "sinh": "sinh", "cosh": "cosh", "tanh": "tanh", "asin": "asin", "acos": "acos", "atan": "atan",
    "atan2": "atan2", "floor": "floor", "ceil": "ceil", "is_nan": "is_nan", "is_finite": "is_finite",
    "list_value_length": "len", "utf8_length": "str_len", "utf8_lower": "lower", "utf8_upper": "upper",
}  # fmt: skip
_PATTERNS = {
    "starts_with": "starts_with", "ends_with": "ends_with", "match_substring": "contains",
    "match_like": "like", "match_substring_regex": "regex",
}  # fmt: skip
_SAFE = ("allow_int_overflow", "allow_float_truncate", "allow_time_truncate", "allow_time_overflow")


class _CSchema(ctypes.Structure):
    _fields_ = (
        ("format", ctypes.c_char_p),
        ("name", ctypes.c_char_p),
        ("metadata", ctypes.c_void_p),
    )


def expression(value: Any) -> Any:
    """The JSON form of a ``pyarrow.compute.Expression``.

    Raises:
        Unsupported: a function or type that the language does not have; the text says what to do instead.
    """
    reader = pa.ipc.open_file(value.__reduce__()[1][0])
    row = reader.get_batch(0)
    stack: list[tuple[str, list[Any], list[Any]]] = [("", [], [])]  # (function, arguments, options)
    nested = 0
    path: list[str] = []
    for key, text in _tokens(reader.schema):
        if key == "call":
            stack.append((text, [], []))
        elif key == "nested_field_ref":
            nested, path = int(text), []
        elif key == "field_ref":
            path.append(text)
            nested -= nested > 0
            if not nested:
                stack[-1][1].append({"col": path[0] if len(path) == 1 else path})
                path = []
        elif key == "literal":
            stack[-1][1].append(_literal(row.column(int(text))[0]))
        elif key == "options":
            stack[-1][2].append((row.column(int(text))[0], row.schema.field(int(text)).type))
        elif key == "end":
            name, args, options = stack.pop()
            stack[-1][1].append(_call(name, args, options[0] if options else None))
        else:
            raise Unsupported(f"filter: {key!r} in a pyarrow expression is not known; write the cut as text")
    return stack[0][1][0]


def _call(name: str, args: list[Any], options: Any) -> Any:
    name = name.removesuffix("_checked")
    if name in _SAME:
        return {_SAME[name]: args if len(args) > 1 else args[0]}
    made = _OTHERS.get(name)
    if made is not None:
        return made(args, options)
    if name in _PATTERNS:
        chosen = options[0].as_py()
        if chosen.get("ignore_case"):
            raise Unsupported(
                f"filter: {name} that ignores case is not offered; use utf8_lower on the column"
            )
        return {_PATTERNS[name]: [args[0], _text(chosen["pattern"])]}
    raise Unsupported(
        f"filter: the function {name!r} is not pushed down; cut on other columns and apply it to the result"
    )


def _is_in(args: list[Any], options: Any) -> Any:
    chosen = options[0]
    values = chosen["value_set"].values
    behaviour = _option(chosen, "null_matching_behavior", 0)
    if behaviour not in (0, 1):
        raise Unsupported("filter: this null matching of is_in is not offered; leave it at the default")
    members = [_literal(value) for value in values if value.is_valid]
    nan = any(m.get("lit") == "nan" for m in members)
    members = [m["lit"] if "type" not in m else m for m in members if m.get("lit") != "nan"]
    null = behaviour == 0 and values.null_count > 0
    inside = {"in": [args[0], members, {"null": null, "nan": nan}]}
    # pyarrow says false for a null that is not in the set, the language says null.
    return inside if null else {"coalesce": [inside, {"lit": False}]}


def _cast(args: list[Any], options: Any) -> Any:
    chosen, kind = options
    target = kind.field(kind.get_field_index("to_type")).type
    name = _name_of(target)
    if name is None:
        raise Unsupported(f"filter: a cast to {target} is not offered; cast the result")
    safe = not any(_option(chosen, key, False) for key in _SAFE)
    return {"cast": [args[0], name], "safe": safe}


def _element(args: list[Any], options: Any) -> Any:
    index = args[1].get("lit") if len(args) > 1 else None
    if not isinstance(index, int):
        raise Unsupported("filter: list_element needs a constant index here; apply it to the result")
    return {"at": [args[0], index], "strict": True}


def _field(args: list[Any], options: Any) -> Any:
    raise Unsupported("filter: struct_field is written as pc.field('struct', 'field') here")


_OTHERS: dict[str, Callable[[list[Any], Any], Any]] = {
    "is_in": _is_in,
    "cast": _cast,
    "list_element": _element,
    "struct_field": _field,
    "is_null": lambda a, o: {"is_null": a[0], "nan_is_null": bool(o and _option(o[0], "nan_is_null", False))},
    "is_valid": lambda a, o: {"not": {"is_null": a[0]}},
    "is_inf": lambda a, o: {"and": [{"not": {"is_finite": a[0]}}, {"not": {"is_nan": a[0]}}]},
}


def _literal(scalar: Any) -> dict[str, Any]:
    kind, value = scalar.type, None if not scalar.is_valid else scalar
    if pt.is_null(kind):
        return {"lit": None}
    name = _name_of(kind)
    if name is None:
        raise Unsupported(f"filter: a literal of type {kind} is not offered; use a number, text or timestamp")
    if value is None:
        return {"lit": None, "type": name}
    plain = scalar.value if pt.is_timestamp(kind) else scalar.as_py()
    if isinstance(plain, float) and not math.isfinite(plain):
        return {
            "lit": "nan" if plain != plain else "inf" if plain > 0 else "-inf",
            "type": name if name in FLOATS else "float64",
        }
    # As in pyarrow, a plain number adapts to what it is compared with.
    if name in ("int64", "float64", "bool", "string"):
        return {"lit": plain}
    return {"lit": plain, "type": name}


def _name_of(kind: pa.DataType) -> str | None:
    if pt.is_timestamp(kind):
        return f"timestamp[{kind.unit}]"
    if pt.is_string(kind) or pt.is_large_string(kind):
        return "string"
    if pt.is_boolean(kind):
        return "bool"
    name = {"float": "float32", "double": "float64"}.get(str(kind), str(kind))
    return name if name in INTEGERS or name in FLOATS else None


def _option(chosen: Any, key: str, default: Any) -> Any:
    try:
        return chosen[key].as_py()
    except KeyError:
        return default


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _tokens(schema: pa.Schema) -> list[tuple[str, str]]:
    """Metadata pairs in order, repeated keys kept."""
    capsule = schema.__arrow_c_schema__()
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    address = _CSchema.from_address(pointer(capsule, b"arrow_schema") or 0).metadata
    if not address:
        raise Unsupported("filter: an empty pyarrow expression; leave the filter out")
    at = address

    def number() -> int:
        nonlocal at
        (found,) = struct.unpack("=i", ctypes.string_at(at, 4))
        at += 4
        return int(found)

    def text() -> str:
        nonlocal at
        size = number()
        data = ctypes.string_at(at, size)
        at += size
        return data.decode()

    return [(text(), text()) for _ in range(number())]
