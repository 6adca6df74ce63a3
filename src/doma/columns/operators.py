"""The sequence operators as expressions: Select, Where, Count … over the events and within an event.

Over the events only what can be done step by step is offered: the rest would need the whole file in memory.
"""

from typing import TYPE_CHECKING

from doma.columns import functions as known
from doma.columns.expressions import (
    ANY,
    ONE,
    Const,
    Expr,
    Fill,
    Fold,
    If,
    Lambda,
    Op,
    Shape,
    Ufunc,
    Var,
    members,
)
from doma.columns.language import Node
from doma.core.errors import BadQuery

if TYPE_CHECKING:
    from doma.columns.compiler import Compiler, Env, Typed

MAX_CHOOSE = 6
OF_RECORDS = frozenset({"Zip", "ToFourMomentum", "ToFourMomenta", "SelectMany"})
"""Operators that take a record of sequences, or a record."""


def operator(c: "Compiler", name: str, args: tuple[Node, ...], node: Node, env: "Env") -> "Typed":
    """The expression and shape of an operator.

    Raises:
        BadQuery: what it is given is no sequence, as far as that is known; a wrong number of fields.
    """
    c.count(name, args, *known.OPERATORS[name], node)
    source, shape = c.expr(args[0], env)
    if shape.kind in {"one", "row"} or (
        shape.kind == "record" and name not in OF_RECORDS and not shape.is_tuple
    ):
        what = {"one": "a number", "row": "an event", "record": "a record"}[shape.kind]
        raise BadQuery(f"query, at {node.at}: {name} needs a sequence, this is {what}")
    if shape.kind == "rows":
        return _over_events(c, name, source, shape, args, node, env)
    if shape.is_tuple:
        shape = Shape("list", shape.fields[0][1] if len({s for _, s in shape.fields}) == 1 else ANY)
    item = members(shape)
    if name == "Aggregate":
        by, _ = c.function(name, args[2], (ANY, item), env)
        return Fold(source, c.number(args[1], env, name), by), ANY
    if name in known.WITH_LAMBDA and len(args) == 2:
        by, result = c.function(name, args[1], (item,), env)
        return Op(name, source, by), _after(name, shape, result)
    if name == "Choose":
        n = args[1].value if args[1].kind == "const" else None
        if not isinstance(n, int) or isinstance(n, bool) or not 1 <= n <= MAX_CHOOSE:
            raise BadQuery(f"query, at {args[1].at}: Choose needs a number from 1 to {MAX_CHOOSE}")
        return Op(name, source, arg=Const(n)), Shape("list", Shape("list", item))
    if name in known.DEFAULTED:
        return _one_of(c, name, source, item, args, env)
    if len(args) == 2:
        arg, other = c.expr(args[1], env)
        if other.kind in {"row", "rows"} or (name == "Concat" and other.kind == "one"):
            raise BadQuery(f"query, at {args[1].at}: {name} needs a sequence or a value here")
        return Op(name, source, arg=arg), ANY if name == "Contains" else _joined(item, members(other))
    return Op(name, source), _after(name, shape, ANY)


def _one_of(
    c: "Compiler", name: str, source: Expr, item: Shape, args: tuple[Node, ...], env: "Env"
) -> "Typed":
    """First, Last, ElementAt, Max and Min; the last field, if given, stands in for what is missing."""
    needed = known.OPERATORS[name][0]
    arg = c.number(args[1], env, name) if needed == 2 else None
    found: Expr = Op(name, source, arg=arg)
    if len(args) > needed:
        found = Fill(found, c.number(args[needed], env, f"the default of {name}", text=True))
    return found, item if name in {"First", "Last", "ElementAt"} else ANY


def _joined(one: Shape, other: Shape) -> Shape:
    return Shape("list", one if one == other else ANY)


def _after(name: str, source: Shape, body: Shape) -> Shape:
    """What is known of an operator's result."""
    if name in {"Where", "OrderBy", "OrderByDescending"}:
        return source
    if name == "Select":
        return Shape("list", body)
    if name == "SelectMany":
        return Shape("list", members(body))
    if name == "Zip" and source.kind == "record":
        return Shape("list", members(source))
    if name in {"Any", "All", "Count"}:
        return ONE
    if name == "Sum":
        return ONE if source.item is not None and source.item.kind == "one" else ANY
    return ANY


def _over_events(
    c: "Compiler", name: str, source: Expr, shape: Shape, args: tuple[Node, ...], node: Node, env: "Env"
) -> "Typed":
    item = shape.item or ANY
    if env:
        raise BadQuery(f"query, at {node.at}: it must read one EventDataset, outside of every lambda")
    if name in {*known.STREAMED, "Any", "All"} and len(args) == 2:
        around, c.filtering = c.filtering, name == "Where" and item.kind == "row"
        by, result = c.function(name, args[1], (item,), env)
        c.filtering = around
        if name in {"Any", "All"}:
            return Op(name, source, by, over_events=True), ONE
        after = {"Where": item, "Select": result}.get(name, members(result))
        return Op(name, source, by, over_events=True), Shape("rows", after)
    if name == "Count":
        return Op(name, source, over_events=True), ONE
    whole = item.kind == "row"
    if name in known.PICKS and len(args) == 1:
        return Op(name, source, over_events=True), item
    if name == "ElementAt" and len(args) == 2:
        return Op(name, source, arg=c.number(args[1], env, name), over_events=True), item
    if name == "Aggregate" and not whole:
        return _total(c, source, item, args, node, env)
    if name == "Contains" and not whole:
        return Op(name, source, arg=c.number(args[1], env, name, text=True), over_events=True), ONE
    if name in known.TOTALS and len(args) == 1 and not whole:
        # Of a column of sequences it is a column of reductions: only the file knows.
        return Op(name, source, over_events=True), Shape("rows", ANY) if item.kind != "one" else ONE
    tail = "Select a column first" if whole else "use it inside Select, on a sequence of an event"
    raise BadQuery(
        f"query, at {node.at}: {name} of {'whole events' if whole else 'the events'} is not offered, "
        f"as files are read in steps; {tail}"
    )


def _total(
    c: "Compiler", source: Expr, item: Shape, args: tuple[Node, ...], node: Node, env: "Env"
) -> "Typed":
    """A fold over all events: offered where it is a sum, a count or an extreme, as steps can be combined."""
    seed = args[1].value if args[1].kind == "const" else None
    by, _ = c.function("Aggregate", args[2], (ANY, item), env)
    found = _reduction(by)
    if found is None or not isinstance(seed, int | float):
        raise BadQuery(
            f"query, at {node.at}: Aggregate over the events takes a number and acc + f(x), or "
            "acc if acc > f(x) else f(x); other folds work inside Select, on a sequence of an event"
        )
    name, each = found
    c.seed = seed
    column = Op("Select", source, Lambda(by.second, each, by.free), over_events=True)
    return Op(name, column, over_events=True), ONE


def _reduction(by: Lambda) -> tuple[str, Expr] | None:
    """The reduction that a fold is, and what it takes of each item."""
    acc = Var(by.slot)
    match by.body:
        case Ufunc("add" | "maximum" | "minimum" as name, (left, right)) if acc in (left, right):
            each = right if left == acc else left
            found = {"add": "Sum", "maximum": "Max", "minimum": "Min"}[name]
        case If(
            Ufunc("greater" | "greater_equal" | "less" | "less_equal" as name, (left, right)), yes, no
        ) if {left, right} == {yes, no} and acc in (left, right):
            each = right if left == acc else left
            # "acc if acc > x else x" and "x if x > acc else acc" keep the greater one.
            found = "Max" if name.startswith("greater") == (yes == left) else "Min"
        case _:
            return None
    return None if f"Var(slot={by.slot})" in repr(each) else (found, each)
