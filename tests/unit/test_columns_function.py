"""Python selections at submission: parsed, never run; and the ranges of their input."""

import base64
import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from doma.columns.function import MAX_SOURCE, PythonFunction
from doma.columns.query import compile_query
from doma.columns.sandbox_input import span
from doma.core.errors import BadQuery, LimitExceeded, ServiceUnavailable

GOOD = "def run_query(input_filenames=None):\n    return None\n"


def encoded(source):
    return base64.b64encode(source.encode()).decode()


@pytest.mark.parametrize(
    "source",
    [
        GOOD,
        "if True:\n    def run_query(f): pass\nelse:\n    run_query = None",
        "try:\n    from x import run_query\nexcept ImportError:\n    raise",
        "run_query = lambda f: 5",
        "def run_query(*files): pass",
        "import re\nPATTERN = '\\d'\ndef run_query(f): pass",
        "def run_query(f): pass  # Ünïcode",
    ],
)
def test_source_that_defines_the_function_is_accepted_and_never_run(source):
    assert len(compile_query("python", encoded("raise SystemExit\n" + source)).digest) == 64


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("def run_query(f):\n    return 1 +\n", r"line 2: invalid syntax"),
        ("def run_query(f):\nreturn", r"line 2: expected an indented block"),
        ("x = 1", r"defines no function run_query"),
        ("class A:\n    def run_query(self): pass", r"defines no function run_query"),
        ("def outer():\n    def run_query(f): pass", r"defines no function run_query"),
        ("async def run_query(f): pass", r"line 1: run_query must be a plain function"),
        ("def run_query(): pass", r"line 1: run_query takes one argument"),
        ("(" * 1000, r"too many nested parentheses"),
        ("x = " + "-" * 100_000 + "1", r"cannot be parsed"),
        ("x = a" + ".b" * 50_000, r"cannot be parsed"),
        ("x = 1\0", r"null bytes"),
    ],
)
def test_source_that_does_not_parse_or_has_no_function_is_refused_with_its_line(source, said):
    with pytest.raises(BadQuery, match=said):
        PythonFunction(encoded(source))


@pytest.mark.parametrize("selection", ["", "def run_query(f): pass", "////", "ZGVm=ZGVm", "Zöö="])
def test_a_selection_that_is_no_base64_of_text_is_refused(selection):
    with pytest.raises(BadQuery):
        PythonFunction(selection)


def test_large_sources_are_refused_before_they_are_parsed():
    with pytest.raises(LimitExceeded):
        PythonFunction(encoded(GOOD + "#" * MAX_SOURCE))
    with pytest.raises(LimitExceeded):
        PythonFunction("A" * (3 * MAX_SOURCE))


def test_line_breaks_in_the_selection_do_not_change_the_question_but_any_letter_of_the_source_does():
    text = encoded(GOOD)
    same = PythonFunction(text[:20] + "\n" + text[20:])
    assert PythonFunction(text).digest == same.digest
    assert PythonFunction(encoded(GOOD + " ")).digest != same.digest


def test_without_isolation_a_function_does_not_run():
    with pytest.raises(ServiceUnavailable, match="runs no functions"):
        PythonFunction(encoded(GOOD)).run(None, None, 1, print)


@given(st.text())
def test_any_text_as_a_selection_gives_one_clear_error_or_a_query(text):
    for selection in (text, base64.b64encode(text.encode("utf-8", "surrogatepass")).decode()):
        with contextlib.suppress(BadQuery, LimitExceeded):
            PythonFunction(selection)


@given(st.text("bytes=0123456789-, ", max_size=30), st.integers(0, 100))
def test_a_range_lies_within_the_input(header, size):
    found = span(header, size)
    if found is not None:
        start, stop, partial = found
        assert 0 <= start <= stop <= size
        assert partial or (start, stop) == (0, size)
