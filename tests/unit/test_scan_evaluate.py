"""The evaluator against one that goes row by row in plain Python and knows nothing of Arrow's kernels."""

import math
from fractions import Fraction

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from doma.core.errors import BadQuery, LimitExceeded, UnknownColumn
from doma.scan.evaluate import Evaluator
from doma.scan.grammar import compile_expression

SCHEMA = pa.schema(
    {
        "i32": pa.int32(), "u32": pa.uint32(), "i64": pa.int64(), "u64": pa.uint64(), "f32": pa.float32(),
        "f64": pa.float64(), "b": pa.bool_(), "s": pa.string(), "Mu_pt": pa.list_(pa.float32()),
        "Mu_q": pa.list_(pa.int32()), "Jet_pt": pa.large_list(pa.float64()),
    }
)  # fmt: skip
WHOLE, REAL = ["i32", "u32", "i64", "u64"], ["f32", "f64"]


def narrow(value):
    return float(np.float32(value))


specials = st.sampled_from([0.0, -0.0, math.nan, math.inf, -math.inf, 0.1, 2.0**53, 2.0**63, 2.0**64, 1.5])
reals = specials | st.floats(allow_subnormal=False)
singles = reals.map(lambda x: narrow(x) if not math.isfinite(x) or abs(x) < 3e38 else 1.0)


def whole(low, high):
    return (
        st.sampled_from([low, low + 1, high, high - 1])
        | st.integers(max(low, -4), 4)
        | st.integers(low, high)
    )


I32, U32 = whole(-(2**31), 2**31 - 1), whole(0, 2**32 - 1)
I64, U64 = whole(-(2**63), 2**63 - 1), whole(0, 2**64 - 1)


def maybe(strategy):
    return st.none() | strategy


muons = maybe(st.lists(st.tuples(maybe(singles), maybe(st.integers(-2, 2))), max_size=3))
rows = st.lists(
    st.fixed_dictionaries(
        {
            "i32": maybe(I32), "u32": maybe(U32), "i64": maybe(I64), "u64": maybe(U64), "f32": maybe(singles),
            "f64": maybe(reals), "b": maybe(st.booleans()), "s": maybe(st.sampled_from(["", "a", "é", "ab"])),
            "mu": muons, "Jet_pt": maybe(st.lists(maybe(reals), max_size=3)),
        }
    ),
    max_size=12,
)  # fmt: skip


def batch_of(table):
    flat = []
    for row in table:
        row = dict(row)
        mu = row.pop("mu")
        row["Mu_pt"] = None if mu is None else [m[0] for m in mu]
        row["Mu_q"] = None if mu is None else [m[1] for m in mu]
        flat.append(row)
    return pa.RecordBatch.from_pylist(flat, SCHEMA), flat


literals = st.builds(lambda v: {"lit": v}, st.integers(-(2**63), 2**64 - 1) | st.integers(-3, 3)) | st.builds(
    lambda v: {"lit": v}, st.sampled_from([0.1, 0.5, -1.5, 1e300, 2.0**53, 0.0])
)
numbers = st.sampled_from([{"col": c} for c in WHOLE + REAL]) | literals
muon = st.sampled_from([{"var": "m.pt"}, {"var": "m.q"}]) | numbers
COMPARISONS = st.sampled_from(["<", "<=", ">", ">=", "==", "!="])


def comparison(operand):
    return st.builds(lambda op, a, b: {op: [a, b]}, COMPARISONS, operand, operand)


def membership(operand):
    values = st.lists(st.sampled_from([0, 1, 0.5, 0.1, 2**32 - 1, -1, None]), max_size=4)
    options = st.fixed_dictionaries({"null": st.booleans(), "nan": st.booleans()})
    return st.builds(lambda a, v, o: {"in": [a, v, o]}, operand, values, options)


def logic(leaf):
    return st.recursive(
        leaf,
        lambda inner: (
            st.builds(
                lambda op, a: {op: a}, st.sampled_from(["and", "or"]), st.lists(inner, min_size=1, max_size=3)
            )
            | st.builds(lambda a: {"not": a}, inner)
            | st.builds(lambda a, b, c: {"if": [a, b, c]}, inner, inner, inner)
        ),
        max_leaves=5,
    )


columns = st.sampled_from([{"col": c} for c in WHOLE + REAL])
tests = st.builds(lambda op, c: {op: c}, st.sampled_from(["is_null", "is_nan", "is_finite"]), columns)
object_cuts = logic(comparison(muon) | tests)
SCOPE = {"each": "Mu", "as": "m"}
scoped = st.builds(lambda op, p: {op: [SCOPE, p]}, st.sampled_from(["any", "all"]), object_cuts)
counted = st.builds(lambda p, n: {">": [{"count": [SCOPE, p]}, {"lit": n}]}, object_cuts, st.integers(0, 2))
reduced = st.builds(
    lambda op, v, n: {"<=": [{op: [SCOPE, {"var": v}]}, n]},
    st.sampled_from(["sum", "min", "max"]), st.sampled_from(["m.pt", "m.q"]), numbers,
)  # fmt: skip
nested = st.builds(
    lambda a, b, op: {a: [SCOPE, {b: [{"each": {"p": "Jet_pt"}, "as": "j"}, {op: [{"var": "j.p"}, {"var": "m.pt"}]}]}]},  # noqa: E501 - a table row
    st.sampled_from(["any", "all"]), st.sampled_from(["any", "all"]), COMPARISONS,
)  # fmt: skip
cuts = logic(
    comparison(numbers) | membership(columns) | tests | st.just({"col": "b"}) | scoped | counted | reduced | nested  # noqa: E501 - a table row
    | st.just({"==": [{"col": "s"}, {"lit": "a"}]}) | st.just({">": [{"len": {"col": "Jet_pt"}}, {"lit": 1}]})
)  # fmt: skip


def exactly(op, a, b):
    """A comparison by value: fractions for finite numbers, IEEE for the others."""
    if a is None or b is None:
        return None
    if (isinstance(a, float) and math.isnan(a)) or (isinstance(b, float) and math.isnan(b)):
        return op == "!="
    if all(isinstance(v, int | float) and math.isfinite(v) for v in (a, b)):
        a, b = Fraction(a), Fraction(b)
    return {"<": a < b, "<=": a <= b, ">": a > b, ">=": a >= b, "==": a == b, "!=": a != b}[op]


def reference(node, row, env=()):
    """One expression on one row, recursively, in plain Python."""
    env = dict(env)
    ((op, body),) = node.items()
    go = lambda n, more=(): reference(n, row, {**env, **dict(more)})  # noqa: E731
    if op == "col":
        return row[body]
    if op == "lit":
        return body
    if op == "var":
        return env[body]
    if op in ("<", "<=", ">", ">=", "==", "!="):
        return exactly(op, go(body[0]), go(body[1]))
    if op in ("and", "or"):
        found = [go(n) for n in body]
        if (op == "or") in found:
            return op == "or"
        return None if None in found else op == "and"
    if op == "not":
        inner = go(body)
        return None if inner is None else not inner
    if op == "if":
        cond, a, b = (go(n) for n in body)
        return None if cond is None else a if cond else b
    value = go(body) if op in ("is_null", "is_nan", "is_finite", "len") else None
    if op == "is_null":
        return value is None
    if op in ("is_nan", "is_finite"):
        return None if value is None else {"is_nan": math.isnan, "is_finite": math.isfinite}[op](value)
    if op == "len":
        return None if value is None else len(value)
    if op == "in":
        value, options = go(body[0]), body[2]
        if value is None:
            return True if options["null"] else None if body[1] or options["nan"] else False
        if isinstance(value, float) and math.isnan(value):
            return options["nan"]
        return any(exactly("==", value, member) for member in body[1] if member is not None)
    return aggregate(op, body, row, env)


def aggregate(op, body, row, env):
    scope, inner = body
    each, name = scope["each"], scope["as"]
    lists = (
        {f: row[f"{each}_{f}"] for f in ("pt", "q")} if each == "Mu" else {f: row[c] for f, c in each.items()}
    )
    if any(v is None for v in lists.values()):
        return None
    found = [
        reference(inner, row, {**env, **{f"{name}.{f}": values[n] for f, values in lists.items()}})
        for n in range(len(next(iter(lists.values()))))
    ]
    if op in ("any", "all"):
        if (op == "any") in found:
            return op == "any"
        return None if None in found else op == "all"
    there = [v for v in found if v is not None]
    if op == "count":
        return sum(1 for v in there if v)
    if op == "sum":
        total = 0
        for v in there:
            total = total + v
        return total
    there = [v for v in there if v == v] or there
    return (min if op == "min" else max)(there) if there else None


@settings(max_examples=80, deadline=None)
@given(rows, cuts)
def test_every_cut_means_the_same_row_by_row_and_at_once(table, cut):
    batch, flat = batch_of(table)
    found = Evaluator(compile_expression(cut, None), SCHEMA).run(batch).cast(pa.bool_()).to_pylist()
    assert found == [reference(cut, row) for row in flat]


@settings(max_examples=30, deadline=None)
@given(rows, cuts, st.integers(1, 400))
def test_memory_for_intermediate_results_does_not_change_the_answer(table, cut, budget):
    batch, flat = batch_of(table)
    evaluator = Evaluator(compile_expression(cut, None), SCHEMA, 16 * 16 + budget)
    evaluator._slice = 2
    assert evaluator.run(batch).cast(pa.bool_()).to_pylist() == [reference(cut, row) for row in flat]


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(["+", "-", "*", "//"]), maybe(I32), maybe(U32))
def test_integer_arithmetic_is_exact_in_the_wider_signed_type_or_an_error(op, a, b):
    batch = pa.record_batch({"a": pa.array([a], pa.int32()), "b": pa.array([b], pa.uint32())})
    run = Evaluator(compile_expression({op: [{"col": "a"}, {"col": "b"}]}, None), batch.schema)
    assert run.type == pa.int64()
    exact = None
    if a is not None and b is not None:
        if op == "//" and b == 0:
            with pytest.raises(BadQuery, match="row 0"):
                run.run(batch)
            return
        exact = {"+": a + b, "-": a - b, "*": a * b, "//": abs(a) // max(b, 1) * (1 if a >= 0 else -1)}[op]
    if exact is not None and not -(2**63) <= exact < 2**63:
        with pytest.raises(BadQuery):
            run.run(batch)
        return
    assert run.run(batch).to_pylist() == [exact]


def value_of(expression, **columns):
    batch = pa.record_batch(columns)
    return Evaluator(compile_expression(expression, None), batch.schema).run(batch).to_pylist()


def test_overflow_names_the_row_it_happens_in():
    big = pa.array([1, 2, 2**31 - 1, 3], pa.int32())
    with pytest.raises(BadQuery, match="row 2") as caught:
        value_of({"+": [{"col": "x"}, {"lit": 1}]}, x=big)
    assert caught.value.detail["reason"] == "overflow"


def test_a_float32_column_is_compared_with_the_decimal_that_was_written():
    x = pa.array([0.1, 0.25], pa.float32())
    assert value_of({">": [{"col": "x"}, {"lit": 0.1}]}, x=x) == [True, True]
    assert value_of({"==": [{"col": "x"}, {"lit": 0.1}]}, x=x) == [False, False]
    assert value_of({"==": [{"col": "x"}, {"lit": 0.1, "type": "float32"}]}, x=x) == [True, False]


def test_an_unsigned_counter_is_above_minus_one():
    assert value_of({">=": [{"col": "n"}, {"lit": -1}]}, n=pa.array([0, 2**32 - 1], pa.uint32())) == [
        True,
        True,
    ]


def test_division_by_zero_is_infinite_for_slash_and_null_for_remainder():
    x = pa.array([1, 0, -1], pa.int32())
    zero = {"lit": 0}
    assert value_of({"/": [{"col": "x"}, zero]}, x=x)[::2] == [math.inf, -math.inf]
    assert value_of({"%": [{"col": "x"}, zero]}, x=x) == [None, None, None]


@pytest.mark.parametrize(
    ("strict", "index", "answer"),
    [(False, 0, [1, None, None]), (False, -1, [3, None, None]), (False, 5, [None] * 3)],
)
def test_an_element_beyond_a_list_is_null(strict, index, answer):
    lists = pa.array([[1, 2, 3], [], None])
    assert value_of({"at": [{"col": "x"}, index], "strict": strict}, x=lists) == answer


def test_a_strict_element_beyond_a_list_is_an_error_with_the_row():
    with pytest.raises(BadQuery, match="row 1"):
        value_of({"at": [{"col": "x"}, 0], "strict": True}, x=pa.array([[1], [], None]))


def test_lists_of_one_scope_must_be_of_equal_length():
    pred = {">": [{"var": "m.a"}, {"var": "m.b"}]}
    scope = {"each": {"a": "x", "b": "y"}, "as": "m"}
    with pytest.raises(BadQuery, match=r"row 1: 'x' has 2 objects and 'y' 1"):
        value_of({"any": [scope, pred]}, x=pa.array([[1], [1, 2]]), y=pa.array([[1], [1]]))


def test_a_sum_of_64_bit_integers_that_wraps_is_an_error_and_one_at_the_border_is_not():
    scope = {"each": {"v": "x"}, "as": "m"}
    total = {"sum": [scope, {"var": "m.v"}]}
    top = 2**63 - 1
    assert value_of(total, x=pa.array([[top, -top, 5], [top]])) == [5, top]
    with pytest.raises(BadQuery, match="row 1"):
        value_of(total, x=pa.array([[1], [top, 1]]))


def test_objects_are_cut_out_of_all_lists_of_a_collection_at_once():
    batch = pa.record_batch(
        {"Mu_pt": pa.array([[5.0, 30.0], [], None, [40.0]]), "Mu_q": pa.array([[1, -1], [], None, [1]])}
    )
    cut = {"keep": [{"each": "Mu"}, {">": [{"var": "Mu.pt"}, {"lit": 20}]}]}
    program = compile_expression(cut, ((None, "columns"), 0))
    found = Evaluator(program, batch.schema, more=["Mu_q"]).run(batch)
    assert found.flatten()[0].to_pylist() == [[30.0], [], None, [40.0]]
    assert found.flatten()[1].to_pylist() == [[-1], [], None, [1]]


def test_a_collection_may_be_a_list_of_structs():
    muons = pa.array([[{"pt": 30.0, "q": 1}], [], [{"pt": 3.0, "q": 1}, {"pt": None, "q": -1}]])
    assert value_of({"any": [{"each": "Mu"}, {">": [{"var": "Mu.pt"}, {"lit": 20}]}]}, Mu=muons) == [
        True,
        False,
        None,
    ]


def test_one_row_with_more_objects_than_fit_is_refused_and_many_rows_are_split():
    scope = {"each": {"v": "x"}, "as": "m"}
    program = compile_expression({"count": [scope]}, None)
    wide = pa.record_batch({"x": pa.array([[1] * 60] * 4)})
    assert Evaluator(program, wide.schema, 16 * 100).run(wide).to_pylist() == [60] * 4
    with pytest.raises(LimitExceeded, match="row 0"):
        Evaluator(program, wide.schema, 16 * 50).run(wide)


def test_two_thousand_levels_are_evaluated_without_recursion():
    cut = {"col": "b"}
    for _ in range(1999):
        cut = {"not": cut}
    assert value_of(cut, b=pa.array([True, None, False])) == [False, None, True]


@pytest.mark.parametrize(
    "cut",
    [
        {"<": [{"col": "s"}, {"lit": 1}]}, {"and": [{"col": "i32"}, {"col": "b"}]}, {"+": [{"col": "s"}, {"lit": 1}]},  # noqa: E501 - a table row
        {"len": {"col": "i32"}}, {"sqrt": {"col": "s"}}, {"any": [SCOPE, {"var": "m.pt"}]},
        {"sum": [SCOPE, {">": [{"var": "m.pt"}, {"lit": 1}]}]}, {"any": [{"each": {"x": "i32"}, "as": "m"}, {"lit": True}]},  # noqa: E501 - a table row
        {"regex": [{"col": "i32"}, "a"]}, {"if": [{"col": "i32"}, {"lit": 1}, {"lit": 2}]},
    ],
)  # fmt: skip
def test_operands_of_the_wrong_type_are_refused_before_any_row_is_read(cut):
    with pytest.raises(BadQuery) as caught:
        Evaluator(compile_expression(cut, (None, "where")), SCHEMA)
    assert caught.value.detail["reason"] == "type-mismatch"
    assert caught.value.detail["pointer"].startswith("/where")


def test_an_unknown_column_names_the_nearest():
    with pytest.raises(UnknownColumn, match="Mu_pt"):
        Evaluator(compile_expression({"any": [SCOPE, {">": [{"var": "m.ptt"}, {"lit": 1}]}]}, None), SCHEMA)


def test_names_are_taken_literally_dots_and_all():
    assert value_of({"==": [{"col": "a.b"}, {"lit": 1}]}, **{"a.b": pa.array([1, 2])}) == [True, False]


def test_a_bad_pattern_is_an_error_of_the_query():
    with pytest.raises(BadQuery):
        value_of({"regex": [{"col": "s"}, "("]}, s=pa.array(["a"]))
