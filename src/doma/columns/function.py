"""Python functions as queries: ``run_query`` of the user's source, run in a sandbox on one file at a time.

The selection is base64 of UTF-8 source. The server parses it and never compiles or imports it; what it
returns comes back as Arrow data.

Source: servicex.md §8.3 and §10 of the project's contracts.
"""

import ast
import base64
import hashlib
import re
import warnings
from importlib.metadata import version
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from doma.columns.evaluate import Table
from doma.columns.model import ENGINE, Progress
from doma.columns.query import Tell
from doma.columns.remote import Bytes
from doma.columns.sandbox import sandbox
from doma.columns.sink import Sink
from doma.core.errors import BadQuery, LimitExceeded, ServiceUnavailable

MAX_SOURCE = 256 << 10
"""Bytes of source."""
TREES = 1000
NAME = "run_query"
FACTS = ("awkward", "uproot", "numpy", "pyarrow")
"""Packages whose version is part of the digest: another one may give another answer."""


class PythonFunction:
    """A python selection behind the :class:`doma.columns.query.Query` Protocol.

    Attributes:
        log: What the function printed, its last 64 KiB; after a run.
    """

    def __init__(self, selection: str, isolation: str = "") -> None:
        """Parse a selection.

        Args:
            selection: Base64 of the source.
            isolation: Text of a :class:`doma.columns.sandbox.Isolation`; empty: it will not run here.
        """
        self._source = _decoded(selection)
        _check(self._source)
        self._isolation = isolation
        self.log = ""

    @property
    def digest(self) -> str:
        facts = [f"{name} {version(name)}" for name in FACTS]
        return hashlib.sha256("\0".join(["python", ENGINE, *facts, self._source]).encode()).hexdigest()

    def check(self, data: Bytes) -> tuple[str, ...]:
        return ()  # what it reads and returns is known when it has run

    def run(self, data: Bytes, sink: Sink, step: int, tell: Tell) -> tuple[str, ...]:
        if not self._isolation:
            raise ServiceUnavailable("python: this worker runs no functions; another one may")
        named: dict[str, tuple[str, ...]] = {}
        left: list[str] = []

        def feed(tree: str, table: Table) -> None:
            if not sink.trees and named and tree not in named:
                if tree not in left:
                    left.append(tree)
            else:
                named.setdefault(tree, tuple(table.columns))
                sink.write(table, tree)
            if len(named) + len(left) > TREES:
                raise LimitExceeded(f"{data.url}: the function returned more than {TREES} trees")

        def tick() -> None:
            tell(Progress(0, 0, data.taken))

        self.log = sandbox(self._isolation).run(self._source, data, file_name(data.url), feed, tick)
        if left:
            kept, rest = next(iter(named)), ", ".join(left)[:500]
            self.log += (
                f"\ndoma: Parquet holds one tree: {kept!r} is stored, {rest} left out; ask for root-file\n"
            )
        return next(iter(named.values()), ())


def file_name(url: str) -> str:
    """The name under which a function sees its input: plain letters, with the suffix.

    >>> file_name("https://a.org/d/my%20file.root?x=1"), file_name("https://a.org/")
    ('my_file.root', 'input')
    """
    name = PurePosixPath(unquote(urlsplit(url).path)).name
    return re.sub(r"[^A-Za-z0-9._-]", "_", name)[-100:].lstrip(".-") or "input"


def _decoded(selection: str) -> str:
    if len(selection) > 2 * MAX_SOURCE:
        raise LimitExceeded(f"selection: the function is larger than {MAX_SOURCE >> 10} KiB")
    try:
        data = base64.b64decode("".join(selection.split()), validate=True)
        text = data.decode("utf-8")
    except ValueError as e:
        raise BadQuery(f"selection: a python selection is base64 of UTF-8 source: {e}") from e
    if len(data) > MAX_SOURCE:
        raise LimitExceeded(f"selection: the function is larger than {MAX_SOURCE >> 10} KiB")
    return text


def _check(source: str) -> None:
    """Raise BadQuery unless the source parses and defines ``run_query``; nothing is compiled."""
    try:
        with warnings.catch_warnings():  # of odd escapes in strings: the user's affair
            warnings.simplefilter("ignore")
            found: list[Any] = [n for n in _top(ast.parse(source).body) if _defines(n)]
    except SyntaxError as e:
        raise BadQuery(f"selection: line {e.lineno or 1}: {e.msg}", line=e.lineno or 1) from e
    except (ValueError, RecursionError, MemoryError, OverflowError) as e:
        raise BadQuery(f"selection: the source cannot be parsed: {str(e)[:200] or type(e).__name__}") from e
    if not found:
        raise BadQuery(f"selection: the source defines no function {NAME}(input_filenames)")
    last = found[-1]
    if isinstance(last, ast.AsyncFunctionDef):
        raise BadQuery(f"selection: line {last.lineno}: {NAME} must be a plain function, not async")
    if isinstance(last, ast.FunctionDef) and not (
        last.args.args or last.args.posonlyargs or last.args.vararg
    ):
        raise BadQuery(f"selection: line {last.lineno}: {NAME} takes one argument, the file to read")


def _top(body: list[ast.stmt]) -> list[ast.stmt]:
    """The statements that run when the module does, those inside of ``if`` and ``try`` included."""
    found = []
    for node in body:
        found.append(node)
        for part in ("body", "orelse", "finalbody"):
            if isinstance(node, ast.If | ast.Try | ast.With):
                found += _top(getattr(node, part, []))
    return found


def _defines(node: ast.stmt) -> bool:
    match node:
        case ast.FunctionDef() | ast.AsyncFunctionDef():
            return node.name == NAME
        case ast.Assign():
            return any(isinstance(t, ast.Name) and t.id == NAME for t in node.targets)
        case ast.ImportFrom() | ast.Import():
            return any((a.asname or a.name) == NAME for a in node.names)
        case _:
            return False
