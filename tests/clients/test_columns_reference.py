"""func_adl_uproot 2.2.0, in an environment of its own, beside our engine: same queries, same files.

``python3 dev.py clients`` makes that environment; the variable DOMA_REFERENCE_PYTHON names another one.
"""

import ast
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import qastle
import uproot

from doma.columns.funcadl import FuncAdl
from doma.columns.remote import open_bytes

REPO = Path(__file__).parents[2]
ENGINE = Path(__file__).with_name("reference_engine.py")
PYTHON = Path(os.environ.get("DOMA_REFERENCE_PYTHON", REPO / ".venv/reference/bin/python"))
RECORD = json.loads((REPO / "tests/data/columns_reference.json").read_text())


def batched(items: list[Any], size: int) -> list[list[Any]]:
    return [items[i : i + size] for i in range(0, len(items), size)]


AT_ONCE = {"nano_dy.root": 1, "cms_doublemuparked_100k.root": 3}
"""The reference builds every branch of a file for every query; a test must end within a minute."""
PORTIONS = [
    pytest.param(chunk, id=f"{name}-{at}")
    for name in sorted({r["file"] for r in RECORD})
    for at, chunk in enumerate(batched([r for r in RECORD if r["file"] == name], AT_ONCE.get(name, 25)))
]

pytestmark = pytest.mark.skipif(
    not PYTHON.exists(), reason="func_adl_uproot is not installed: python3 dev.py clients installs it"
)


def located(name: str) -> Path:
    folder = "tests/data" if (REPO / "tests/data" / name).exists() else "src/doma/facility/data"
    return REPO / folder / name


def encoded(query: str, tree: str) -> str:
    source = query.replace("DS", f"EventDataset('bogus.root', {tree!r})", 1)
    return str(qastle.python_ast_to_text_ast(qastle.insert_linq_nodes(ast.parse(source))))


def reference(jobs: list[tuple[str, str]]) -> list[dict[str, Any]]:
    """The answers of the reference engine to (query text, file)."""
    done = subprocess.run(
        [str(PYTHON), "-W", "ignore", str(ENGINE)], input=json.dumps(jobs), capture_output=True, text=True,
        check=True, timeout=900, env={**os.environ, "PYTHONPATH": ""},
    )  # fmt: skip
    return [json.loads(line) for line in done.stdout.splitlines()]


class Gathered:
    """A sink in memory."""

    def __init__(self) -> None:
        self.rows = 0
        self.tables: list[Any] = []

    def write(self, table: Any, tree: str = "") -> None:
        self.tables.append(table)


def ours(text: str, path: Path, step: int = 1 << 26) -> dict[str, list[Any]]:
    """Column name to its values."""
    sink, data = Gathered(), open_bytes(path.as_uri(), "", "", ("file://",))
    try:
        FuncAdl(text).run(data, sink, step, lambda _: None)  # type: ignore[arg-type]
    finally:
        data.close()
    return {
        n: json.loads(json.dumps([x for t in sink.tables for x in t.columns[n].to_list()]))
        for n in sink.tables[0].columns
    }


@pytest.mark.parametrize("records", PORTIONS)
def test_every_answer_of_the_reference_is_ours_value_by_value(records):
    """Also that the recorded types, which the default suite compares with, are still the reference's."""
    name = records[0]["file"]
    texts = [encoded(r["query"], r["tree"]) for r in records]
    answers = reference([(text, str(located(name))) for text in texts])
    assert len(answers) == len(records)
    wrong = []
    for record, text, answer in zip(records, texts, answers, strict=True):
        if "error" in answer:
            wrong += [record["query"]] if "error" not in record else []
            continue
        kinds = {n: k for n, (k, _) in answer["columns"].items()}
        recorded = {n: k for n, (k, _) in record.get("columns", {}).items()}
        found = ours(text, located(name), step=1 << 20)
        expected = {n: v for n, (_, v) in answer["columns"].items()}
        if kinds != recorded or repr(sorted(found.items())) != repr(sorted(expected.items())):
            wrong.append(record["query"])
    assert not wrong


def shapes() -> list[dict[str, Any]]:
    columns = uproot.open(located("shapes.root"))["tree"].arrays(["i", "b", "a", "p", "z"])
    rows: list[dict[str, Any]] = columns.to_list()
    return rows


# The contract's table of what upstream gets wrong, and where a lambda means something else there: a plain
# loop says what is right.
BETTER = {
    "DS.Select(lambda e: e.a.First())": lambda e: e["a"][0] if e["a"] else None,
    "DS.Select(lambda e: e.a.Last())": lambda e: e["a"][-1] if e["a"] else None,
    "DS.Select(lambda e: e.a.ElementAt(1))": lambda e: e["a"][1] if len(e["a"]) > 1 else None,
    "DS.Select(lambda e: len(e.a))": lambda e: len(e["a"]),
    "DS.Select(lambda e: sqrt(e.i * e.i))": lambda e: abs(float(e["i"])),
    "DS.Select(lambda e: 't')": lambda e: "t",
    "DS.Select(lambda e: sum(e.a))": lambda e: sum(e["a"]),
    "DS.Select(lambda e: e.a.Select(lambda m: e.z.Where(lambda n: n > m).Count()))": lambda e: [
        sum(n > m for n in e["z"]) for m in e["a"]
    ],
    "DS.Select(lambda e: e.a.Select(lambda m: e.z.Where(lambda n: n > m)))": lambda e: [
        [n for n in e["z"] if n > m] for m in e["a"]
    ],
    "DS.Select(lambda e: e.a.Select(lambda m: e.z.Count()))": lambda e: [len(e["z"]) for _ in e["a"]],
    "DS.Select(lambda e: e.a.Select(lambda m: e.i))": lambda e: [e["i"] for _ in e["a"]],
    "DS.Select(lambda e: e.a.Select(lambda m: e.p))": lambda e: [e["p"] for _ in e["a"]],
    "DS.Select(lambda e: e.a.Select(lambda m: m * e.p))": lambda e: [[m * p for p in e["p"]] for m in e["a"]],
    "DS.Select(lambda e: e.a.Choose(2).Select(lambda t: t[0] * t[1]))": lambda e: [
        x * y for i, x in enumerate(e["a"]) for y in e["a"][i + 1 :]
    ],
    "DS.Select(lambda e: Aggregate(e.a, 0, lambda acc, v: acc * 2 + v))": lambda e: folded(e["a"]),
}


def folded(values: list[int]) -> int:
    total = 0
    for value in values:
        total = total * 2 + value
    return total


def test_where_the_reference_fails_or_means_something_else_a_plain_loop_is_right():
    texts = [encoded(query, "tree") for query in BETTER]
    path, rows = located("shapes.root"), shapes()
    for query, text, answer in zip(BETTER, texts, reference([(t, str(path)) for t in texts]), strict=True):
        right = [BETTER[query](row) for row in rows]
        found = ours(text, path)[""]
        assert np.array_equal(repr(found), repr(json.loads(json.dumps(right)))), query
        # If the reference ever agrees, the query belongs into the record.
        assert answer.get("columns", {}).get("", ["", None])[1] != found, query
