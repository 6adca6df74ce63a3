"""Selections that would take their reader's time or stack."""

import base64

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from doma.columns.container_run import run_process
from doma.columns.execute import execute
from doma.columns.function import PythonFunction
from doma.columns.model import Task
from doma.columns.raw_evaluate import Names
from doma.columns.raw_language import Formula
from doma.columns.wire import SubmitBody
from doma.core.errors import BadQuery, LimitExceeded


def names(count: int, text: str) -> Names:
    """Aliases that each need the next one; the last one needs a branch."""
    aliases = {f"a{i}": Formula.parse(f"a{i}", text.replace("N", f"a{i + 1}")) for i in range(count)}
    last = {f"a{count}": Formula.parse(f"a{count}", "pt")}
    return Names("here", frozenset({"pt"}), aliases | last)


def test_aliases_that_double_each_other_are_followed_once():
    few = names(40, "N + N")
    assert few.needs(few.aliases["a0"]) == {"pt"}
    crossed = {f"{x}{i}": Formula.parse(f"{x}{i}", f"a{i + 1} + b{i + 1}") for i in range(40) for x in "ab"}
    last = {name: Formula.parse(name, "pt") for name in ("a40", "b40")}
    both = Names("here", frozenset({"pt"}), crossed | last)
    assert both.needs(both.aliases["a0"]) == {"pt"}


def test_a_long_chain_of_aliases_is_a_limit():
    many = names(3000, "N + 1")
    with pytest.raises(LimitExceeded, match="chain"):
        many.needs(many.aliases["a0"])


@pytest.mark.parametrize("count", [1500, 2500, 20_000])
def test_a_function_of_endless_branches_is_refused(count):
    source = "def run_query(f): pass\nif 1: pass\n" + "elif 1: pass\n" * count
    with pytest.raises(BadQuery, match="cannot be parsed"):
        PythonFunction(base64.b64encode(source.encode()).decode())


LIST = "(call Select (call EventDataset 'f') (lambda (list e) (dict (list 'x') (list (attr e 'x')))))"


@pytest.mark.parametrize(
    "given",
    [
        pa.array([[1], [], [2, 3]], pa.list_(pa.int32())),
        pa.array([[1], [], [2, 3]], pa.large_list(pa.int16())),
        pa.array([[[1.5]], [], [[], [2.5]]]),
        pa.array([["a"], [], ["b", "c"]]),
        pa.array([[], []], pa.list_(pa.int64())),
        pa.array([[{"a": [1]}], []]),
    ],
    ids=lambda given: str(given.type),
)
def test_lists_that_arrow_itself_wrote_are_read_as_they_are(given, tmp_path):
    pq.write_table(pa.table({"x": given}), tmp_path / "f.parquet")
    url = (tmp_path / "f.parquet").as_uri()
    execute(Task(url, LIST, str(tmp_path / "out"), allow=("file://",)))
    assert pq.read_table(tmp_path / "out")["x"].to_pylist() == given.to_pylist()


def test_what_a_program_prints_commands_no_terminal(tmp_path):
    ended = run_process(["printf", r"\033]0;owned\007\033[2Jdone\n"], tmp_path, 20.0)
    assert ended.log == "\ufffd]0;owned\ufffd\ufffd[2Jdone\n"


def test_a_language_of_megabytes_is_not_told_back():
    with pytest.raises(ValidationError, match="at most 100 characters"):
        SubmitBody.model_validate({"selection": "", "file-list": [], "codegen": "x" * 1000})
