"""The plan of a func_adl query in words, and what it would take of a file."""

from doma.columns import expressions as ex
from doma.columns import functions as known
from doma.columns.evaluate import Table
from doma.columns.explain import Explained, FileFacts, Step, columns_of
from doma.columns.plan import Plan

SIGNS = {name: sign for sign, name in (*known.UNARY.items(), *known.BINARY.items())}
SIGNS |= {"positive": "+", "negative": "-", "invert": "~", "logical_not": "not "}
VERBS = {
    "Select": "for each {0}: {1}",
    "SelectMany": "for each {0}, flattened: {1}",
    "Where": "keep each {0} for which {1}",
    "Any": "whether for any {0}: {1}",
    "All": "whether for every {0}: {1}",
    "OrderBy": "sort by {1} of each {0}",
    "OrderByDescending": "sort by {1} of each {0}, greatest first",
}

LONG = 300
"""Characters of one line."""


def explained(
    plan: Plan, digest: str, tree_out: str, empty: Table | None = None, file: FileFacts | None = None
) -> Explained:
    """A plan, explained; ``empty`` is its output without rows."""
    columns = () if empty is None else columns_of(empty)
    return Explained(
        "uproot", digest, plan.tree, tree_out, plan.branches, plan.first, _steps(plan), columns, file
    )


def _steps(plan: Plan) -> tuple[Step, ...]:
    """The chain over the events, first thing first."""
    steps = [Step(0, "the events of " + (f"tree {plan.tree!r}" if plan.tree else "the only tree"))]
    chain: list[ex.Op] = []
    at: ex.Expr = plan.body
    while isinstance(at, ex.Op):
        chain.append(at)
        at = at.source
    for op in reversed(chain):
        steps += _step(op)
    if plan.seed is not None:
        steps.append(Step(0, f"starting from {plan.seed!r}"))
    if plan.pick is not None:
        steps.append(Step(0, "the last row only" if plan.pick < 0 else f"row {plan.pick} only"))
    if plan.columns:
        steps.append(Step(0, f"columns are named {', '.join(plan.columns)}"))
    return tuple(steps)


def _step(op: ex.Op) -> list[Step]:
    if op.by is None:
        return [Step(0, f"{op.name} of all of them")]
    name, body = f"${op.by.slot}", op.by.body
    if not isinstance(body, ex.Record):
        return [Step(0, _cut(VERBS[op.name].format(name, _words(body))))]
    head = VERBS[op.name].format(name, "the columns" if op.name == "Select" else "")
    parts = zip(body.names, body.values, strict=True)
    return [Step(0, head.rstrip()), *(Step(1, _cut(f"{n} = {_words(v)}")) for n, v in parts)]


def _cut(text: str) -> str:
    return text if len(text) <= LONG else text[: LONG - 1] + "…"


def _words(expr: ex.Expr) -> str:
    """An expression as one reads it; the arguments of lambdas are numbered: ``$1``."""
    match expr:
        case ex.Const(value=value):
            return repr(value)
        case ex.Var(slot=slot):
            return f"${slot}"
        case ex.Events():
            return "events"
        case ex.Field(source=source, name=name):
            return f"{_words(source)}.{name}" if name.isidentifier() else f"{_words(source)}[{name!r}]"
        case ex.Item(source=source, index=index):
            return f"{_words(source)}[{_words(index)}]"
        case ex.Slice(source=source, low=low, high=high, step=step):
            ends = ":".join("" if e is None else str(e) for e in (low, high, step))
            return f"{_words(source)}[{ends}]"
        case ex.Ufunc(name=name, args=args):
            return _called(name, [_words(a) for a in args])
        case ex.Cast(dtype=dtype, source=source):
            return f"{dtype}({_words(source)})"
        case ex.If(test=test, yes=yes, no=no):
            return f"({_words(yes)} if {_words(test)} else {_words(no)})"
        case ex.Fill(source=source, default=default):
            return f"({_words(source)}, or {_words(default)} if there is none)"
        case ex.Record(names=names, values=values, is_tuple=is_tuple):
            parts = [w if is_tuple else f"{n}: {w}" for n, w in zip(names, map(_words, values), strict=True)]
            return f"[{', '.join(parts)}]" if is_tuple else f"{{{', '.join(parts)}}}"
        case ex.Fold(source=source, seed=seed, by=by):
            lambda_ = f"${by.slot}, ${by.second}: {_words(by.body)}"
            return f"{_words(source)}.Aggregate({_words(seed)}, {lambda_})"
        case ex.Span(low=first, high=last):
            return f"Range({_words(first)}, {_words(last)})"
        case ex.Method(name=name, source=source, args=args):
            return f"{_words(source)}.{name}({', '.join(map(_words, args))})"
        case ex.Op(name=name, source=source, by=by, arg=arg):
            inside = f"${by.slot}: {_words(by.body)}" if by else _words(arg) if arg else ""
            return f"{_words(source)}.{name}({inside})"


def _called(name: str, args: list[str]) -> str:
    sign = SIGNS.get(name)
    if sign is None:
        return f"{name}({', '.join(args)})"
    return f"{sign}{args[0]}" if len(args) == 1 else "(" + f" {sign} ".join(args) + ")"
