"""The typed plan of a query: names resolved, operators in one spelling, branches known, nothing evaluated.

:func:`compile_text` turns the tree of :mod:`doma.columns.language` into frozen expressions that the
interpreter walks. It refuses unknown names with the nearest known ones, checks the number of fields, and
follows the shape of every value as far as it is known without the file: an operator on a number is an
error here; on a branch only the file can tell.
"""

import hashlib
from dataclasses import dataclass

from doma.columns import functions as known
from doma.columns.compiler import Compiler
from doma.columns.expressions import Const, Expr, Op, Shape
from doma.columns.language import MAX_NAME, Node, parse
from doma.core.errors import BadQuery


@dataclass(frozen=True, slots=True)
class Plan:
    """A query that is ready to run on any file."""

    body: Expr
    tree: str | None
    """Tree or ntuple; None: the only one of the file."""
    branches: tuple[str, ...] | None
    """Branches that are read; None: all of them."""
    first: tuple[str, ...] = ()
    """Branches that event-level filters need; the others are read for surviving events only."""
    columns: tuple[str, ...] | None = None
    """Names that a wrapper gives to the output columns."""
    tree_out: str | None = None
    """Name that a wrapper gives to the output tree."""
    pick: int | None = None
    """Deliver one row only: this one, from the end if negative."""
    seed: int | float | bool | None = None
    """What a total starts from."""

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical query: the same question in another spelling has the same digest."""
        parts = (self.body, self.tree, self.columns, self.tree_out, self.pick, self.seed)
        return hashlib.sha256(repr(parts).encode()).hexdigest()


def compile_text(text: str) -> Plan:
    """The plan of a qastle text.

    Raises:
        BadQuery, UnknownColumn, LimitExceeded: the message says where and what is near.

    >>> compile_text("(call Select (call EventDataset 'f' 'T') (lambda (list e) (attr e 'pt')))").branches
    ('pt',)
    """
    compiler = Compiler()
    wrapped = _unwrapped(parse(text))
    body, shape = compiler.expr(wrapped.node, {})
    if compiler.sources != 1:
        raise BadQuery(f"query: it must read one EventDataset, this one has {compiler.sources}")
    pick = None
    if shape.kind != "rows":
        body, shape, pick = _one_row(body, shape)
    compiler.whole(shape)
    _check_names(wrapped.columns, shape)
    return Plan(
        body,
        compiler.tree,
        None if compiler.everything else tuple(sorted(compiler.branches)),
        tuple(sorted(compiler.first)),
        wrapped.columns,
        wrapped.tree,
        pick,
        compiler.seed,
    )


def _one_row(body: Expr, shape: Shape) -> tuple[Expr, Shape, int | None]:
    """A result that is one row of a file: a total, or one of the rows."""
    if isinstance(body, Op) and body.over_events:
        if body.name in known.PICKS:
            return body.source, Shape("rows", shape), known.PICKS[body.name]
        if body.name == "ElementAt" and isinstance(body.arg, Const) and type(body.arg.value) is int:
            if body.arg.value < -1:
                raise BadQuery("query: ElementAt of the events themselves takes 0, 1, …, or -1 for the last")
            return body.source, Shape("rows", shape), body.arg.value
        if body.name in known.TOTALS:
            return body, shape, None
    raise BadQuery(
        "query: the result must be a sequence of rows, or Count, Sum, Max, Min, First or such of one; "
        "wrap it in Select"
    )


@dataclass(frozen=True, slots=True)
class _Wrapped:
    node: Node
    columns: tuple[str, ...] | None = None
    tree: str | None = None


def _unwrapped(node: Node) -> _Wrapped:
    """The query inside a terminal wrapper, and the names that the wrapper gives."""
    spelled = _spelled(node)
    if spelled is None:
        return _Wrapped(node)
    name, args = spelled
    if not args:
        raise node.wrong(f"{name} has no source")
    if name == "MetaData":
        return _unwrapped(args[0])
    columns: tuple[str, ...] | None = None
    tree: str | None = None
    for meaning, arg in zip(_meanings(name, args[1:]), args[1:], strict=False):
        items = arg.args if arg.kind == "list" else (arg,)
        if not all(n.kind == "const" and (n.value is None or isinstance(n.value, str)) for n in items):
            raise arg.wrong(f"{name}: column names, tree and file must be strings")
        names = tuple(str(n.value) for n in items if n.value is not None)
        if any(not 0 < len(n) <= MAX_NAME for n in names) or len(set(names)) != len(names):
            raise arg.wrong(f"{name}: names must differ and have 1 to {MAX_NAME} characters")
        if meaning == "columns":
            columns = names or None
        elif meaning == "tree" and names:
            tree = names[0]
    return _Wrapped(args[0], columns, tree)


def _spelled(node: Node) -> tuple[str, tuple[Node, ...]] | None:
    """Name and fields of a wrapper in any of the three spellings."""
    names = {*known.WRAPPERS, "MetaData"}
    if node.kind in names:
        return node.kind, node.args
    if node.kind != "call" or not node.args:
        return None
    func, args = node.args[0], node.args[1:]
    if func.kind == "name" and func.value in names:
        return str(func.value), args
    if func.kind == "attr" and len(func.args) == 2 and func.args[1].value in names:
        return str(func.args[1].value), (func.args[0], *args)
    return None


def _meanings(name: str, args: tuple[Node, ...]) -> tuple[str, ...]:
    """What the fields after the source mean; a list is the columns, wherever it stands."""
    order = known.WRAPPERS[name]
    if args and args[0].kind == "list" and order[0] != "columns":
        return ("columns", *(m for m in reversed(order) if m != "columns"))
    return order


def _check_names(columns: tuple[str, ...] | None, shape: Shape) -> None:
    """The wrapper must name as many columns as there are, where that is known."""
    item = shape.item
    if columns is None or item is None or item.kind not in {"record", "one"}:
        return
    made = len(item.fields) if item.kind == "record" else 1
    if made != len(columns):
        raise BadQuery(f"query: {len(columns)} column names are given for {made} columns")
