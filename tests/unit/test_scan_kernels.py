"""Each operator alone against plain Python and NumPy scalars; types that only some files have."""

import math

import numpy as np
import pyarrow as pa
import pytest

from doma.core.errors import BadQuery
from doma.scan.evaluate import Evaluator
from doma.scan.grammar import compile_expression

X = [None, 0.0, -0.0, 0.5, -0.75, 2.5, 1e300, math.nan, math.inf, -math.inf]


def power(x, y):
    # NumPy takes the square root for 0.5, C's pow (and IEEE 754) gives +inf here.
    return math.inf if (x, y) == (-math.inf, 0.5) else np.power(x, y)


def value_of(expression, **columns):
    batch = pa.record_batch(columns)
    return Evaluator(compile_expression(expression, None), batch.schema).run(batch)


def agree(found, expected):
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert (a is None) == (b is None)
        if a is not None and not (math.isnan(a) and math.isnan(b)):
            assert a == pytest.approx(b, rel=1e-14)


@pytest.mark.parametrize(
    ("op", "numpy"),
    [
        ("sqrt", np.sqrt), ("exp", np.exp), ("log", np.log), ("log10", np.log10), ("sin", np.sin), ("cos", np.cos),  # noqa: E501 - a table row
        ("tan", np.tan), ("sinh", np.sinh), ("cosh", np.cosh), ("tanh", np.tanh), ("asin", np.arcsin),
        ("acos", np.arccos), ("atan", np.arctan), ("floor", np.floor), ("ceil", np.ceil), ("round", np.round),
        ("neg", np.negative), ("abs", np.abs),
    ],
)  # fmt: skip
def test_functions_of_one_number_follow_ieee(op, numpy):
    with np.errstate(all="ignore"):
        expected = [None if x is None else float(numpy(np.float64(x))) for x in X]
    agree(value_of({op: {"col": "x"}}, x=pa.array(X)).to_pylist(), expected)


@pytest.mark.parametrize(
    ("op", "numpy"),
    [
        ("+", np.add), ("-", np.subtract), ("*", np.multiply), ("/", np.divide), ("%", np.fmod), ("**", power),  # noqa: E501 - a table row
        ("atan2", np.arctan2), ("min2", np.fmin), ("max2", np.fmax), ("//", np.divide),
    ],
)  # fmt: skip
def test_functions_of_two_numbers_follow_ieee(op, numpy):
    a, b = [x for x in X for _ in X], X * len(X)
    with np.errstate(all="ignore"):
        expected = [
            None if None in (x, y) else float(numpy(np.float64(x), np.float64(y)))
            for x, y in zip(a, b, strict=True)
        ]
    agree(value_of({op: [{"col": "a"}, {"col": "b"}]}, a=pa.array(a), b=pa.array(b)).to_pylist(), expected)


@pytest.mark.parametrize(
    ("a", "b", "common"),
    [
        (pa.float32(), pa.float32(), pa.float32()), (pa.float32(), pa.float64(), pa.float64()),
        (pa.int8(), pa.int8(), pa.int8()), (pa.uint8(), pa.uint8(), pa.int16()), (pa.uint32(), pa.int8(), pa.int64()),  # noqa: E501 - a table row
        (pa.uint64(), pa.uint64(), pa.uint64()), (pa.uint64(), pa.int64(), pa.int64()), (pa.int32(), pa.float32(), pa.float32()),  # noqa: E501 - a table row
    ],
)  # fmt: skip
def test_arithmetic_is_done_in_the_agreed_type(a, b, common):
    found = value_of({"+": [{"col": "a"}, {"col": "b"}]}, a=pa.array([1], a), b=pa.array([2], b))
    assert found.type == common
    assert found.to_pylist() == [3]


def test_a_literal_takes_the_type_beside_it_only_where_that_is_exact():
    x = pa.array([2.0], pa.float32())
    assert value_of({"*": [{"col": "x"}, {"lit": 0.5}]}, x=x).type == pa.float32()
    assert value_of({"*": [{"col": "x"}, {"lit": 0.1}]}, x=x).type == pa.float64()
    assert value_of({"+": [{"col": "n"}, {"lit": 1}]}, n=pa.array([2**32 - 1], pa.uint32())).to_pylist() == [
        2**32
    ]


@pytest.mark.parametrize(
    ("cast", "safe", "value", "answer"),
    [
        ("int32", True, 2.0, 2),
        ("int32", False, 2.7, 2),
        ("float32", True, 0.5, 0.5),
        ("string", True, 1.5, "1.5"),
    ],
)
def test_casts_give_the_value_in_the_other_type(cast, safe, value, answer):
    assert value_of({"cast": [{"col": "x"}, cast], "safe": safe}, x=pa.array([value])).to_pylist() == [answer]


def test_a_safe_cast_that_loses_something_is_an_error_with_the_row():
    with pytest.raises(BadQuery, match="row 1"):
        value_of({"cast": [{"col": "x"}, "int8"]}, x=pa.array([1.0, 1.5]))


@pytest.mark.parametrize(
    ("cut", "answer"),
    [
        ({"starts_with": [{"col": "s"}, "a"]}, [True, False, None]), ({"ends_with": [{"col": "s"}, "é"]}, [False, True, None]),  # noqa: E501 - a table row
        ({"contains": [{"col": "s"}, "b"]}, [True, False, None]), ({"like": [{"col": "s"}, "_b%"]}, [True, False, None]),  # noqa: E501 - a table row
        ({"regex": [{"col": "s"}, "^a.c$"]}, [True, False, None]), ({"str_len": {"col": "s"}}, [3, 1, None]),
        ({"upper": {"col": "s"}}, ["ABC", "É", None]), ({"<": [{"col": "s"}, {"lit": "b"}]}, [True, False, None]),  # noqa: E501 - a table row
        ({"in": [{"col": "s"}, ["é", "x"]]}, [False, True, None]), ({"coalesce": [{"col": "s"}, {"lit": "-"}]}, ["abc", "é", "-"]),  # noqa: E501 - a table row
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
def test_text_is_compared_as_it_is_written(cut, answer, kind):
    assert value_of(cut, s=pa.array(["abc", "é", None], kind)).to_pylist() == answer


def test_timestamps_are_compared_at_the_finer_unit():
    seconds = pa.array([1, 2, None], pa.timestamp("s"))
    cut = {">=": [{"col": "t"}, {"lit": 1500, "type": "timestamp[ms]"}]}
    assert value_of(cut, t=seconds).to_pylist() == [False, True, None]
    member = {
        "in": [{"col": "t"}, [{"lit": 2000, "type": "timestamp[ms]"}, {"lit": 1500, "type": "timestamp[ms]"}]]
    }
    assert value_of(member, t=seconds).to_pylist() == [False, True, None]


def test_nested_fields_are_null_where_their_parent_is():
    st = pa.array([{"a": {"b": 1}}, {"a": None}, None])
    assert value_of({"col": ["st", "a", "b"]}, st=st).to_pylist() == [1, None, None]


def test_means_and_extremes_skip_nulls_and_nan():
    lists = pa.array([[1.0, None, 3.0], [None], [], None, [math.nan, 2.0], [math.nan]])
    scope = {"each": {"v": "x"}, "as": "m"}
    found = {
        op: value_of({op: [scope, {"var": "m.v"}]}, x=lists).to_pylist()
        for op in ("mean", "min", "max", "count")
        if op != "count"
    }
    assert found["mean"][:4] == [2.0, None, None, None]
    assert math.isnan(found["mean"][4])
    assert found["min"][:5] == [1.0, None, None, None, 2.0]
    assert math.isnan(found["max"][5])
    assert value_of({"sum": [scope, {"var": "m.v"}]}, x=lists).to_pylist()[:4] == [4.0, 0.0, 0.0, None]


def test_both_sides_null_typed_give_null():
    assert value_of({"==": [{"lit": None}, {"col": "x"}]}, x=pa.array([1, 2])).to_pylist() == [None, None]
    assert value_of({"==": [{"col": "x"}, {"col": "x"}]}, x=pa.nulls(2)).to_pylist() == [None, None]
    assert value_of({"is_null": {"lit": None}}, x=pa.array([1, 2])).to_pylist() == [True, True]


def test_slices_of_an_array_are_seen_from_their_own_start():
    whole = pa.array([[1], [2, 3], None, [4]])
    total = {"sum": [{"each": {"v": "x"}, "as": "m"}, {"var": "m.v"}]}
    assert value_of(total, x=whole.slice(1)).to_pylist() == [5, None, 4]
    assert value_of({"at": [{"col": "x"}, -1]}, x=whole.slice(1, 2)).to_pylist() == [3, None]
