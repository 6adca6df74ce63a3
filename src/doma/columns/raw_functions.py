"""The functions of uproot-raw: NumPy's by name, and awkward's, which act within each event.

Awkward's reductions act across all events unless an axis is given; here their default is the axis within the
event, so that ``any(jet_pt > 50)`` is one boolean per event. An explicit axis wins, and
``use_standard_awkward_axis`` restores awkward's own default.

Source: servicex.md §8.2 of the project's contracts; the manual of ServiceX's uproot-raw names the functions
whose axis is another, ``flatten`` (axis 2) among them.
"""

import inspect
from collections.abc import Callable
from typing import Any

import awkward as ak
import numpy as np
from uproot.language.python import python_language

from doma.columns import functions as known
from doma.columns.values import bounded
from doma.core.errors import BadQuery, LimitExceeded

EVENT_AXIS = dict.fromkeys(
    [
        "concatenate", "count", "count_nonzero", "sum", "nansum", "prod", "nanprod", "any", "all", "min",
        "nanmin", "max", "nanmax", "argmin", "nanargmin", "argmax", "nanargmax", "moment", "mean", "nanmean",
        "var", "nanvar", "std", "nanstd", "softmax",
    ],
    1,
) | {"flatten": 2}  # fmt: skip
"""The default axis of functions whose own one would act across events."""

AWKWARD = frozenset(EVENT_AXIS) | {
    "where", "num", "sort", "argsort", "mask", "is_none", "drop_none", "pad_none", "fill_none", "firsts",
    "singletons", "broadcast_arrays", "broadcast_fields", "cartesian", "argcartesian", "combinations",
    "argcombinations", "isclose", "almost_equal",
}  # fmt: skip

FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{name: getattr(np, name) for name in known.UFUNCS},
    **python_language.functions,
    **{name: getattr(ak, name) for name in AWKWARD},
}

KEYWORDS = frozenset(
    [
        "axis", "keepdims", "mask_identity", "n", "ddof", "weight", "ascending", "stable", "nested", "fields",
        "replacement", "target", "value", "clip", "valid_when", "rtol", "atol", "equal_nan", "mergebool",
        "depth_limit",
    ]
)  # fmt: skip
"""What may be given by name; all else steers the library, not the computation."""

MAX_PAD = 100_000
SIGNATURES = {name: inspect.signature(getattr(ak, name)) for name in AWKWARD}


def call(name: str, args: list[Any], keywords: dict[str, Any], standard_axis: bool) -> Any:
    """The value of a function.

    Args:
        name: Of :data:`FUNCTIONS`.
        args: Arrays and constants.
        keywords: Of :data:`KEYWORDS`.
        standard_axis: Leave awkward its own default axis.

    Raises:
        BadQuery: arguments that the function does not take. LimitExceeded: too many combinations.
    """
    if name not in AWKWARD:
        if keywords:
            raise BadQuery(f"{name}() takes no {min(keywords)!r}")
        _only_numbers(name, args)
        return FUNCTIONS[name](*args)
    try:
        bound = SIGNATURES[name].bind(*args, **keywords)
    except TypeError as e:
        raise BadQuery(f"{name}(): {e}") from e
    given = bound.arguments
    axis = given.get("axis", 0)
    if axis is not None and type(axis) is not int:
        raise BadQuery(f"{name}(): the axis must be a number or None")
    if "axis" not in given and name in EVENT_AXIS and not standard_axis:
        given["axis"] = EVENT_AXIS[name]
    _limit(name, given)
    value = FUNCTIONS[name](*bound.args, **bound.kwargs)
    if value is None and "mask_identity" in SIGNATURES[name].parameters:
        # Over no events at all; the identity has the type that the columns need.
        given["mask_identity"] = False
        value = FUNCTIONS[name](*bound.args, **bound.kwargs)
    return value


def crosses(name: str, args: int, keywords: dict[str, Any]) -> bool:
    """Whether a call may act across events: it names an axis that is not within the event."""
    if name not in AWKWARD:
        return False
    names = list(SIGNATURES[name].parameters)
    return ("axis" in keywords and keywords["axis"] in {0, None}) or (
        "axis" in names and names.index("axis") < args
    )


def _only_numbers(name: str, args: list[Any]) -> None:
    if not args or not all(
        isinstance(a, ak.Array | np.ndarray | np.generic | bool | int | float) for a in args
    ):
        raise BadQuery(f"{name}() takes arrays and numbers")
    limit = getattr(FUNCTIONS[name], "nin", None)
    if limit is not None and len(args) != limit:
        raise BadQuery(f"{name}() takes {limit} values, not {len(args)}")


def _limit(name: str, given: dict[str, Any]) -> None:
    """Refuse what would have more members than a step may have."""
    axis = given.get("axis", 1)
    if name in {"combinations", "argcombinations", "cartesian", "argcartesian"}:
        if not isinstance(axis, int) or axis == 0:
            raise BadQuery(f"{name}(): axis {axis} would combine events with each other")
        if "combinations" in name:
            n = given["n"]
            if type(n) is not int or not 1 <= n <= 10:
                raise BadQuery(f"{name}(): n must be a number from 1 to 10")
            bounded(_counts(given["array"], axis) ** float(n) / float(np.prod(range(1, n + 1))))
        else:
            arrays = given["arrays"]
            arrays = list(arrays.values()) if isinstance(arrays, dict) else list(arrays)
            product: Any = 1.0
            for array in arrays:
                product = product * _counts(array, axis)
            bounded(np.atleast_1d(product))
    if name == "pad_none":
        target = given["target"]
        if type(target) is not int or not 0 <= target <= MAX_PAD:
            raise LimitExceeded(f"pad_none(): the length must be a number from 0 to {MAX_PAD}")
        bounded(np.array([float(target) * max(1, len(given["array"]))]))


def _counts(array: Any, axis: int) -> Any:
    """Lengths of the lists at an axis, in one flat array."""
    if not isinstance(array, ak.Array):
        raise BadQuery("combinations need arrays")
    counts = ak.num(array, axis=axis)
    flat = counts if axis == 1 else ak.flatten(counts, axis=None)
    return np.asarray(ak.fill_none(flat, 0), dtype=np.float64)
