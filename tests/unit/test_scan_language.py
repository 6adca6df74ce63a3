"""The languages of a scan: JSON, text, pyarrow expressions, tickets and pruning, without any file."""

import contextlib
import json

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from doma.auth.model import Identity
from doma.core.errors import (
    BadQuery,
    BadRequest,
    DomaError,
    Forbidden,
    LimitExceeded,
    PreconditionFailed,
    Unsupported,
)
from doma.scan import convert, jsontext, text
from doma.scan.catalog import unified
from doma.scan.flighterror import from_flight, to_flight
from doma.scan.grammar import compile_expression
from doma.scan.model import build, parse
from doma.scan.plan import FileRef, Ticket, can_skip, owner_of, seal, unseal

COL = {"col": "x"}
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(values)
def test_json_is_read_and_written_as_the_standard_library_does(value):
    try:
        expected = json.loads(json.dumps(value))
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return
    assert jsontext.read(json.dumps(value)) == expected
    assert json.loads(jsontext.write(value)) == expected


@given(st.text(alphabet='{}[]",:0123456789.eE+-truefalsn \\u', max_size=30))
@example('{"a":1,}')
@example("[1,]")
@example("01")
@example('"\\ud800"')
def test_what_is_no_json_for_others_is_none_for_us(source):
    try:
        expected = json.loads(source, object_pairs_hook=_unique)
    except ValueError:
        with pytest.raises(BadQuery):
            jsontext.read(source)
        return
    if source.isascii() and "\\u" not in source:
        assert jsontext.read(source) == expected


def _unique(pairs):
    if len({key for key, _ in pairs}) != len(pairs):
        raise ValueError("twice")
    return dict(pairs)


def test_deep_json_is_read_and_deeper_refused():
    deep = jsontext.read("[" * 5000 + "]" * 5000)
    assert jsontext.write(deep) == "[" * 5000 + "]" * 5000
    with pytest.raises(LimitExceeded):
        jsontext.read("[" * 20_000)
    with pytest.raises(LimitExceeded):
        jsontext.read(b" " * (5 << 20))


def nested(depth):
    body = COL
    for _ in range(depth - 1):
        body = {"not": body}
    return {"v": 1, "from": "/site/a", "where": body}


def test_the_limits_of_depth_nodes_and_values_hold():
    assert build(nested(2000)).where is not None
    with pytest.raises(LimitExceeded, match="2000"):
        build(nested(2001))
    with pytest.raises(LimitExceeded, match="50000"):
        build({"v": 1, "from": "/site/a", "where": {"and": [COL] * 50_001}})
    with pytest.raises(LimitExceeded, match="100001"):
        build({"v": 1, "from": "/site/a", "where": {"in": [COL, [1] * 100_001]}})
    scope = {"each": "Muon"}
    body = COL
    for _ in range(9):
        body = {"any": [scope, body]}
    with pytest.raises(LimitExceeded, match="nested scopes"):
        build({"v": 1, "from": "/site/a", "where": body})


BAD = [
    ({"<": [COL]}, "/where/<"), ({"and": []}, "/where/and"), ({"lit": 2**64}, "/where/lit"), ({}, "/where"),
    ({"lit": 300, "type": "int8"}, "/where/lit"), ({"lit": [1]}, "/where/lit"), ({"var": "mu.pt"}, "/where/var"),  # noqa: E501 - a table row
    ({"not": [COL]}, "/where/not"), ({"cast": [COL]}, "/where/cast"), ({"at": [COL, 1.5]}, "/where/at"),
    ({"any": [{"each": 3}, COL]}, "/where/any/0"), ({"any": [{"each": {"a": "b"}}, COL]}, "/where/any/0"),
    ({"and": [COL, {"oops": 1}]}, "/where/and/1"), ({"col": []}, "/where/col"), ({"in": [COL, 3]}, "/where/in"),  # noqa: E501 - a table row
    ({"keep": [{"each": "Muon"}, COL]}, "/where/keep"), ({"lit": "x", "type": "float64"}, "/where/lit"),
    ({"is_null": COL, "nan_is_null": 1}, "/where/is_null"), ({"any": [{"each": "M", "as": "a.b"}, COL]}, "/where/any/0"),  # noqa: E501 - a table row
]  # fmt: skip


@pytest.mark.parametrize(("where", "pointer"), BAD)
def test_what_is_wrong_is_pointed_at(where, pointer):
    with pytest.raises(BadQuery) as caught:
        build({"v": 1, "from": "/site/a", "where": where})
    assert caught.value.detail["pointer"] == pointer


@pytest.mark.parametrize("op", ["dr", "bitand", "argmax"])
def test_what_comes_later_is_said_to_be_unsupported(op):
    with pytest.raises(Unsupported, match=op):
        build({"v": 1, "from": "/site/a", "where": {op: [COL, COL]}})


def test_long_chains_keep_few_results_alive():
    many = {"and": [{">": [{"col": f"x{n}"}, {"lit": n}]} for n in range(5000)]}
    assert compile_expression(many, None).live() < 10


TEXTS = [
    ("nMuon >= 2 and MET_pt > 30.5", {"and": [{">=": [{"col": "nMuon"}, {"lit": 2}]}, {">": [{"col": "MET_pt"}, {"lit": 30.5}]}]}),  # noqa: E501 - a table row
    ("a or b and not c", {"or": [{"col": "a"}, {"and": [{"col": "b"}, {"not": {"col": "c"}}]}]}),
    ("a - b - c * -2 ** 2", {"-": [{"-": [{"col": "a"}, {"col": "b"}]}, {"*": [{"col": "c"}, {"neg": {"**": [{"lit": 2}, {"lit": 2}]}}]}]}),  # noqa: E501 - a table row
    ("x in [1, -2, 'a']", {"in": [COL, [1, -2, "a"]]}), ("x not in []", {"not": {"in": [COL, []]}}),
    ("any(Muon.pt > 20)", {"any": [{"each": "Muon", "as": "Muon"}, {">": [{"var": "Muon.pt"}, {"lit": 20}]}]}),  # noqa: E501 - a table row
    ("count(m in Muon: m.q > 0) == 1", {"==": [{"count": [{"each": "Muon", "as": "m"}, {">": [{"var": "m.q"}, {"lit": 0}]}]}, {"lit": 1}]}),  # noqa: E501 - a table row
    ("sum(Muon_pt) > 5", {">": [{"sum": [{"each": {"x": "Muon_pt"}, "as": "it"}, {"var": "it.x"}]}, {"lit": 5}]}),  # noqa: E501 - a table row
    ("min(a, 3) < max(b, 4)", {"<": [{"min2": [{"col": "a"}, {"lit": 3}]}, {"max2": [{"col": "b"}, {"lit": 4}]}]}),  # noqa: E501 - a table row
    ("`a b`[-1] > 0 && !(y == true)", {"and": [{">": [{"at": [{"col": "a b"}, -1]}, {"lit": 0}]}, {"not": {"==": [{"col": "y"}, {"lit": True}]}}]}),  # noqa: E501 - a table row
    ("starts_with(s, 'HLT_') or is_null(x)", {"or": [{"starts_with": [{"col": "s"}, "HLT_"]}, {"is_null": COL}]}),  # noqa: E501 - a table row
    ("if(a, 1, 2) == abs(-3)", {"==": [{"if": [{"col": "a"}, {"lit": 1}, {"lit": 2}]}, {"abs": {"lit": -3}}]}),  # noqa: E501 - a table row
    ("count(Muon) > 1", {">": [{"count": [{"each": "Muon"}]}, {"lit": 1}]}),
    ("any(m in Muon: not any(j in Jet: j.eta > m.eta))", {"any": [{"each": "Muon", "as": "m"}, {"not": {"any": [{"each": "Jet", "as": "j"}, {">": [{"var": "j.eta"}, {"var": "m.eta"}]}]}}]}),  # noqa: E501 - a table row
]  # fmt: skip


@pytest.mark.parametrize(("source", "expected"), TEXTS)
def test_a_cut_written_as_text_has_its_json_form(source, expected):
    found = text.expression(source)
    assert found == expected
    compile_expression(found, None)


@pytest.mark.parametrize(
    "source",
    ["", "a >", "(a", "a)", "a b", "1 < x < 3", "any(Muon_pt > 20)", "Muon.pt > 20", "any(Jet.pt > Muon.pt)", "f(x)",  # noqa: E501 - a table row
     "x in 3", "x in [a]", "a, b", "x[1.5]", "a @ b", "and", "x in [1", "any()", "any(a, b)", "x[", "`", "'a", "not",  # noqa: E501 - a table row
     "__import__('os')", "abs(1, 2)"],
)  # fmt: skip
def test_a_cut_that_is_not_understood_says_where(source):
    with pytest.raises(BadQuery, match="cut"):
        text.expression(source)


@given(st.text(alphabet="ab(Muon.pt )<>=!&|+-*/%[],:'\"`123 notandorin", max_size=40))
def test_no_text_leads_to_anything_but_a_query_or_its_error(source):
    with contextlib.suppress(DomaError):
        compile_expression(text.expression(source), None)


def test_ten_thousand_brackets_are_no_recursion():
    assert text.expression("(" * 10_000 + "x" + ")" * 10_000) == COL


def test_members_of_isin_keep_null_nan_and_pyarrows_false():
    plain = convert.expression(pc.field("x").isin([1, 2]))
    assert plain == {"coalesce": [{"in": [COL, [1, 2], {"null": False, "nan": False}]}, {"lit": False}]}
    assert convert.expression(pc.field("x").isin([1, None])) == {
        "in": [COL, [1], {"null": True, "nan": False}]
    }
    found = convert.expression(pc.field("x").isin(pa.array([1.5, float("nan")])))
    assert found["coalesce"][0] == {"in": [COL, [1.5], {"null": False, "nan": True}]}


def test_nested_fields_and_typed_literals_survive_conversion():
    found = convert.expression(pc.field("st", "a b") > pa.scalar(1.5, pa.float32()))
    assert found == {">": [{"col": ["st", "a b"]}, {"lit": 1.5, "type": "float32"}]}
    assert convert.expression(pc.field("t") == pa.scalar(5, pa.timestamp("ms")))["=="][1] == {
        "lit": 5,
        "type": "timestamp[ms]",
    }
    assert convert.expression(pc.field("x") < float("inf"))["<"][1] == {"lit": "inf", "type": "float64"}


def test_a_deep_expression_is_converted():
    deep = pc.field("x") > 0
    for _ in range(300):
        deep = ~deep
    assert build({"v": 1, "from": "/a", "where": convert.expression(deep)}).where is not None


KEY = b"k" * 32
FILES = (FileRef("site", "/a", "1"),)


def test_a_ticket_says_again_what_it_was_made_of():
    made = Ticket("s", "{}", FILES, 0, 1, "iss#alice", 100.0)
    assert unseal(seal(made, KEY), KEY, "iss#alice", 99.0) == made
    with pytest.raises(PreconditionFailed):
        unseal(seal(made, KEY), KEY, "iss#alice", 100.0)
    with pytest.raises(Forbidden):
        unseal(seal(made, KEY), KEY, owner_of(Identity("iss", "bob", 1.0)), 99.0)
    with pytest.raises(BadRequest):
        unseal(seal(made, b"other"), KEY, "iss#alice", 99.0)


def test_a_ticket_above_64_kib_is_refused():
    import random

    noise = random.Random(1).randbytes(200_000).hex()
    with pytest.raises(LimitExceeded, match="ticket"):
        seal(Ticket("s", noise, FILES, 0, 1, "#", 1.0), KEY)


def skips(cut, low, high):
    return can_skip(
        compile_expression(text.expression(cut), None), lambda c: (low, high) if c == "x" else None
    )


@given(
    st.sampled_from(["<", "<=", ">", ">=", "==", "!="]),
    st.integers(-5, 5),
    st.integers(-5, 5),
    st.integers(0, 4),
    st.booleans(),
)
def test_a_group_is_skipped_exactly_when_no_value_in_its_bounds_can_pass(op, value, low, width, flipped):
    cut = f"{value} {op} x" if flipped else f"x {op} {value}"
    passing = [x for x in range(low, low + width + 1) if eval(cut, {"x": x})]  # Python is the reference
    assert skips(cut, low, low + width) == (not passing)
    assert skips(f"y > 3 and {cut}", low, low + width) == (not passing)


def test_a_group_is_never_skipped_where_an_error_could_be_hidden_or_nothing_is_known():
    assert not skips("x > 5 and x + 1 > 0", 0, 1)
    assert not skips("y > 5", 0, 1)
    assert not skips("not (x > 5)", 0, 1)
    assert not skips("x > 5 or y > 5", 0, 1)


def test_types_that_do_not_widen_name_both_files():
    wide = unified(
        [("a", pa.schema({"x": pa.uint32()})), ("b", pa.schema({"x": pa.int64(), "y": pa.bool_()}))]
    )
    assert wide == pa.schema({"x": pa.int64(), "y": pa.bool_()})
    with pytest.raises(BadQuery, match=r"int64 in a but double in b"):
        unified([("a", pa.schema({"x": pa.int64()})), ("b", pa.schema({"x": pa.float64()}))])


@pytest.mark.parametrize("kind", sorted(DomaError.family.values(), key=str))
def test_every_error_comes_back_from_flight_as_the_same_class(kind):
    error = kind("/site/a: gone [b] {c}:end; try é", retry_after=2.0, near=["a"])
    found = from_flight(to_flight(error))
    assert type(found) is kind
    assert found.message == error.message
    assert found.retry_after == 2.0
    assert found.detail == {"near": ["a"]}


def test_a_query_may_be_sent_as_bytes_or_text():
    source = '{"v": 1, "from": "/site/a", "limit": 3}'
    assert parse(source) == parse(source.encode())
    assert parse(source).limit == 3
