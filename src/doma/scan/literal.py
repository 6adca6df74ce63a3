"""Literals: a value and, if it was given, the type it was meant in."""

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

INTEGERS = {
    f"{sign}int{bits}": (0 if sign else -(1 << bits - 1), (1 << (bits if sign else bits - 1)) - 1)
    for sign in ("", "u")
    for bits in (8, 16, 32, 64)
}
FLOATS = ("float32", "float64")
TIMES = tuple(f"timestamp[{unit}]" for unit in ("s", "ms", "us", "ns"))
NAMES = (*INTEGERS, *FLOATS, *TIMES, "bool", "string")
_WORDS = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}

Wrong = Callable[[str, Any], Exception]


@dataclass(frozen=True, slots=True)
class Literal:
    """A constant; ``type`` None: it adapts to what it meets."""

    value: Any
    type: str | None = None


def literal(value: Any, kind: Any, place: Any, wrong: Wrong) -> Literal:
    """The checked literal.

    Args:
        value: Decoded JSON.
        kind: Type name or None.
        place: Handed to ``wrong``.
        wrong: Makes the error of a place.
    """
    if kind is None:
        return Literal(_untyped(value, place, wrong))
    if kind not in NAMES:
        raise wrong(f"{kind!r:.50} is not a type; types: {', '.join(NAMES)}", place)
    if value is None:
        return Literal(None, kind)
    if kind in INTEGERS or kind in TIMES:
        low, high = INTEGERS.get(kind, INTEGERS["int64"])
        number = _whole(value)
        if number is None or not low <= number <= high:
            raise wrong(f"{value!r:.50} is not a value of {kind}", place)
        return Literal(number, kind)
    if kind in FLOATS:
        return Literal(_float(value, kind, place, wrong), kind)
    if not isinstance(value, bool if kind == "bool" else str):
        raise wrong(f"{value!r:.50} is not a value of {kind}", place)
    return Literal(value, kind)


def member(item: Any, place: Any, wrong: Wrong) -> Literal:
    """A value of an ``in`` list: bare, or ``{"lit": …, "type": …}``."""
    if isinstance(item, dict):
        if "lit" not in item or set(item) - {"lit", "type"}:
            raise wrong('a value is bare or {"lit": …, "type": …}', place)
        return literal(item["lit"], item.get("type"), place, wrong)
    return Literal(_untyped(item, place, wrong))


def _untyped(value: Any, place: Any, wrong: Wrong) -> Any:
    if isinstance(value, int) and not isinstance(value, bool):
        if not INTEGERS["int64"][0] <= value <= INTEGERS["uint64"][1]:
            raise wrong(f"{value!r:.50} does not fit 64 bits; write it as a float", place)
    elif isinstance(value, float) and not math.isfinite(value):
        raise wrong('the number is too large; infinity is {"lit": "inf", "type": "float64"}', place)
    elif value is not None and not isinstance(value, bool | float | str):
        raise wrong("a literal is a number, text, a truth value or null", place)
    return value


def _whole(value: Any) -> int | None:
    if (
        isinstance(value, str)
        and len(value) <= 21
        and value.removeprefix("-").isdecimal()
        and value.isascii()
    ):
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _float(value: Any, kind: str, place: Any, wrong: Wrong) -> float:
    if isinstance(value, str) and value in _WORDS:
        return _WORDS[value]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise wrong(f"{value!r:.50} is not a value of {kind}", place)
    try:
        number = float(value)
        return float(struct.unpack("f", struct.pack("f", number))[0]) if kind == "float32" else number
    except OverflowError as e:
        raise wrong(f"{value!r:.50} is too large for {kind}", place) from e
