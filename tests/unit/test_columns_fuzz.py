"""Random well-typed queries: the engine against a plain interpreter of the same tree, event by event."""

# Draws are of any type, and what no case takes goes to the line after it.
# mypy: disable-error-code="exhaustive-match, no-any-return"

import math
from typing import Any

import awkward as ak
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from doma.columns.evaluate import Table, run
from doma.columns.funcadl import _combined, _picked
from doma.columns.plan import Plan, compile_text
from doma.columns.sequences import extreme
from doma.core.errors import BadQuery
from tests.clients.reference_types import plain
from tests.unit.columns_loops import (
    CALLS,
    LISTS,
    SCALARS,
    TEXTS,
    Events,
    Members,
    Tree,
    meant,
    same,
    spelled,
    true,
    typed,
)


class Writer:
    """Draws trees of a wanted type; ``scope`` holds the variables of the lambdas around, with their types."""

    def __init__(self, draw: Any) -> None:
        self.draw, self.names = draw, 0

    def one(self, options: list[Any]) -> Any:
        return self.draw(st.sampled_from(options))

    def number(self, depth: int, scope: dict[str, str]) -> Tree:
        leaves: list[Tree] = [("column", n) for n in "ilufd"]
        leaves += [("var", n) for n, t in scope.items() if t == "number"] * 3
        pairs = [n for n, t in scope.items() if t == "pair"]
        leaves += [("field", ("var", n), i) for n in pairs for i in (0, 1)] * 2
        zips = [n for n, t in scope.items() if t == "record"]
        leaves += [("field", ("var", n), i) for n in zips for i in "pq"] * 2
        if depth <= 0:
            return self.one(leaves)
        kinds = ["leaf", "sign", "sign", "constant", "call", "if", "neg", "Count", "len", "Sum", "default"]
        match self.one([*kinds, "power", "bits", "fold"]):
            case "sign":
                sign = self.one(["+", "-", "*", "/", "%", "//"])
                return sign, self.number(depth - 1, scope), self.number(depth - 1, scope)
            case "constant":
                sides = [self.number(depth - 1, scope), ("const", self.one([0, 1, 2, 3, 0.5, 2.5]))]
                return self.one(["+", "-", "*", "/", "%", "//"]), *self.draw(st.permutations(sides))
            case "call":
                name = self.one(list(CALLS))
                return name, *(self.number(depth - 1, scope) for _ in range(CALLS[name].nin))
            case "if":
                no = self.one([("const", 1), ("const", 0.5), self.number(depth - 1, scope)])
                return "if", self.truth(depth - 1, scope), self.number(depth - 1, scope), no
            case "neg":
                return "neg", self.number(depth - 1, scope)
            case "Count" | "len" as name:
                return name, self.numbers(depth - 1, scope)
            case "Sum":
                return "Sum", self.plain(depth - 1, scope)
            case "power":
                return "**", self.number(depth - 1, scope), ("const", self.one([0, 2, 3]))
            case "bits":
                return "+", self.whole(depth, scope), ("const", 0)  # a truth has no sign
            case "fold":
                return self.fold(depth, scope)
            case "default":
                return "default", self.found(self.numbers(depth - 1, scope)), self.one([0, 1, 0.5])
        return self.one(leaves)

    def whole(self, depth: int, scope: dict[str, str]) -> Tree:
        """Whole numbers and truths, bit by bit."""
        leaves: list[Tree] = [("column", n) for n in "ilub"]
        if depth <= 0:
            return self.one([*leaves, ("Count", self.numbers(0, scope))])
        match self.one(["pair", "constant", "shift", "~"]):
            case "pair":
                return self.one(["&", "|", "^"]), self.whole(depth - 1, scope), self.whole(depth - 1, scope)
            case "constant":
                return self.one(["&", "|", "^"]), self.whole(depth - 1, scope), ("const", self.one([0, 1, 6]))
            case "shift":
                return self.one(["<<", ">>"]), self.one(leaves[:3]), ("const", self.one([0, 1, 5]))
        return "~", self.whole(depth - 1, scope)

    def fold(self, depth: int, scope: dict[str, str]) -> Tree:
        source, seed = self.numbers(depth - 1, scope), self.one([0, 1, 0.5])
        self.names += 2
        acc, item = f"a{self.names}", f"v{self.names}"
        body = self.number(depth - 1, {**scope, acc: "number", item: "number"})
        return "fold", source, seed, acc, item, self.one([body, ("+", ("var", acc), body)])

    def text(self, depth: int, scope: dict[str, str]) -> Tree:
        leaves: list[Tree] = [("column", "s"), *(("var", n) for n, t in scope.items() if t == "text")]
        match self.one(["leaf", "default", "if"]) if depth > 0 else "leaf":
            case "default":
                found = self.one(["First", "Last"]), self.texts(depth - 1, scope)
                return "default", found, self.one(TEXTS)
            case "if" if not scope:
                return "if", self.truth(depth - 1, scope), self.text(depth - 1, scope), ("const", "none")
        return self.one(leaves)

    def texts(self, depth: int, scope: dict[str, str]) -> Tree:
        match self.one(["leaf", "Where", "slice", "Select", "Concat"]) if depth > 0 else "leaf":
            case "Where":
                source = self.texts(depth - 1, scope)
                return "Where", source, *self.function(self.truth, "text", depth, scope)
            case "slice":
                return "slice", self.texts(depth - 1, scope), self.ends()
            case "Select":
                source = self.one([self.texts, self.numbers])(depth - 1, scope)
                kind = "text" if source[-1] == "t" else "other"
                return "Select", source, *self.function(self.text, kind, depth, scope)
            case "Concat":
                return "Concat", self.texts(depth - 1, scope), ("column", "t")
        return "column", "t"

    def records(self, depth: int, scope: dict[str, str]) -> Tree:
        """A sequence of records."""
        match self.one(["leaf", "Where", "slice", "SelectMany"]) if depth > 0 else "leaf":
            case "Where":
                source = self.records(depth - 1, scope)
                return "Where", source, *self.function(self.truth, "record", depth, scope)
            case "slice":
                return "slice", self.records(depth - 1, scope), self.ends()
            case "SelectMany":
                source = self.numbers(depth - 1, scope)
                return "SelectMany", source, *self.function(self.records, "number", depth, scope)
        return "Zip", {"p": ("column", "p"), "q": ("column", "q")}

    def ends(self) -> Any:
        end = st.one_of(st.none(), st.integers(-3, 3))
        return self.draw(st.tuples(end, end, st.sampled_from([None, 1, 2, -1])))

    def truth(self, depth: int, scope: dict[str, str]) -> Tree:
        match self.one(
            ["b", "compare", "compare", "chain", "and", "or", "not", "in", "Any", "All", "text", "texts"]
        ):
            case "text":
                sides = [self.text(depth - 1, scope), self.one([("column", "s"), ("const", self.one(TEXTS))])]
                return self.one(["==", "!="]), *self.draw(st.permutations(sides))
            case "texts":
                options = [
                    ("in", self.text(depth - 1, scope), TEXTS[:2]),
                    ("Contains", self.texts(depth - 1, scope), self.one(TEXTS)),
                    ("Contains", self.numbers(depth - 1, scope), 1),
                ]
                return self.one(options)
            case "compare":
                right = self.one([self.number(depth - 1, scope), ("const", 1), ("const", 0.5)])
                return self.one(["==", "!=", "<", "<=", ">", ">="]), self.number(depth - 1, scope), right
            case "chain":
                return "chain", ("const", 0), self.number(depth - 1, scope), self.number(depth - 1, scope)
            case "and" | "or" as name if depth > 0:
                return name, self.truth(depth - 1, scope), self.truth(depth - 1, scope)
            case "not" if depth > 0:
                return "not", self.truth(depth - 1, scope)
            case "in":
                return "in", self.number(depth - 1, scope), [1, 2, 0.5]
            case "Any" | "All" as name if depth > 0:
                return (
                    name,
                    self.numbers(depth - 1, scope),
                    *self.function(self.truth, "number", depth, scope),
                )
        return "column", "b"

    def function(self, body: Any, kind: str, depth: int, scope: dict[str, str]) -> Tree:
        self.names += 1
        name = f"v{self.names}"
        return name, body(depth - 1, {**scope, name: kind})

    def plain(self, depth: int, scope: dict[str, str]) -> Tree:
        """Numbers of the file, of which sums are exact, filtered."""
        column = "column", self.one(list("pqr"))
        if depth > 0 and self.draw(st.booleans()):
            return "Where", column, *self.function(self.truth, "number", depth, scope)
        return column

    def numbers(self, depth: int, scope: dict[str, str]) -> Tree:
        if depth <= 0:
            return "column", self.one(list("pqr"))
        match self.one(
            ["plain", "Select", "Where", "slice", "order", "many", "pairs", "zip", "concat", "range"]
        ):
            case "range":
                high = self.one([("const", 3), ("Count", self.numbers(depth - 1, scope))])
                return "Range", ("const", self.one([-1, 0, 2])), high
            case "Select":
                return (
                    "Select",
                    self.numbers(depth - 1, scope),
                    *self.function(self.number, "number", depth, scope),
                )
            case "Where":
                return (
                    "Where",
                    self.numbers(depth - 1, scope),
                    *self.function(self.truth, "number", depth, scope),
                )
            case "slice":
                return "slice", self.numbers(depth - 1, scope), self.ends()
            case "order":
                name = self.one(["OrderBy", "OrderByDescending"])
                return name, self.plain(depth - 1, scope), *self.function(self.number, "number", 1, scope)
            case "many":
                source = self.numbers(depth - 1, scope)
                return "SelectMany", source, *self.function(self.numbers, "number", depth, scope)
            case "pairs":
                source = "Choose", self.numbers(depth - 1, scope)
                return "Select", source, *self.function(self.number, "pair", depth, scope)
            case "zip":
                source = self.records(depth - 1, scope)
                return "Select", source, *self.function(self.number, "record", depth, scope)
            case "concat":
                column = "column", self.one(list("pqr"))
                return "Concat", column, column
        return self.plain(depth - 1, scope)

    def found(self, source: Tree) -> Tree:
        names = [("First",), ("Last",), ("Max",), ("Min",), ("ElementAt", 1), ("ElementAt", -2)]
        name, *at = self.one(names)
        return name, source, *at

    def missing(self, depth: int) -> Tree:
        """What may be missing, and what is computed of it."""
        source = self.numbers(depth, {})
        found = self.found(source)
        match self.one(["bare", "sign", "if"]):
            case "sign":
                return self.one(["+", "*", "<", "=="]), found, self.number(1, {})
            case "if":
                return "if", (">", found, ("const", 1)), self.number(1, {}), ("const", 0)
        return found

    def nested(self, depth: int) -> Tree:
        source = self.numbers(depth, {})
        return "Select", source, *self.function(self.numbers, "number", depth, {})

    def columns(self, depth: int) -> Tree:
        """A record of columns."""
        kinds = [self.number, self.truth, self.numbers, self.text, self.texts]
        return "dict", {n: self.one(kinds)(depth, {}) for n in "xyz"[: self.one([1, 2, 3])]}

    def later(self, signs: list[str]) -> Tree:
        """Of a value of the column, where the event's branches are out of sight."""
        return self.one(signs), ("var", "v"), ("const", self.one([0, 1, 0.5]))

    def total(self) -> "list[Step]":
        """What makes one row of a column; often nothing."""
        names: list[Step] = [("Count", ()), ("Max", ()), ("Min", ()), ("First", ()), ("Last", ())]
        lambdas: list[Step] = [(n, self.later(["<", "!="])) for n in ("Any", "All")]
        last: list[Step] = [*names, *lambdas, ("ElementAt", ("const", 1)), ("Contains", ("const", 1))]
        return [self.one(last)] if self.draw(st.booleans()) else []


Step = tuple[str, Tree]
"""An operator over the events, with the body of its lambda or its argument."""


@st.composite
def queries(draw: Any) -> list[Step]:
    """Operators over the events, the argument being ``e``, or ``v`` for a value of the column."""
    writer = Writer(draw)
    depth = draw(st.integers(1, 3))
    steps: list[Step] = [("Where", writer.truth(2, {})) for _ in range(draw(st.sampled_from([0, 0, 1, 2])))]
    alone = ["number", "truth", "numbers", "missing", "nested", "text", "texts", "records", "columns"]
    kind = draw(st.sampled_from([*alone, "chain", "many", "table", "sum", "count"]))
    match kind:
        case "missing" | "nested" | "columns":
            return [*steps, ("Select", getattr(writer, kind)(depth))]
        case "chain" | "many":
            name, body = ("Select", writer.number) if kind == "chain" else ("SelectMany", writer.numbers)
            steps.append((name, body(depth, {})))
            if draw(st.booleans()):
                steps.append(("Where", writer.later(["<", "!=", ">="])))
                steps.append(("Select", writer.later(["+", "*", "/", "//", "%"])))
            return [*steps, *writer.total()]
        case "count":
            return [*steps, ("Count", ())]
        case "sum":
            return [*steps, ("SelectMany", writer.plain(depth, {})), ("Sum", ())]
        case "table":
            return [*steps, ("SelectMany", ("dict", {"p": ("column", "p"), "q": ("column", "q")}))]
    return [*steps, ("Select", getattr(writer, kind)(depth, {}))]


WHOLE = {"int32": (-(2**31), 2**31 - 1), "int64": (-(2**63), 2**63 - 1), "uint8": (0, 255)}


def values(dtype: str) -> st.SearchStrategy[Any]:
    if dtype == "bool":
        return st.booleans()
    if dtype.startswith("float"):
        return st.one_of(st.integers(-8, 8).map(lambda n: n / 2), st.sampled_from([math.nan, math.inf, -0.0]))
    return st.one_of(st.integers(0 if dtype == "uint8" else -4, 4), st.sampled_from(WHOLE[dtype]))


@st.composite
def records(draw: Any) -> list[dict[str, Any]]:
    rows = []
    for _ in range(draw(st.integers(0, 4))):
        sizes = {"p": draw(st.integers(0, 3)), "r": draw(st.integers(0, 3))}
        row = {n: draw(values(t)) for n, t in SCALARS.items()}
        row["s"] = draw(st.sampled_from(TEXTS))
        row["t"] = draw(st.lists(st.sampled_from(TEXTS), max_size=3))
        for name, dtype in LISTS.items():
            size = sizes.get(name, sizes["p"])
            row[name] = draw(st.lists(values(dtype), min_size=size, max_size=size))
        rows.append(row)
    return rows


def stored(rows: list[dict[str, Any]]) -> Events:
    columns = {n: ak.Array(np.array([r[n] for r in rows], dtype=t)) for n, t in SCALARS.items()}
    for name, dtype in LISTS.items():
        flat = ak.Array(np.array([x for r in rows for x in r[name]], dtype=dtype))
        columns[name] = ak.unflatten(flat, np.array([len(r[name]) for r in rows], dtype=np.int64))
    some = {"s": "a", "t": ["a"]}  # or the type of nothing were unknown
    return Events(columns | {n: ak.Array([*(r[n] for r in rows), v])[:-1] for n, v in some.items()})


def event(row: dict[str, Any]) -> dict[str, Any]:
    one = {n: np.dtype(t).type(row[n]) for n, t in SCALARS.items()}
    for name, dtype in LISTS.items():
        kind = np.dtype(dtype).type
        one[name] = Members(map(kind, row[name]), kind(1))
    return one | {"s": row["s"], "t": Members(row["t"], "a")}


SAMPLE = dict.fromkeys(SCALARS, 1) | {n: [1] for n in LISTS} | {"s": "a", "t": ["a"]}


def written(steps: list[Step]) -> str:
    """The query as qastle, its lambdas as Python text."""
    text, name = "(call EventDataset)", "e"
    for operator, body in steps:
        if not body:
            text = f"(call {operator} {text})"
        elif body[0] == "const":
            text = f"(call {operator} {text} {body[1]})"
        else:
            quoted = f"lambda {name}: {spelled(body)}".replace("\\", r"\\").replace("'", r"\'")
            text = f"(call {operator} {text} '{quoted}')"
        if operator.startswith("Select"):
            name = "v"
    return text


def looped(steps: list[Step], rows: list[Any]) -> tuple[list[Any], Any]:
    """The rows of the answer, and one more of their type."""
    values: list[Any] = [event(r) for r in rows]
    sample: Any = event(SAMPLE)
    name = "e"
    for operator, body in steps:

        def of(value: Any, name: str = name, body: Tree = body) -> Any:
            return meant(body, {name: value})

        match operator:
            case "Where":
                values = [v for v in values if true(of(v))]
            case "Select":
                values, sample, name = [of(v) for v in values], of(sample), "v"
            case "SelectMany":
                values, sample, name = [x for v in values for x in rows_of(of(v))], rows_of(of(sample)), "v"
                sample = sample.sample
            case "Any" | "All":
                hits = [true(of(v)) for v in values]
                values, sample = [np.bool_(any(hits) if operator == "Any" else all(hits))], np.bool_()
            case _:
                values = [meant((operator, ("var", "v"), *body[1:]), {"v": Members(values, sample)})]
                sample = None if values[0] is None else values[0]
    return values, sample


def rows_of(found: Any) -> Members:
    """A record of sequences as a sequence of records."""
    if isinstance(found, Members):
        return found
    columns = found.values()
    rows = [dict(zip(found, row, strict=True)) for row in zip(*columns, strict=True)]
    return Members(rows, {n: c.sample for n, c in found.items()})


def by_column(values: list[Any], sample: Any) -> dict[str, tuple[list[Any], str]]:
    """The rows as columns, with the type of each: a list of records is a record of lists."""
    if isinstance(sample, dict):
        return {n: ([v[n] for v in values], typed(s)) for n, s in sample.items()}
    if isinstance(sample, Members) and isinstance(sample.sample, dict):
        of = sample.sample.items()
        return {n: ([[x[n] for x in v] for v in values], f"var * {typed(s)}") for n, s in of}
    return {"": (values, typed(sample))}


def answered(plan: Plan, steps: list[list[Any]]) -> list[Table]:
    """The tables of a file that is read in steps, the one without rows first."""
    empty, *tables = (run(plan, stored(rows)) for rows in ([], *steps))
    if plan.pick is not None:
        return [_picked(empty, iter(tables), plan.pick)]
    return [_combined([empty, *tables])] if empty.total else [empty, *tables]


@given(queries(), records(), records())
def test_a_query_gives_what_a_loop_over_the_events_gives(query, rows, more):
    text = written(query)
    tables = answered(compile_text(text), [rows, more])
    with np.errstate(all="ignore"):
        wanted = by_column(*looped(query, [*rows, *more]))
    assert list(tables[0].columns) == list(wanted), text
    for name, (values, kind) in wanted.items():
        parts = [t.columns[name] for t in tables]
        found = [v for part in parts for v in part.to_list()]
        assert same(found, values), (text, name, found, values)
        # Steps of a file are written one after the other: what is in them must not decide on the type.
        assert len({str(p.type.content) for p in parts}) == 1, text
        assert kind in {"", plain(parts[0].type.content)}, (text, name)


def test_the_greatest_of_nothing_but_nan_is_nan_and_not_infinite():
    rows = [[math.nan], [], [math.nan, 2.0], [math.nan, -math.inf]]
    data = ak.values_astype(ak.Array(rows), np.float32)
    found = extreme("Max", data, axis=-1)
    assert repr(found.to_list()) == "[nan, None, 2.0, -inf]"
    assert found.type == ak.max(data, axis=-1).type
    nothing = extreme("Min", ak.Array(np.array([math.nan])), axis=None, keepdims=True)
    assert repr(nothing.to_list()) == "[nan]"


def test_a_constant_that_does_not_fit_its_branch_is_refused_with_what_to_do():
    rows = Events({"i": ak.Array([0]), "u": ak.Array(np.array([200], dtype=np.uint8))})
    plan = "(call Select (call EventDataset) 'lambda e: {} + 300')"
    with pytest.raises(BadQuery, match=r"does not fit the type; convert the other side, as in np.int64"):
        run(compile_text(plan.format("e.u")), rows)
    assert run(compile_text(plan.format("np.int64(e.u)")), rows).columns[""].to_list() == [500]


@pytest.mark.parametrize("query", ["e.p.First(0)", "e.q.First(0.5)", "e.p.Last(1)", "e.q.Max(0.5)"])
def test_the_type_of_a_default_does_not_depend_on_whether_it_is_needed(query):
    plan = compile_text(f"(call Select (call EventDataset) 'lambda e: {query}')")
    row = SAMPLE | {"r": []}
    steps = [row], [], [{**row, "p": [], "q": []}]
    assert len({str(run(plan, stored(rows)).columns[""].type.content) for rows in steps}) == 1


@pytest.mark.parametrize(
    ("query", "dtype"),
    [
        ("e.p.First(0)", "float32"), ("e.p.Max(-999.9)", "float32"), ("e.p.Last(1e300)", "float64"),
        ("e.p.First(np.float64(0))", "float64"), ("e.q.ElementAt(1, -1)", "int32"),
        ("e.q.Min(0.5)", "float64"),
        ("e.q.First(2**40)", "int64"), ("e.q.First(True)", "int32"), ("e.w.First(255)", "uint8"),
        ("e.w.First(-1)", "int64"), ("e.q.Select(lambda x: x > 0).First(False)", "bool"),
    ],
)  # fmt: skip
def test_a_default_keeps_the_type_of_what_it_stands_in_for_as_long_as_it_fits(query, dtype):
    plan = compile_text(f"(call Select (call EventDataset) 'lambda e: {query}')")
    for rows in ([[1], []], [[1, 2]], [[]], []):
        data = {"w": "uint8", **LISTS}
        columns = {n: ak.values_astype(ak.Array([*rows, [1]])[:-1], t) for n, t in data.items()}
        column = run(plan, Events({"i": ak.Array(np.zeros(len(rows))), **columns})).columns[""]
        assert str(column.type.content) == dtype, rows
