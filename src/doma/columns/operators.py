"""The sequence operators as expressions: Select, Where, Count … over the events and within an event.

Over the events only what can be done step by step is offered: the rest would need the whole file in memory.
"""

from typing import TYPE_CHECKING

from doma.columns import expressions as ex
from doma.columns import functions as known
from doma.columns.language import Node

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
        raise node.wrong(f"{name} needs a sequence, this is {what}")
    if shape.kind == "rows":
        return _over_events(c, name, source, shape, args, node, env)
    if shape.is_tuple:
        shape = ex.Shape("list", shape.fields[0][1] if len({s for _, s in shape.fields}) == 1 else ex.ANY)
    item = ex.members(shape)
    if name == "Aggregate":
        by, _ = c.function(name, args[2], (ex.ANY, item), env)
        return ex.Fold(source, c.number(args[1], env, name), by), ex.ANY
    if name in known.WITH_LAMBDA and len(args) == 2:
        by, result = c.function(name, args[1], (item,), env)
        return ex.Op(name, source, by), _after(name, shape, result)
    if name == "Choose":
        n = args[1].value if args[1].kind == "const" else None
        if type(n) is not int or not 1 <= n <= MAX_CHOOSE:
            raise args[1].wrong(f"Choose needs a number from 1 to {MAX_CHOOSE}")
        return ex.Op(name, source, arg=ex.Const(n)), ex.Shape("list", ex.Shape("list", item))
    if name in known.DEFAULTED:
        return _one_of(c, name, source, item, args, env)
    if len(args) == 2:
        arg, other = c.expr(args[1], env)
        if other.kind in {"row", "rows"} or (name == "Concat" and other.kind == "one"):
            raise args[1].wrong(f"{name} needs a sequence or a value here")
        if name == "Contains":
            return ex.Op(name, source, arg=arg), ex.ANY
        both = item if item == ex.members(other) else ex.ANY
        return ex.Op(name, source, arg=arg), ex.Shape("list", both)
    return ex.Op(name, source), _after(name, shape, ex.ANY)


def _one_of(
    c: "Compiler", name: str, source: ex.Expr, item: ex.Shape, args: tuple[Node, ...], env: "Env"
) -> "Typed":
    """First, Last, ElementAt, Max and Min; the last field, if given, stands in for what is missing."""
    needed = known.OPERATORS[name][0]
    arg = c.number(args[1], env, name) if needed == 2 else None
    found: ex.Expr = ex.Op(name, source, arg=arg)
    if len(args) > needed:
        found = ex.Fill(found, c.number(args[needed], env, f"the default of {name}", text=True))
    return found, item if name in {"First", "Last", "ElementAt"} else ex.ANY


def _after(name: str, source: ex.Shape, body: ex.Shape) -> ex.Shape:
    """What is known of an operator's result."""
    if name in {"Where", "OrderBy", "OrderByDescending"}:
        return source
    if name == "Select":
        return ex.Shape("list", body)
    if name == "SelectMany":
        return ex.Shape("list", ex.members(body))
    if name == "Zip" and source.kind == "record":
        return ex.Shape("list", ex.members(source))
    if name in {"Any", "All", "Count"}:
        return ex.ONE
    if name == "Sum":
        return ex.ONE if source.item is not None and source.item.kind == "one" else ex.ANY
    return ex.ANY


def _over_events(
    c: "Compiler", name: str, source: ex.Expr, shape: ex.Shape, args: tuple[Node, ...], node: Node, env: "Env"
) -> "Typed":
    item = shape.item or ex.ANY
    if env:
        raise node.wrong("it must read one EventDataset, outside of every lambda")
    if name in {*known.STREAMED, "Any", "All"} and len(args) == 2:
        around, c.filtering = c.filtering, name == "Where" and item.kind == "row"
        by, result = c.function(name, args[1], (item,), env)
        c.filtering = around
        if name in {"Any", "All"}:
            return ex.Op(name, source, by, over_events=True), ex.ONE
        after = {"Where": item, "Select": result}.get(name, ex.members(result))
        return ex.Op(name, source, by, over_events=True), ex.Shape("rows", after)
    if name == "Count":
        return ex.Op(name, source, over_events=True), ex.ONE
    whole = item.kind == "row"
    if name in known.PICKS and len(args) == 1:
        return ex.Op(name, source, over_events=True), item
    if name == "ElementAt" and len(args) == 2:
        return ex.Op(name, source, arg=c.number(args[1], env, name), over_events=True), item
    if name == "Aggregate" and not whole:
        return _total(c, source, item, args, node, env)
    if name == "Contains" and not whole:
        return ex.Op(name, source, arg=c.number(args[1], env, name, text=True), over_events=True), ex.ONE
    if name in known.TOTALS and len(args) == 1 and not whole:
        # Of a column of sequences it is a column of reductions: only the file knows.
        return ex.Op(name, source, over_events=True), ex.Shape(
            "rows", ex.ANY
        ) if item.kind != "one" else ex.ONE
    tail = "Select a column first" if whole else "use it inside Select, on a sequence of an event"
    raise node.wrong(
        f"{name} of {'whole events' if whole else 'the events'} is not offered, "
        f"as files are read in steps; {tail}"
    )


def _total(
    c: "Compiler", source: ex.Expr, item: ex.Shape, args: tuple[Node, ...], node: Node, env: "Env"
) -> "Typed":
    """A fold over all events: offered where it is a sum, a count or an extreme, as steps can be combined."""
    seed = args[1].value if args[1].kind == "const" else None
    by, _ = c.function("Aggregate", args[2], (ex.ANY, item), env)
    found = _reduction(by)
    if found is None or not isinstance(seed, int | float):
        raise node.wrong(
            "Aggregate over the events takes a number and acc + f(x), or "
            "acc if acc > f(x) else f(x); other folds work inside Select, on a sequence of an event"
        )
    name, each = found
    c.seed = seed
    column = ex.Op("Select", source, ex.Lambda(by.second, each, by.free), over_events=True)
    return ex.Op(name, column, over_events=True), ex.ONE


def _reduction(by: ex.Lambda) -> tuple[str, ex.Expr] | None:
    """The reduction that a fold is, and what it takes of each item."""
    acc = ex.Var(by.slot)
    match by.body:
        case ex.Ufunc("add" | "maximum" | "minimum" as name, (left, right)) if acc in (left, right):
            each = right if left == acc else left
            found = {"add": "Sum", "maximum": "Max", "minimum": "Min"}[name]
        case ex.If(
            ex.Ufunc("greater" | "greater_equal" | "less" | "less_equal" as name, (left, right)), yes, no
        ) if {left, right} == {yes, no} and acc in (left, right):
            each = right if left == acc else left
            # "acc if acc > x else x" and "x if x > acc else acc" keep the greater one.
            found = "Max" if name.startswith("greater") == (yes == left) else "Min"
        case _:
            return None
    return None if f"Var(slot={by.slot})" in repr(each) else (found, each)
