"""What queries mean: compared with plain Python loops over generated events, and case by case."""

import contextlib
import itertools
import math
from typing import Any

import awkward as ak
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from doma.columns.evaluate import run
from doma.columns.plan import compile_text
from doma.core.errors import BadQuery, LimitExceeded, UnknownColumn


class Events:
    """Rows in memory."""

    def __init__(self, **columns: Any) -> None:
        self._columns = {k: v if isinstance(v, ak.Array) else ak.Array(v) for k, v in columns.items()}
        self.names = tuple(columns)
        self.size = len(next(iter(self._columns.values())))

    def column(self, name: str) -> ak.Array:
        if name not in self._columns:
            raise UnknownColumn(f"no {name}")
        return self._columns[name]

    def where(self, mask: Any) -> "Events":
        return Events(**{k: v[mask] for k, v in self._columns.items()})


def events(a: list[list[float]], b: list[list[float]], x: list[float]) -> Events:
    lists = [ak.values_astype(ak.Array([*v, [0.0]])[:-1], np.float64) for v in (a, b)]
    return Events(a=lists[0], b=lists[1], x=np.array(x, dtype=np.float64))


def ask(python: str, rows: Events, source: str = "(call EventDataset)", op: str = "Select") -> Any:
    """The single unnamed column, or the columns by name, of a lambda over the events."""
    table = run(compile_text(f"(call {op} {source} '{python}')"), rows)
    columns = {k: v.to_list() for k, v in table.columns.items()}
    return columns[""] if list(columns) == [""] else columns


values = st.integers(-50, 50).map(float)
sequences = st.lists(values, max_size=4)
samples = st.lists(st.tuples(sequences, sequences, values), min_size=0, max_size=6)


def total(items: Any) -> float:
    return math.fsum(items)


def folded(items: list[float], acc: float) -> float:
    for item in items:
        acc = acc * 0.5 - item
    return acc


LAWS = {
    "lambda e: e.a.Count()": lambda a, b, x: len(a),
    "lambda e: e.a.Sum()": lambda a, b, x: total(a),
    "lambda e: e.a.Max()": lambda a, b, x: max(a, default=None),
    "lambda e: e.a.Min()": lambda a, b, x: min(a, default=None),
    "lambda e: e.a.First()": lambda a, b, x: a[0] if a else None,
    "lambda e: e.a.Last()": lambda a, b, x: a[-1] if a else None,
    "lambda e: e.a.ElementAt(2)": lambda a, b, x: a[2] if len(a) > 2 else None,
    "lambda e: e.a[1]": lambda a, b, x: a[1] if len(a) > 1 else None,
    "lambda e: e.a.Where(lambda m: m > e.x)": lambda a, b, x: [m for m in a if m > x],
    "lambda e: e.a[e.a > e.x]": lambda a, b, x: [m for m in a if m > x],
    "lambda e: e.a.Select(lambda m: m * 2 + e.x)": lambda a, b, x: [m * 2 + x for m in a],
    "lambda e: e.a.Any(lambda m: m > 0)": lambda a, b, x: any(m > 0 for m in a),
    "lambda e: e.a.All(lambda m: m > 0)": lambda a, b, x: all(m > 0 for m in a),
    "lambda e: e.a.Contains(3)": lambda a, b, x: 3.0 in a,
    "lambda e: e.a.Contains(e.x)": lambda a, b, x: x in a,
    "lambda e: e.a.Concat(e.b)": lambda a, b, x: a + b,
    "lambda e: e.a.OrderBy(lambda m: m)": lambda a, b, x: sorted(a),
    "lambda e: e.a.OrderByDescending(lambda m: abs(m))": lambda a, b, x: sorted(a, key=lambda m: -abs(m)),
    "lambda e: e.a.Choose(2)": lambda a, b, x: [list(p) for p in itertools.combinations(a, 2)],
    "lambda e: e.a.Choose(3).Select(lambda t: t[0] + t[1] * t[2])": lambda a, b, x: [
        p + q * r for p, q, r in itertools.combinations(a, 3)
    ],
    "lambda e: e.a.Select(lambda m: e.b.Select(lambda n: m - n))": lambda a, b, x: [
        [m - n for n in b] for m in a
    ],
    "lambda e: e.a.Where(lambda m: e.b.Any(lambda n: n > m))": lambda a, b, x: [
        m for m in a if any(n > m for n in b)
    ],
    "lambda e: e.a.SelectMany(lambda m: e.b.Where(lambda n: n < m))": lambda a, b, x: [
        n for m in a for n in b if n < m
    ],
    "lambda e: e.a.Select(lambda m: e.b.Where(lambda n: n > m).First())": lambda a, b, x: [
        next((n for n in b if n > m), None) for m in a
    ],
    "lambda e: e.a.Select(lambda m: e.a.Where(lambda n: n > m).Sum() + e.x)": lambda a, b, x: [
        total(n for n in a if n > m) + x for m in a
    ],
    "lambda e: e.a.Select(lambda m: e.b.Select(lambda n: e.b.Where(lambda k: k > m).Count() + n))": (
        lambda a, b, x: [[len([k for k in b if k > m]) + n for n in b] for m in a]
    ),
    "lambda e: e.a.Select(lambda m: e.b.Select(lambda n: n * 2).Sum())": lambda a, b, x: [
        2 * total(b) for m in a
    ],
    "lambda e: e.x if e.x > 0 else 0.0": lambda a, b, x: max(x, 0.0),
    "lambda e: e.a.Select(lambda m: m if m > e.x else -1.0)": lambda a, b, x: [
        m if m > x else -1.0 for m in a
    ],
    "lambda e: e.a.Choose(2).Where(lambda p: p[0] > p[1]).Count()": lambda a, b, x: len(
        [p for p in itertools.combinations(a, 2) if p[0] > p[1]]
    ),
    "lambda e: e.a.Choose(2).Select(lambda p: p.Sum()).Max()": lambda a, b, x: max(
        [p + q for p, q in itertools.combinations(a, 2)], default=None
    ),
    "lambda e: e.a.Choose(2).First()": lambda a, b, x: a[:2] if len(a) > 1 else None,
    "lambda e: e.a.Choose(2).Select(lambda p: p.Count())": lambda a, b, x: [
        2 for p in itertools.combinations(a, 2)
    ],
    "lambda e: len(e.a) + len(e.b)": lambda a, b, x: len(a) + len(b),
    "lambda e: e.a.First() + e.b.First()": lambda a, b, x: a[0] + b[0] if a and b else None,
    "lambda e: not (e.x > 0 and e.a.Count() > 1 or e.x < -5)": lambda a, b, x: (
        not ((x > 0 and len(a) > 1) or x < -5)
    ),
    "lambda e: -5 < e.x <= 20": lambda a, b, x: -5 < x <= 20,
    "lambda e: [e.x, 1.0].Sum()": lambda a, b, x: x + 1.0,
    "lambda e: e.a[1:]": lambda a, b, x: a[1:],
    "lambda e: e.a[::-2]": lambda a, b, x: a[::-2],
    "lambda e: e.a[-2:].Sum()": lambda a, b, x: total(a[-2:]),
    "lambda e: e.x in e.a": lambda a, b, x: x in a,
    "lambda e: e.x not in [1, 2, 3]": lambda a, b, x: x not in [1, 2, 3],
    "lambda e: e.a.Contains([1, 2])": lambda a, b, x: [m in (1, 2) for m in a],
    "lambda e: [1, 2].Contains(e.x)": lambda a, b, x: x in (1, 2),
    "lambda e: e.a.First(-1.0)": lambda a, b, x: a[0] if a else -1.0,
    "lambda e: e.a.ElementAt(1, e.x)": lambda a, b, x: a[1] if len(a) > 1 else x,
    "lambda e: e.a.Max(0.0)": lambda a, b, x: max(a, default=0.0),
    "lambda e: e.a.Aggregate(0, lambda acc, m: acc + m)": lambda a, b, x: total(a),
    "lambda e: e.a.Aggregate(e.x, lambda acc, m: acc * 0.5 - m)": lambda a, b, x: folded(a, x),
    "lambda e: e.a.Aggregate(0, lambda acc, m: acc + 1)": lambda a, b, x: len(a),
    "lambda e: e.a.Aggregate(-9.0, lambda acc, m: m if m > acc else acc)": lambda a, b, x: max([*a, -9.0]),
    "lambda e: e.a.Aggregate(0.0, lambda acc, m: acc + e.b.Where(lambda n: n > m).Count())": lambda a, b, x: (
        float(sum(n > m for m in a for n in b))
    ),
    "lambda e: e.a.Select(lambda m: e.b.Aggregate(m, lambda acc, n: acc - n))": lambda a, b, x: [
        m - total(b) for m in a
    ],
    "lambda e: Range(0, e.a.Count()).Select(lambda i: e.a[i] * i)": lambda a, b, x: [
        m * i for i, m in enumerate(a)
    ],
    "lambda e: Range(-1, 2).Select(lambda i: i + e.x)": lambda a, b, x: [x - 1, x, x + 1],
    "lambda e: Range(3).Count()": lambda a, b, x: 3,
    "lambda e: [1, 2].Select(lambda i: i * e.x)": lambda a, b, x: [x, 2 * x],
    "lambda e: e.a.Choose(2).Count()": lambda a, b, x: len(a) * (len(a) - 1) // 2,
    "lambda e: e.a.Select(lambda m: e.b).Count()": lambda a, b, x: len(a),
    "lambda e: np.where(e.x > 0, e.x, -1.0)": lambda a, b, x: x if x > 0 else -1.0,
    "lambda e: e.a.Select(lambda m: m + e.x).MetaData(1).Sum()": lambda a, b, x: total(m + x for m in a),
    "lambda e: e.a.Where(lambda m: e.b.Contains(m)).Count()": lambda a, b, x: len([m for m in a if m in b]),
}


@pytest.mark.parametrize("python", LAWS, ids=range(len(LAWS)))
@settings(max_examples=6, deadline=None)
@given(sample=samples)
def test_queries_mean_what_the_loop_means(python, sample):
    rows = events([s[0] for s in sample], [s[1] for s in sample], [s[2] for s in sample])
    got = ask(python, rows) if sample else ask(python, events([], [], []))
    assert got == [LAWS[python](*s) for s in sample]


ROWS = events([[1.0, 2.0], [], [3.0]], [[5.0], [6.0, 7.0], []], [10.0, 20.0, 30.0])


def test_events_are_filtered_flattened_and_counted():
    assert ask("lambda e: e.x > 15", ROWS, op="Where") == {
        "a": [[], [3.0]],
        "b": [[6.0, 7.0], []],
        "x": [20.0, 30.0],
    }
    assert ask("lambda e: e.a", ROWS, op="SelectMany") == [1.0, 2.0, 3.0]
    flat = ask('lambda e: {"m": e.a, "n": e.a.Select(lambda m: m + e.x)}', ROWS, op="SelectMany")
    assert flat == {"m": [1.0, 2.0, 3.0], "n": [11.0, 12.0, 33.0]}
    kept = "(call Where (call EventDataset) 'lambda e: e.a.Count() > 0')"
    assert ask("lambda e: e.x", ROWS, kept) == [10.0, 30.0]
    assert run(compile_text(f"(call Count {kept})"), ROWS).columns[""].to_list() == [2]
    chained = f'(call Select {kept} \'lambda e: {{"s": e.a.Sum(), "x": e.x}}\')'
    assert ask("lambda r: r.s > 2.5", ROWS, chained, "Where") == {"s": [3.0, 3.0], "x": [10.0, 30.0]}


def test_a_literal_column_has_the_length_of_the_events():
    assert ask('lambda e: {"one": 1, "t": "mc"}', ROWS) == {"one": [1, 1, 1], "t": ["mc", "mc", "mc"]}


def test_a_list_of_records_becomes_a_struct_of_lists():
    got = ask('lambda e: e.a.Select(lambda m: {"p": m, "q": m * m})', ROWS)
    assert got == {"p": [[1.0, 2.0], [], [3.0]], "q": [[1.0, 4.0], [], [9.0]]}
    assert ask("lambda e: (e.x, e.a)", ROWS) == {"0": [10.0, 20.0, 30.0], "1": [[1.0, 2.0], [], [3.0]]}


def test_a_choice_of_records_is_made_field_by_field():
    got = ask('lambda e: {"p": e.x, "n": 1} if e.x > 15 else {"p": 0.0, "n": e.a.Count()}', ROWS)
    assert got == {"p": [0.0, 20.0, 30.0], "n": [2, 1, 1]}
    assert ask('lambda e: "high" if e.x > 15 else "low"', ROWS) == ["low", "high", "high"]


def test_an_integer_takes_the_nth_field_of_a_record_from_the_file():
    rows = Events(r=ak.Array([{"p": 1.0, "q": 2}, {"p": 3.0, "q": 4}]))
    assert ask("lambda e: e.r[1]", rows) == [2, 4]
    assert ask("lambda e: e.r[-2]", rows) == [1.0, 3.0]
    with pytest.raises(BadQuery):
        ask("lambda e: e.r[5]", rows)


def test_a_slice_of_a_tuple_is_a_tuple():
    assert ask("lambda e: (e.x, 1, e.a)[::2]", ROWS) == {
        "0": [10.0, 20.0, 30.0],
        "1": [[1.0, 2.0], [], [3.0]],
    }
    assert ask('lambda e: {"p": e.x, "q": 1}[1:]', ROWS) == {"q": [1, 1, 1]}
    assert ask("lambda e: [e.x, 1.0, 2.0][1:].Sum()", ROWS) == [3.0, 3.0, 3.0]
    nested = "(e.x, 1)"
    for _ in range(40):
        nested = f"({nested} if e.x > 0 else (e.x, 2))[0:2]"
    assert ask(f"lambda e: {nested}", ROWS)["1"] == [1, 1, 1]


def test_what_has_one_value_per_event_is_repeated_when_zipped():
    assert ask('lambda e: {"m": e.a, "x": e.x}.Zip()', ROWS) == {
        "m": [[1.0, 2.0], [], [3.0]],
        "x": [[10.0, 10.0], [], [30.0]],
    }


def test_four_momenta_add_up_and_need_no_more_coordinates_than_they_are_asked_for():
    mu = '{"pt": e.a, "eta": e.a * 0, "phi": e.a * 0 + e.x, "mass": 0.0}.Zip().ToFourMomenta()'
    assert np.allclose(ask(f"lambda e: {mu}.Sum().pt", ROWS), [3, 0, 3])
    met = '{"pt": e.x, "phi": e.x}.ToFourMomentum()'
    turned = ask(f"lambda e: {mu}.Select(lambda m: m.deltaphi({met}))", ROWS)
    assert np.allclose(ak.flatten(turned), 0)
    with pytest.raises(BadQuery, match="mass"):
        ask(f"lambda e: {met}.mass", ROWS)
    assert np.allclose(ask(f"lambda e: {mu}.First().boostX(0.5).mass", ROWS)[0], 0, atol=1e-6)


def test_zip_demands_equal_lengths():
    assert ask('lambda e: {"m": e.a, "n": e.a}.Zip().Where(lambda z: z.m > 1).n', ROWS) == [[2.0], [], [3.0]]
    with pytest.raises(BadQuery, match="other lengths"):
        ask('lambda e: {"m": e.a, "n": e.b}.Zip()', ROWS)


def test_promotion_is_numpys_and_double_precision_is_asked_for():
    rows = Events(f=np.array([1.1, 2.2], dtype=np.float32), i=np.array([7, 8], dtype=np.int32))
    kinds = {
        "e.f * 2.5": np.float32, "np.float64(e.f) * 2.5": np.float64, "e.i / 2": np.float64,
        "e.i * 2": np.int32,
        "e.f + e.i": np.float64, "np.sqrt(e.f)": np.float32, "e.i > 7": np.bool_,
    }  # fmt: skip
    for python, dtype in kinds.items():
        table = run(compile_text(f"(call Select (call EventDataset) 'lambda e: {python}')"), rows)
        assert np.asarray(table.columns[""]).dtype == dtype, python
    doubled = run(compile_text("(call Select (call EventDataset) 'lambda e: np.float64(e.f)')"), rows)
    assert np.array_equal(
        np.asarray(doubled.columns[""]), np.array([1.1, 2.2], dtype=np.float32).astype(float)
    )


def test_four_momenta_agree_with_the_textbook():
    rng = np.random.default_rng(7)
    n = 50
    parts = {k: rng.uniform(lo, hi, (n, 2)).astype(np.float32) for k, lo, hi in
             (("pt", 5, 80), ("eta", -2.4, 2.4), ("phi", -3.1, 3.1), ("mass", 0.1, 5))}  # fmt: skip
    rows = Events(**{k: ak.from_regular(ak.Array(v)) for k, v in parts.items()})
    doubled = ", ".join(f'"{k}": np.float64(e.{k})' for k in parts)
    mu = f"lambda e: {{{doubled}}}.Zip().ToFourMomenta()"
    mass = ask(f"{mu}.Choose(2).Select(lambda p: (p[0] + p[1]).mass)", rows)
    angle = ask(f"{mu}.Choose(2).Select(lambda p: p[0].deltaR(p[1])).First()", rows)
    x = {k: v.astype(np.float64) for k, v in parts.items()}
    energy = np.hypot(x["pt"] * np.cosh(x["eta"]), x["mass"])
    px, py, pz = x["pt"] * np.cos(x["phi"]), x["pt"] * np.sin(x["phi"]), x["pt"] * np.sinh(x["eta"])
    expected = np.sqrt(energy.sum(1) ** 2 - px.sum(1) ** 2 - py.sum(1) ** 2 - pz.sum(1) ** 2)
    assert np.allclose(np.ravel(mass), expected, rtol=1e-9)
    dphi = (x["phi"][:, 0] - x["phi"][:, 1] + np.pi) % (2 * np.pi) - np.pi
    assert np.allclose(angle, np.hypot(x["eta"][:, 0] - x["eta"][:, 1], dphi))
    with pytest.raises(BadQuery, match="pt, eta, phi, mass"):
        ask('lambda e: {"pt": e.pt, "eta": e.eta}.Zip().ToFourMomenta()', rows)


WRONG = {
    "lambda e: e.x.Count()": "needs a sequence",
    "lambda e: e.a + e.b": "different lengths",
    "lambda e: e.a.Where(lambda m: e.b)": "one true or false",
    "lambda e: e.a.nothing": "no field 'nothing'",
    "lambda e: e.a.First().mass": "no field 'mass'",
    "lambda e: e.a.Select(lambda m: m.deltaR(m))": "four-momenta",
    'lambda e: np.sqrt("text")': "text",
    "lambda e: e.x + None": "None",
    "lambda e: e.a[e.b]": "positions",
    "lambda e: e.a.OrderBy(lambda m: e.b)": "one number",
    "lambda e: e.a.First().First()": "sequence",
    "lambda e: e.a.Aggregate(0, lambda acc, m: e.b)": "one number",
    "lambda e: e.a.Aggregate(0, lambda acc, m: e.b.First())": "missing",
    'lambda e: e.a.First("none")': "same type",
    'lambda e: "a" if e.x > 0 else 1': "same type",
    'lambda e: e.x == "a"': "numbers and text",
    "lambda e: Range(0, e.x)": "integers",
    "lambda e: 2 ** (e.a.Count() - 5)": "negative powers",
    "lambda e: e.a.boostX(1)": "four-momenta",
}


@pytest.mark.parametrize(("python", "text"), WRONG.items(), ids=range(len(WRONG)))
def test_what_does_not_fit_the_file_is_said_in_plain_words(python, text):
    with pytest.raises((BadQuery, UnknownColumn), match=text):
        ask(python, ROWS)


def test_combinations_and_powers_are_bounded():
    rows = Events(a=ak.Array([np.arange(5000.0)]))
    with pytest.raises(LimitExceeded, match="combinations"):
        ask("lambda e: e.a.Choose(4)", rows)
    assert len(ask("lambda e: 10 ** 10 ** 10", rows)) == 1
    many = "lambda e: e.a" + ".Select(lambda m: e.a)" + "{}"
    for tail in (
        ".SelectMany(lambda m: m.Select(lambda n: e.a))",
        ".Select(lambda m: m.Select(lambda n: e.a))",
    ):
        with pytest.raises(LimitExceeded, match="members"):
            ask(many.format(tail), rows)
    twice = "(call Select (call EventDataset) 'lambda e: e.a')"
    for _ in range(40):
        twice = f"(call Select {twice} 'lambda a: a.Concat(a)')"
    with pytest.raises(LimitExceeded, match="members"):
        run(compile_text(twice), rows)
    for python in ("lambda e: Range(0, 1 << 40)", "lambda e: Range(-(1 << 62), 1 << 62)"):
        with pytest.raises(LimitExceeded, match="members"):
            ask(python, rows)
    with pytest.raises(LimitExceeded, match="Aggregate"):
        ask("lambda e: Range(0, 100000).Aggregate(0, lambda a, b: a + b)", rows)
    assert len(ask("lambda e: e.a.Count() << 70", rows)) == 1


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_random_programs_give_a_table_or_a_clear_error(data):
    """No combination of operators ends in anything but columns or a DomaError."""
    atom = st.sampled_from(["e.a", "e.b", "e.x", "1", "0.5", "True", "None", "m", "e"])
    grow = st.sampled_from(
        ["{0}.Count()", "{0}.First()", "{0}.Sum()", "{0}.Select(lambda m: {1})", "{0}.Where(lambda m: {1})",
         "({0} + {1})", "({0} and {1})", "np.sqrt({0})", "[{0}, {1}]", "{0}[{1}]", "{0}.Choose(2)",
         "{0}.Concat({1})", "{0}.SelectMany(lambda m: {1})", "({0} if {1} else 1)", "{0}.Contains({1})",
         "{0}.OrderBy(lambda m: {1})", "{{\"p\": {0}, \"q\": {1}}}", "{0}.Zip()", "{0}.Any(lambda m: {1})",
         "{0}.Max()", "{0}.ElementAt({1})", "{0}[1:]", "{0} in {1}", "{0}.Last({1})", "Range(0, {0})",
         "{0}.Aggregate({1}, lambda acc, m: acc + m)", "{0}.Aggregate(0, lambda acc, m: {1})", "{0}.p",
         "np.where({0}, {1}, {0})", "{0}.OrderByDescending(lambda m: {1})", "not {0}", "({0} // {1})",
         "{0}.ToFourMomenta()",
         "({0} == {1})", "-{0}", "np.float64({0})"]
    )  # fmt: skip
    parts = [data.draw(atom), data.draw(atom)]
    for _ in range(data.draw(st.integers(1, 4))):
        parts = [data.draw(grow).format(*parts), data.draw(atom)]
    with contextlib.suppress(BadQuery, LimitExceeded):
        plan = compile_text(f"(call Select (call EventDataset) 'lambda e: {parts[0]}')")
        full, empty = run(plan, ROWS), run(plan, events([], [], []))
        # The first table of a file may be empty and fixes the types of all others.
        types = [{n: str(c.type.content) for n, c in t.columns.items()} for t in (full, empty)]
        assert types[0] == types[1]


@pytest.mark.parametrize(
    "pattern", ["(- {})", "(call (attr np 'sqrt') {})", "(if True {} 1)", "(subscript {} 0)"]
)
def test_the_deepest_query_that_is_accepted_also_runs(pattern):
    def ask_deep(depth: int) -> None:
        body = "(attr e 'x')"
        for _ in range(depth):
            body = pattern.format(body)
        plan = compile_text(f"(call Select (call EventDataset) (lambda (list e) {body}))")
        assert len(plan.digest) == 64
        with contextlib.suppress(BadQuery):
            run(plan, ROWS)

    ask_deep(90)
    with pytest.raises(LimitExceeded, match="nested"):
        ask_deep(100)
