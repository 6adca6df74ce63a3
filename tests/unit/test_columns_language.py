"""The query text: what is accepted, what is refused, and that hostile text costs one clear error."""

import pytest
import qastle
from hypothesis import given, settings
from hypothesis import strategies as st

from doma.columns.language import MAX_TEXT, Node, parse, parse_python
from doma.columns.plan import compile_text
from doma.core.errors import BadQuery, LimitExceeded, UnknownColumn

DATA = "(call EventDataset 'bogus.root' 'Events')"


def select(body: str, source: str = DATA) -> str:
    return f"(call Select {source} (lambda (list e) {body}))"


names = st.sampled_from(["e", "pt", "_x1", "Muon"])
constants = st.one_of(
    st.integers(-(2**31), 2**31), st.floats(allow_nan=False, allow_infinity=False), st.text(max_size=6)
)


def composites(inner):
    return st.one_of(
        st.lists(inner, min_size=1, max_size=3).map(lambda xs: "[" + ", ".join(xs) + "]"),
        st.tuples(inner, st.sampled_from(["-", "/", "%", "<", "=="]), inner).map(
            lambda t: f"({t[0]} {t[1]} {t[2]})"
        ),
        st.tuples(inner, names).map(lambda t: f"({t[0]}).{t[1]}"),
        st.tuples(inner, inner).map(lambda t: f"({t[0]})[{t[1]}]"),
        st.tuples(names, inner).map(lambda t: f"(lambda {t[0]}: {t[1]})"),
        st.tuples(names, inner).map(lambda t: f"{t[0]}({t[1]})"),
        st.tuples(inner, inner, inner).map(lambda t: f"({t[0]} if {t[1]} else {t[2]})"),
        st.tuples(names, inner).map(lambda t: f"{{'{t[0]}': {t[1]}}}"),
    )


expressions = st.recursive(st.one_of(names, constants.map(repr)), composites, max_leaves=12)


@settings(max_examples=50, deadline=None)
@given(expressions)
def test_our_reader_and_qastles_encoder_agree(python):
    """The text that qastle writes for an expression reads back as the tree of that expression."""
    assert parse(qastle.python_source_to_text_ast(python)) == parse_python(python)


@settings(max_examples=150, deadline=None)
@given(st.text(alphabet="()'\" \\abSelect.+-*01", max_size=60))
def test_any_text_gives_a_tree_or_a_clear_error(text):
    try:
        assert isinstance(parse(text), Node)
    except (BadQuery, LimitExceeded) as e:
        said = e.message
    else:
        said = "query"
    assert said.startswith("query")


HOSTILE = [
    "(" * 100_000,
    ")" * 100_000,
    "(not " * 1500 + "x" + ")" * 1500,
    "'" + "\\" * 100_001,
    "x" * (MAX_TEXT + 1),
    "(list " + "x " * 60_000 + ")",
    "9" * 5000,
    "(attr" * 50_000,
    "\0",
    "",
    "()",
    "(call)",
    "x y",
    "(list\u00e9)",
    "'unfinished",
]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_text_is_refused(text):
    with pytest.raises((BadQuery, LimitExceeded)):
        compile_text(text)


PYTHON = [
    "lambda e: __import__('os').system('true')",
    "lambda e: [x for x in e]",
    "lambda e: (yield e)",
    "lambda e: e.a[1:2, 3]",
    "lambda e: f'{e}'",
    "lambda e: (x := e)",
    "lambda e: e.__class__.__mro__",
    "lambda e: open('/etc/passwd').read()",
    "lambda e: eval('1')",
    "lambda e: e.a(*e.b)",
    "lambda e: " + "(" * 300 + "1" + ")" * 300,
    "lambda e: " + "-" * 5000 + "1",
    "lambda e, f: e",
    "lambda: 1",
    "lambda e: " + "9" * 5000,
    "import os",
    "lambda e: e.a.__globals__['x']()",
]


@pytest.mark.parametrize("python", PYTHON, ids=range(len(PYTHON)))
def test_python_that_is_not_the_query_language_is_refused(python):
    quoted = repr(python).replace("\n", " ")
    try:
        plan = compile_text(f"(call Select {DATA} {quoted})")
    except (BadQuery, LimitExceeded):
        return
    # What passes is a name of a branch, nothing else: it is looked for in the file and nowhere else.
    assert plan.branches == ("__class__",)


def test_a_long_chain_of_conditions_is_not_deep():
    chain = "(attr e 'HLT_0')"
    for i in range(1, 400):
        chain = f"(or {chain} (attr e 'HLT_{i}'))"
    assert len(compile_text(select(chain)).branches or ()) == 400


def test_the_three_spellings_of_an_operator_are_one_question():
    body = "(lambda (list j) (> j 30))"
    spelled = [
        f"(Where (attr e 'Jet_pt') {body})",
        f"(call Where (attr e 'Jet_pt') {body})",
        f"(call (attr (attr e 'Jet_pt') 'Where') {body})",
        "(call Where (attr e 'Jet_pt') 'lambda jet: jet > 30')",
    ]
    plans = [compile_text(select(s)) for s in spelled]
    assert len({p.digest for p in plans}) == 1
    other = compile_text(select(spelled[0].replace("30", "31")))
    assert other.digest != plans[0].digest


def test_only_named_branches_are_read_and_those_of_filters_first():
    source = f"(call Where {DATA} (lambda (list e) (> (attr e 'nMuon') 1)))"
    plan = compile_text(select("(dict (list 'a') (list (attr e 'Muon_pt')))", source))
    assert (plan.branches, plan.first, plan.tree) == (("Muon_pt", "nMuon"), ("nMuon",), "Events")
    assert compile_text(select("e")).branches is None


WRONG = {
    "(call Whree (attr e 'x') 1)": "Where",
    "(call (attr (attr e 'x') 'Selct') (lambda (list m) m))": "Select",
    "(call (attr np 'sqr') (attr e 'x'))": "sqrt",
    "(call open 'x')": "open",
    "(call (attr os 'system') 'x')": "os",
    "(attr np 'load')": "load",
    "(call (attr np 'load') 'x')": "load",
    "(call (attr np 'vectorize') (attr e 'x'))": "vectorize",
    "f": "unknown name 'f'",
    "(call Sum 3)": "a number",
    "(call Sum (dict (list 'a') (list (attr e 'x'))))": "a record",
    "(call Choose (attr e 'x') 99)": "1 to 6",
    "(call Select (attr e 'x'))": "takes 2",
    "(call Select (attr e 'x') 3)": "lambda",
    "(call Select (attr e 'x') (lambda (list a b) a))": "one argument",
    "(+ e 1)": "whole event",
    "(dict (list 'a' 'a') (list 1 2))": "twice",
    "(dict (list 3) (list 1))": "strings",
    "(dict (list) (list))": "empty",
    "(lambda (list x) x)": "lambda stands",
    "(nonsense 1)": "nonsense",
    "(if 1 2)": "takes 3",
    "(call e 1)": "cannot be called",
    "(call Count (call EventDataset))": "one EventDataset",
    "99999999999999999999": "64 bits",
}


@pytest.mark.parametrize(("body", "text"), WRONG.items())
def test_a_wrong_query_says_where_and_what_is_near(body, text):
    with pytest.raises(BadQuery, match=text):
        compile_text(select(body))


def test_a_field_that_a_record_does_not_have_is_an_unknown_column_with_near_names():
    inner = select("(dict (list 'jet_pt' 'met') (list (attr e 'a') (attr e 'b')))")
    with pytest.raises(UnknownColumn, match="did you mean jet_pt") as caught:
        compile_text(f"(call Select {inner} (lambda (list r) (attr r 'jetpt')))")
    assert caught.value.detail["near"] == ["jet_pt"]


NESTED = "(call (attr (attr e 'a') 'Select') {})"


def test_lambdas_as_text_inside_each_other_are_bounded():
    text = "lambda x: x"
    for _ in range(12):
        text = f"lambda x: {'-' * 8}x.Select({text!r})"
    with pytest.raises(LimitExceeded):
        compile_text(select(NESTED.format(repr(text).replace("\n", " "))))


def test_records_that_double_with_every_step_are_bounded():
    text = f"(call Select {DATA} 'lambda e: e.x')"
    for _ in range(40):
        text = f"(call Select {text} 'lambda r: (r, r)')"
    with pytest.raises(LimitExceeded, match="fields"):
        compile_text(text)


def test_constants_that_would_fill_the_output_are_refused():
    with pytest.raises(LimitExceeded, match="characters"):
        compile_text(select(repr("x" * 1001)))


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_brackets_give_a_plan_or_a_clear_error(data):
    """Words of the language in any order: no traceback, whatever their number of fields."""
    words = st.sampled_from(
        [
            "e",
            "x",
            "np",
            "'pt'",
            "'Select'",
            "'__class__'",
            "'lambda q: q.x'",
            "0",
            "-1.5",
            "True",
            "None",
            DATA,
        ]
    )
    kinds = st.sampled_from(
        ["call", "attr", "subscript", "slice", "in", "if", "list", "dict", "lambda", "not", "and", "+", "**",
         "Select", "Where", "Count", "First", "Zip", "Choose", "Aggregate", "Concat", "Contains", "OrderBy",
         "Range", "MetaData", "ResultTTree", "ToFourMomenta", "EventDataset", "call Select", "call sqrt",
         "call Range", "call AsROOTTTree"]
    )  # fmt: skip
    node = st.recursive(
        words,
        lambda inner: st.tuples(kinds, st.lists(inner, max_size=4)).map(
            lambda t: f"({t[0]} {' '.join(t[1])})"
        ),
    )
    text = data.draw(node)
    try:
        said = compile_text(text if data.draw(st.booleans()) else select(text)).digest
    except (BadQuery, LimitExceeded, UnknownColumn) as e:
        said = e.message
    assert said.startswith("query") or len(said) == 64


def test_lists_of_records_are_checked_before_any_file_is_read():
    jets = "{'pt': e.Jet_pt, 'eta': e.Jet_eta}.Zip()"
    with pytest.raises(UnknownColumn, match="did you mean pt"):
        compile_text(f'(call Select {DATA} "lambda e: {jets}.ptt")')
    with pytest.raises(UnknownColumn, match="did you mean eta"):
        compile_text(f'(call Select {DATA} "lambda e: {jets}.Where(lambda j: j.etta > 1)")')
    with pytest.raises(UnknownColumn):
        compile_text(f'(call Select {DATA} "lambda e: {jets}.OrderBy(lambda j: j.pt).First().phi")')


def test_what_would_need_the_whole_file_in_memory_is_refused_with_the_way_out():
    column = f"(call Select {DATA} 'lambda e: e.x')"
    for text in (
        f"(call OrderBy {column} 'lambda x: x')",
        f"(call Choose {column} 2)",
        f"(call Zip {column})",
        f"(call Aggregate {column} 0 'lambda acc, x: acc * x')",
        f"(call OrderBy {DATA} 'lambda e: e.x')",
    ):
        with pytest.raises(BadQuery, match=r"inside Select|Select a column"):
            compile_text(text)


def test_one_row_of_a_file_is_a_total_or_a_pick():
    column = f"(call Select {DATA} 'lambda e: e.x')"
    assert compile_text(f"(call First {column})").pick == 0
    assert compile_text(f"(call (attr {column} 'Last'))").pick == -1
    assert compile_text(f"(ElementAt {column} 3)").pick == 3
    folded = compile_text(f"(call Aggregate {column} 7 'lambda acc, x: acc + x * 2')")
    assert (folded.seed, getattr(folded.body, "name", "")) == (7, "Sum")
    largest = compile_text(f"(call Aggregate {column} 0 'lambda acc, v: acc if acc > v else v')")
    smallest = compile_text(f"(call Aggregate {column} 0 'lambda acc, v: v if v < acc else acc')")
    assert [getattr(p.body, "name", "") for p in (largest, smallest)] == ["Max", "Min"]


def test_wrappers_of_every_client_name_columns_and_tree():
    pair = select("(list (attr e 'a') (attr e 'b'))")
    spelled = {
        f"(call ResultTTree {pair} (list 'x' 'y') 't' 'f')": (("x", "y"), "t"),
        f"(call (attr {pair} 'AsROOTTTree') 'f' 't' (list 'x' 'y'))": (("x", "y"), "t"),
        f"(call AsROOTTTree {pair} (list 'x' 'y') 't' 'f')": (("x", "y"), "t"),
        f"(call (attr {pair} 'AsParquetFiles') 'f' (list 'x' 'y'))": (("x", "y"), None),
        f"(call MetaData (call ResultAwkwardArray {pair} (list 'x' 'y')) (dict (list 'k') (list 'v')))": (
            ("x", "y"),
            None,
        ),
        f"(call ResultPandasDF {pair} (list))": (None, None),
        f"(MetaData {pair} (dict (list 'k') (list 'v')))": (None, None),
    }
    for text, (columns, tree) in spelled.items():
        plan = compile_text(text)
        assert (plan.columns, plan.tree_out) == (columns, tree), text
    with pytest.raises(BadQuery, match="3 column names are given for 2"):
        compile_text(f"(call ResultParquet {pair} (list 'x' 'y' 'z') 'f')")
    with pytest.raises(BadQuery, match="differ"):
        compile_text(f"(call ResultParquet {pair} (list 'x' 'x') 'f')")


def test_wrappers_name_the_columns():
    pair = select("(list (attr e 'a') (attr e 'b'))")
    assert compile_text(f"(call ResultParquet {pair} (list 'x' 'y') 'f')").columns == ("x", "y")
    assert compile_text(f"(ResultTTree {pair} (list 'x' 'y') 't' 'f')").columns == ("x", "y")
