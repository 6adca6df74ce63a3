"""Random queries at length, and queries and selections that somebody has torn."""

import json
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from doma.columns.evaluate import run
from doma.columns.plan import compile_text
from doma.columns.raw import UprootRaw
from doma.columns.remote import open_bytes
from doma.core.errors import BadQuery, LimitExceeded, UnknownColumn
from tests.unit.columns_sink import Kept
from tests.unit.test_columns_fuzz import (
    queries,
    records,
    stored,
    written,
)
from tests.unit.test_columns_fuzz import (
    test_a_query_gives_what_a_loop_over_the_events_gives as differential,
)

SHAPES = Path(__file__).parents[1] / "data/shapes.root"
REFUSED = BadQuery, LimitExceeded, UnknownColumn
LONG = settings(deadline=None, max_examples=250, suppress_health_check=list(HealthCheck))
TOKEN = re.compile(r"[A-Za-z_]\w*|\d+\.?\d*|\*\*|//|<<|>>|[<>=!]=|\S")
HOSTILE = [
    "None", "True", "-1", "1e400", "9" * 20, "9**9**9", "10**400", "1j", "...", "'a'", f"'{'x' * 2000}'",
    "'\x00'", "e", "e.s", "e.t", "e.p", "e.p[1:]", "e.t[0]", "e[e]", "e.__class__", "__import__('os')", "np",
    "np.load", "os", "Range(1000000000)", "Range(e.u, e.l)", "Aggregate", "First", "Zip", "Choose(6)",
    "MetaData", "lambda e: e", "in", "{}", "[]", "()", "[1, 2]", "{'a': 1}", "if", "else", "**", "<<", "~",
    "@", "nan", "-", "*", "e.p.deltaR(e.p)",
]  # fmt: skip
TEARS = st.lists(st.tuples(st.integers(0, 1 << 16), st.sampled_from(HOSTILE)), min_size=1, max_size=2)

much = LONG(differential)


def test_much_of_random_queries_gives_what_a_loop_over_the_events_gives():
    much()


@LONG
@given(queries(), records(), TEARS)
def test_a_torn_query_gives_columns_or_one_clear_error(query, rows, tears):
    text = written(query)
    for place, new in tears:
        found = list(TOKEN.finditer(text))
        old = found[place % len(found)]
        text = text[: old.start()] + new.replace("'", '"') + text[old.end() :]
    with suppress(*REFUSED):
        plan = compile_text(text)
        if plan.branches is not None and set(plan.branches) <= set(stored(rows).names):
            run(plan, stored(rows))


WORDS = st.sampled_from(
    ["i", "a", "a > 1", "sum(a)", "i + l", "a[a > 0]", "x", "get('i')", "get(i)", "max(a, axis=None)", "1",
     "i / 0", "combinations(a, 10)", "pad_none(a, 99999999)", "cartesian([a, a])", "num(a, axis=9)",
     "i << 99", "flatten(a, axis=-9)", "a[:, ::0]", "a[..., None]", "a[99]", "i.__class__", "2**9**9",
     "[i for i in a]", "'i'", "(", "a.b.c", "concatenate([a, i])", "where(i)", "sort(a, axis=0)", "/i/",
     "/(a+)+$/", "*", "[", "tree/i", "/i", "get('/i')", "\ud800", "\x00", "", "mask(a, i)", "i == 'x'",
     "fill_none(firsts(a), 'x')", "broadcast_arrays(a, i)", "x" * 20_000, "argmax(a, keepdims=True)",
     "softmax(a)", "a[argsort(a)]"]
)  # fmt: skip
MANY = st.one_of(WORDS, st.lists(WORDS, min_size=1, max_size=3))
VALUES = st.one_of(
    MANY, MANY, st.none(), st.booleans(), st.integers(), st.dictionaries(WORDS, WORDS, max_size=2)
)
KEYS = [
    "expressions", "cut", "filter_name", "filter_typename", "aliases", "fail_on_missing_trees",
    "use_standard_awkward_axis", "copy_histograms",
]  # fmt: skip
PARTS = st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=3).map(lambda d: {"treename": "tree", **d})


def asked(selection: Any) -> None:
    data = open_bytes(SHAPES.as_uri(), allow=("file://",))
    try:
        with suppress(*REFUSED):
            UprootRaw(json.dumps(selection)).run(data, Kept(True), 1 << 20, lambda _: None)
    finally:
        data.close()


@LONG
@given(st.one_of(st.lists(PARTS, max_size=2), VALUES, st.lists(VALUES, max_size=2)))
def test_any_selection_of_uproot_raw_gives_columns_or_one_clear_error(selection):
    asked(selection)
