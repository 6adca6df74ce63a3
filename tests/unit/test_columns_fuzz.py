"""Random well-typed queries: the engine against a plain interpreter of the same tree, event by event.

The interpreter knows nothing of scopes, layouts or steps: it walks the tree for one event at a time with
Python's loops over NumPy's scalars, so that promotion, overflow and division by zero are NumPy's. What
differs on purpose from Python (docs/manual/columns.md, the contract's table): ``First`` and the like of too
short a sequence and ``Max`` of an empty one are missing, what is computed of them is missing, and a missing
condition is false; constants take the type of what they meet; NaN sorts last.
"""

# What no case takes goes to the line after it; draws are of any type.
# mypy: disable-error-code="exhaustive-match, no-any-return"

import math
from itertools import combinations
from typing import Any

import awkward as ak
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from doma.columns.evaluate import run
from doma.columns.plan import compile_text
from doma.columns.sequences import extreme
from doma.core.errors import BadQuery

SCALARS = {"i": "int32", "l": "int64", "u": "uint8", "f": "float32", "d": "float64", "b": "bool"}
LISTS = {"p": "float32", "q": "int32", "r": "float64"}
"""``p`` and ``q`` are equally long in every event."""
CALLS = {"abs": np.absolute, "maximum": np.maximum, "minimum": np.minimum, "floor": np.floor}
SIGNS = {
    "+": np.add, "-": np.subtract, "*": np.multiply, "/": np.true_divide, "%": np.remainder,
    "//": np.floor_divide, "==": np.equal, "!=": np.not_equal, "<": np.less, "<=": np.less_equal,
    ">": np.greater, ">=": np.greater_equal, "and": np.logical_and, "or": np.logical_or,
}  # fmt: skip
Tree = tuple[Any, ...]


class Events:
    """Rows in memory."""

    def __init__(self, columns: dict[str, ak.Array]) -> None:
        self.columns, self.names, self.size = columns, tuple(columns), len(columns["i"])

    def column(self, name: str) -> ak.Array:
        return self.columns[name]

    def where(self, mask: Any) -> "Events":
        return Events({k: v[mask] for k, v in self.columns.items()})


class Members(list[Any]):
    """The members of a sequence, and one more of their type: what an empty sequence is made of."""

    def __init__(self, items: Any, sample: Any) -> None:
        super().__init__(items)
        self.sample = sample


def meant(tree: Tree, env: dict[str, Any]) -> Any:
    """The value of a tree for one event; None: missing."""
    kind, *args = tree
    match kind:
        case "const":
            return args[0]
        case "column":
            return env["e"][args[0]]
        case "var":
            return env[args[0]]
        case "if":
            test, yes, no = (meant(a, env) for a in args)
            return None if (yes if true(test) else no) is None else np.where(true(test), yes, no)[()]
        case "in":
            return np.bool_(any(meant(args[0], env) == c for c in args[1]))
        case "chain":
            low, middle, high = (meant(a, env) for a in args)
            return np.logical_and(low < middle, middle <= high)
        case "not":
            return np.logical_not(meant(args[0], env))
        case "neg":
            return np.negative(meant(args[0], env))
        case "field":
            return meant(args[0], env)[args[1]]
        case "default":
            found, sample = meant(args[0], env), meant(args[0][1], env).sample
            return np.result_type(sample, args[1]).type(args[1] if found is None else found)
        case _ if kind in SIGNS or kind in CALLS:
            values = [meant(a, env) for a in args]
            return None if any(v is None for v in values) else {**SIGNS, **CALLS}[kind](*values)
    return sequence(kind, args, env)


def sequence(kind: str, args: list[Any], env: dict[str, Any]) -> Any:
    def each(item: Any) -> Any:
        return meant(args[2], {**env, args[1]: item})

    if kind == "Zip":
        parts = {n: meant(t, env) for n, t in args[0].items()}
        samples = {n: p.sample for n, p in parts.items()}
        return Members([dict(zip(parts, x, strict=True)) for x in zip(*parts.values(), strict=True)], samples)
    items = meant(args[0], env)
    match kind:
        case "Count" | "len":
            return np.int64(len(items))
        case "First" | "Last" | "ElementAt":
            at = {"First": 0, "Last": -1}.get(kind, args[-1])
            return items[at] if -len(items) <= at < len(items) else None
        case "Sum":
            return np.sum(np.array(list(items), dtype=np.asarray(items.sample).dtype))
        case "Max" | "Min":
            extreme = np.fmax if kind == "Max" else np.fmin  # as awkward's, NaN is passed over
            return extreme.reduce(np.array(list(items))) if items else None
        case "Select":
            return Members(map(each, items), each(items.sample))
        case "Where":
            return Members((x for x in items if true(each(x))), items.sample)
        case "Any":
            return np.bool_(any(true(each(x)) for x in items))
        case "All":
            return np.bool_(all(true(each(x)) for x in items))
        case "SelectMany":
            return Members((y for x in items for y in each(x)), each(items.sample).sample)
        case "OrderBy" | "OrderByDescending":
            sign = 1.0 if kind == "OrderBy" else -1.0
            return Members(sorted(items, key=lambda x: (nan(each(x)), sign * ordered(each(x)))), items.sample)
        case "slice":
            return Members(items[slice(*args[1])], items.sample)
        case "Concat":
            return Members([*items, *meant(args[1], env)], items.sample)
        case "Choose":
            return Members(combinations(items, 2), (items.sample, items.sample))
    raise AssertionError(kind)


def true(value: Any) -> bool:
    return value is not None and bool(value)


def nan(value: Any) -> bool:
    return bool(value != value)


def ordered(value: Any) -> Any:
    return 0 if nan(value) else int(value) if isinstance(value, np.integer) else float(value)


def spelled(tree: Tree) -> str:
    """The tree as the body of a Python lambda."""
    kind, *args = tree
    match kind:
        case "const":
            return repr(args[0])
        case "column":
            return f"e.{args[0]}"
        case "var":
            return str(args[0])
        case "if":
            return f"({spelled(args[1])} if {spelled(args[0])} else {spelled(args[2])})"
        case "in":
            return f"({spelled(args[0])} in {args[1]!r})"
        case "chain":
            return f"({spelled(args[0])} < {spelled(args[1])} <= {spelled(args[2])})"
        case "not":
            return f"(not {spelled(args[0])})"
        case "neg":
            return f"(-{spelled(args[0])})"
        case "field":
            return f"{spelled(args[0])}[{args[1]!r}]"
        case "default":
            text = spelled(args[0])
            comma = "" if text.endswith("()") else ", "
            return f"{text[:-1]}{comma}{args[1]!r})"
        case "len":
            return f"len({spelled(args[0])})"
        case "slice":
            return f"{spelled(args[0])}[" + ":".join("" if a is None else str(a) for a in args[1]) + "]"
        case "Zip":
            return "Zip({" + ", ".join(f"{n!r}: {spelled(t)}" for n, t in args[0].items()) + "})"
        case "Choose":
            return f"{spelled(args[0])}.Choose(2)"
        case "Concat":
            return f"{spelled(args[0])}.Concat({spelled(args[1])})"
        case "ElementAt":
            return f"{spelled(args[0])}.ElementAt({args[1]})"
        case _ if kind in CALLS:
            return f"np.{kind}({', '.join(map(spelled, args))})"
        case _ if kind in SIGNS:
            return f"({spelled(args[0])} {kind} {spelled(args[1])})"
    by = f"lambda {args[1]}: {spelled(args[2])}" if len(args) > 1 else ""
    return f"{spelled(args[0])}.{kind}({by})"


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
        match self.one(
            ["leaf", "sign", "sign", "constant", "call", "if", "neg", "Count", "len", "Sum", "default"]
        ):
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
            case "default":
                return "default", self.found(self.numbers(depth - 1, scope)), self.one([0, 1, 0.5])
        return self.one(leaves)

    def truth(self, depth: int, scope: dict[str, str]) -> Tree:
        match self.one(["b", "compare", "compare", "chain", "and", "or", "not", "in", "Any", "All"]):
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
        match self.one(["plain", "Select", "Where", "slice", "order", "many", "pairs", "zip", "concat"]):
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
                ends = st.one_of(st.none(), st.integers(-3, 3))
                step = st.sampled_from([None, 1, 2, -1])
                return "slice", self.numbers(depth - 1, scope), self.draw(st.tuples(ends, ends, step))
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
                source = "Zip", {"p": ("column", "p"), "q": ("column", "q")}
                if self.draw(st.booleans()):
                    source = "Where", source, *self.function(self.truth, "record", depth, scope)
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


@st.composite
def queries(draw: Any) -> tuple[Tree, Tree | None]:
    """What is selected of each event, and a condition on events."""
    writer = Writer(draw)
    depth = draw(st.integers(1, 3))
    kind = draw(st.sampled_from(["number", "truth", "numbers", "missing", "nested"]))
    make = getattr(writer, kind)
    body = make(depth) if kind in {"missing", "nested"} else make(depth, {})
    return body, writer.truth(2, {}) if draw(st.booleans()) else None


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
    return Events(columns)


def event(row: dict[str, Any]) -> dict[str, Any]:
    one = {n: np.dtype(t).type(row[n]) for n, t in SCALARS.items()}
    for name, dtype in LISTS.items():
        kind = np.dtype(dtype).type
        one[name] = Members(map(kind, row[name]), kind(1))
    return one


def same(found: Any, wanted: Any) -> bool:
    if isinstance(wanted, list) and isinstance(found, list):
        return len(found) == len(wanted) and all(map(same, found, wanted))
    if found is None or wanted is None or isinstance(found, list) or isinstance(wanted, list):
        return found is wanted
    value = wanted.item()
    return type(found) is type(value) and (found == value or (found != found and value != value))


@given(queries(), records())
def test_a_query_gives_what_a_loop_over_the_events_gives(query, rows):
    body, condition = query
    text = f"lambda e: {spelled(body)}"
    source = "(call EventDataset)"
    if condition is not None:
        quoted = spelled(condition).replace("'", '"')
        source = f"(call Where {source} 'lambda e: {quoted}')"
    quoted = text.replace("'", '"')
    plan = compile_text(f"(call Select {source} '{quoted}')")
    column, empty = (run(plan, stored(some)).columns[""] for some in (rows, []))
    found = column.to_list()
    with np.errstate(all="ignore"):
        events = [{"e": event(r)} for r in rows]
        kept = [e for e in events if condition is None or true(meant(condition, e))]
        wanted = [meant(body, e) for e in kept]
    assert same(found, wanted), (text, found, wanted)
    # Steps of a file are written one after the other: what is in them must not decide on the type.
    assert column.type.content == empty.type.content, text


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
    row = dict.fromkeys(SCALARS, 0) | {"p": [0.0], "q": [0], "r": []}
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
