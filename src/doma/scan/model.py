"""A query as one frozen value: what is read from where, which rows, which columns.

Pure: text in, :class:`Query` or one clear error out. The JSON form is version 1 of the scan language.

Source: scan.md §3.
"""

from dataclasses import dataclass
from typing import Any, Literal

from doma.core.errors import BadQuery
from doma.scan.grammar import MAX_NODES, Program, compile_expression
from doma.scan.jsontext import read, write
from doma.scan.place import wrong

VERSION = 1
MAX_COLUMNS = 20_000
MAX_NAME = 4096

Compression = Literal["none", "lz4", "zstd"]


@dataclass(frozen=True, slots=True)
class Options:
    """How the answer is wanted."""

    compression: Compression = "lz4"
    ordered: bool = True
    max_bytes: int | None = None
    """Bytes of Arrow data after which the query fails with ``limit``."""
    tree: str | None = None
    """Which tree or RNTuple of a ROOT file; None: the only one with entries."""
    passthrough: bool = False
    """The client can take raw column chunks; kept for that, IPC is sent in any case."""
    null_cut: Literal["drop"] = "drop"


@dataclass(frozen=True, slots=True)
class Output:
    """One column spec: a column by name, an expression under a name, or a collection cut to objects."""

    name: str
    kind: Literal["column", "expression", "keep"] = "column"
    program: Program | None = None


@dataclass(frozen=True, slots=True)
class Query:
    """A checked query.

    Args:
        dataset: ``/<endpoint>/<path>``, or a glob of it.
        columns: None: all.
        where: None: every row.
        limit: Rows at most.
        options: How.
        text: The request as JSON, as it travels in a ticket.
    """

    dataset: str
    columns: tuple[Output, ...] | None
    where: Program | None
    limit: int | None
    options: Options
    text: str


def parse(text: str | bytes) -> Query:
    """The query of a JSON text.

    Raises:
        BadQuery: not the language; ``detail["pointer"]`` says where. LimitExceeded: too large or too deep.
        Unsupported: a part of the language that this version does not run.
    """
    body = read(text)
    return checked(body, text if isinstance(text, str) else text.decode())


def build(body: dict[str, Any]) -> Query:
    """The query of a Python value in the JSON form; same errors."""
    return checked(body, write(body))


def whole(dataset: str) -> Query:
    """All rows and columns of a dataset."""
    return build({"v": VERSION, "from": dataset})


def checked(body: Any, text: str) -> Query:
    """The query of a decoded JSON value."""
    if not isinstance(body, dict):
        raise wrong('a query is an object: {"v": 1, "from": "/site/file.parquet", …}', None)
    unknown = set(body) - {"v", "from", "columns", "where", "limit", "options"}
    if unknown:
        raise wrong(f"the key {min(unknown)[:50]!r} is not known", None)
    version = body.get("v")
    if version != VERSION or isinstance(version, bool):
        raise wrong(f'version {version!r:.20} is not spoken here; send "v": {VERSION}', (None, "v"))
    dataset = body.get("from")
    if not isinstance(dataset, str) or not dataset or len(dataset) > MAX_NAME:
        raise wrong("'from' is the name of a dataset: /<endpoint>/<path>", (None, "from"))
    budget = [MAX_NODES]
    where = body.get("where")
    return Query(
        dataset,
        _outputs(body.get("columns"), budget),
        None if where is None else compile_expression(where, (None, "where"), budget),
        _count(body.get("limit"), "limit"),
        _options(body.get("options") or {}),
        text,
    )


def _outputs(specs: Any, budget: list[int]) -> tuple[Output, ...] | None:
    if specs is None:
        return None
    if not isinstance(specs, list) or len(specs) > MAX_COLUMNS:
        raise wrong(f"'columns' is a list of at most {MAX_COLUMNS} specs", (None, "columns"))
    out: list[Output] = []
    for n, spec in enumerate(specs):
        place = ((None, "columns"), n)
        if isinstance(spec, str):
            out.append(Output(spec))
        elif isinstance(spec, dict) and set(spec) == {"keep"}:
            out.append(Output("keep", "keep", compile_expression(spec, place, budget)))
        elif isinstance(spec, dict) and set(spec) == {"as", "expr"} and isinstance(spec["as"], str):
            out.append(
                Output(spec["as"], "expression", compile_expression(spec["expr"], (place, "expr"), budget))
            )
        else:
            raise wrong('a column is a name, {"as": name, "expr": …} or {"keep": [scope, cut]}', place)
    names = [o.name for o in out if o.kind != "keep"]
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise wrong(
            f"the column {twice[:80]!r} is asked twice; give one of them another name", (None, "columns")
        )
    return tuple(out)


def _count(value: Any, key: str) -> int | None:
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 63:
        raise wrong(f"{key!r} is a whole number from 0", (None, key))
    return value


def _options(body: Any) -> Options:
    here = (None, "options")
    if not isinstance(body, dict):
        raise wrong("'options' is an object", here)
    known = set(Options.__dataclass_fields__)
    unknown = set(body) - known
    if unknown:
        raise wrong(
            f"the option {min(unknown)[:50]!r} is not known; options: {', '.join(sorted(known))}", here
        )
    compression: Any = body.get("compression") or "none"
    checks = {
        "compression": compression in ("none", "lz4", "zstd"),
        "ordered": isinstance(body.get("ordered", True), bool),
        "passthrough": isinstance(body.get("passthrough", False), bool),
        "tree": isinstance(body.get("tree"), str | None),
        "null_cut": body.get("null_cut", "drop") == "drop",
    }
    bad = next((key for key, good in checks.items() if not good), None)
    if bad is not None:
        raise BadQuery(
            f"query/options/{bad}: {body[bad]!r:.50} is not a value of it", pointer=f"/options/{bad}"
        )
    return Options(
        compression=compression if "compression" in body else "lz4",
        ordered=body.get("ordered", True),
        max_bytes=_count(body.get("max_bytes"), "max_bytes"),
        tree=body.get("tree"),
        passthrough=body.get("passthrough", False),
    )
