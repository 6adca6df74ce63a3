"""The reference engine's recorded answers: ours must give the same values and types.

``tests/clients/test_columns_reference.py`` asks the reference itself and checks that the record is true.
"""

import ast
import hashlib
import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import qastle

from doma.columns.funcadl import FuncAdl
from doma.columns.remote import Bytes, open_bytes
from doma.core.errors import DomaError
from tests.clients.reference_types import plain
from tests.unit.columns_sink import Kept

REPO = Path(__file__).parents[2]
RECORD = json.loads((REPO / "tests/data/columns_reference.json").read_text())
ANSWERED = [r for r in RECORD if "columns" in r]
REFUSED = [r for r in RECORD if "error" in r]
WIDE = {"nano_dy.root", "cms_doublemuparked_100k.root"}
QUICK = [r for i, r in enumerate(ANSWERED) if r["file"] not in WIDE or i % 4 == 0]
NEITHER = (
    "e.nothing",
    "e.i == e.i.Count()",
    "2 ** e.i",
    "'phi': e.f}.ToFourMomentum",
    "OrderBy",
    "Contains",
    "IsoTkMu24",
    "{'x': e.i, 'y': e.f}).Sum()",
)
"""Names, counts of numbers, negative powers of integers …: what no engine can do."""


@cache
def opened(name: str) -> Bytes:
    folder = "tests/data" if (REPO / "tests/data" / name).exists() else "src/doma/facility/data"
    return open_bytes((REPO / folder / name).as_uri(), "", "", ("file://",))


def encoded(query: str, tree: str) -> str:
    source = query.replace("DS", f"EventDataset('bogus.root', {tree!r})", 1)
    return str(qastle.python_ast_to_text_ast(qastle.insert_linq_nodes(ast.parse(source))))


def answer(record: dict[str, Any], step: int = 1 << 26) -> dict[str, list[Any]]:
    """Our columns in the form of the record."""
    sink = Kept()
    FuncAdl(encoded(record["query"], record["tree"])).run(opened(record["file"]), sink, step, lambda _: None)
    return {
        n: [plain(c.type.content), json.loads(json.dumps(c.to_list()))] for n, c in sink.columns().items()
    }


def short(values: Any) -> Any:
    text = json.dumps(values)
    return values if len(text) <= 600 else "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def same(ours: dict[str, list[Any]], theirs: dict[str, list[Any]]) -> bool:
    """Exactly: also the sign of zero, and NaN is NaN."""
    return repr(sorted((n, k, short(v)) for n, (k, v) in ours.items())) == repr(
        sorted((n, k, v) for n, (k, v) in theirs.items())
    )


def named(record: dict[str, Any]) -> str:
    return re.sub(r"\s+", " ", f"{record['file'].split('.')[0]} {record['query']}")


@pytest.mark.parametrize("record", QUICK, ids=range(len(QUICK)))
def test_what_the_reference_answered_is_our_answer(record):
    ours = answer(record)
    assert same(ours, record["columns"]), f"{named(record)}: {str(ours)[:400]}"


def test_steps_of_a_few_events_give_the_same_answers():
    for record in ANSWERED[::7]:
        if record["file"] == "shapes.root":
            assert same(answer(record, step=400), record["columns"]), named(record)


def test_what_the_reference_cannot_do_is_answered_here_or_refused_clearly():
    refused = []
    for record in REFUSED:
        try:
            assert answer(record)
        except DomaError:
            refused.append(record["query"])
    assert all(any(part in query for part in NEITHER) for query in refused), refused
