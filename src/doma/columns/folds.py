"""``Aggregate``: a fold over each sequence, all sequences at once, one position after the other.

At position k the lambda runs over the sequences that have more than k members. Sorted by length these are
the first ones, so that the work in all is that of the members, not of sequences times the longest.
"""

from collections.abc import Callable

import awkward as ak
import numpy as np
import numpy.typing as npt

from doma.columns.values import Scope, Value, array, check_element, check_numbers, deepest, opened, scope_of
from doma.core.errors import BadQuery, LimitExceeded

MAX_LENGTH = 10_000
"""Members of the longest sequence that a fold takes."""
Body = Callable[[Value, Value], Value]


def fold(source: Value, seed: Value, body: Body) -> Value:
    """What the lambda makes of each sequence, starting from the seed.

    Raises:
        BadQuery: the accumulated value is not one number. LimitExceeded: a sequence is too long.
    """
    check_element(seed, "Aggregate")
    outer = deepest([source, seed])
    if outer is not None and outer is not scope_of(source):
        source = Value(outer, array(source, outer))
    took = opened(source, "Aggregate")
    longest = int(took.counts.max(initial=0))
    if longest > MAX_LENGTH:
        raise LimitExceeded(
            f"query: Aggregate takes sequences of {MAX_LENGTH} members, one has {longest}; use Sum or such"
        )
    order = np.argsort(-took.counts, kind="stable")
    sizes = took.counts[order]
    starts = (np.cumsum(took.counts) - took.counts)[order]

    def step(acc: npt.NDArray[np.generic], active: int, k: int) -> npt.NDArray[np.generic]:
        scope = Scope(active, took.outer, took.outer.depth + 1, _parents=order[:active])
        found = body(Value(scope, ak.Array(acc)), Value(scope, took.flat[starts[:active] + k]))
        return _numbers(array(found, scope))

    total = _numbers(array(seed, took.outer))[order]
    # The type must not depend on how long the sequences are: it is what two rounds make of the seed's.
    for _ in range(2):
        total = total.astype(np.result_type(total, step(total[:0], 0, 0)))
    for k in range(longest):
        active = int(np.searchsorted(-sizes, -k, side="left"))
        total[:active] = step(total[:active], active, k)
    back = np.empty_like(total)
    back[order] = total
    return Value(took.outer, ak.Array(back))


def _numbers(data: ak.Array) -> npt.NDArray[np.generic]:
    check_numbers(data, "Aggregate must accumulate one number")
    if data.layout.is_option:
        if ak.any(ak.is_none(data)):
            raise BadQuery("query: Aggregate: a value is missing; give First, Max and such a default")
        data = ak.drop_none(data, axis=0)
    return np.array(data)
