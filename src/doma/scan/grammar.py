"""Expressions: checked JSON to a flat program, each step after the steps it needs.

A :class:`Program` is a postfix list, so that whoever walks it (planner, evaluator, pruning) needs a loop and
no recursion, however deep the expression was. Every step knows its place in the request for error messages.

Source: scan.md §3.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from doma.core.errors import LimitExceeded, Unsupported
from doma.scan.literal import Literal, literal, member
from doma.scan.place import Place, shown, wrong

MAX_DEPTH = 2000
MAX_NODES = 50_000
MAX_MEMBERS = 100_000
MAX_SCOPES = 8

COMPARE = frozenset({"<", "<=", ">", ">=", "==", "!="})
AGGREGATE = frozenset({"any", "all", "count", "sum", "min", "max", "mean"})
_ONE = (
    *("not", "is_nan", "is_finite", "neg", "abs", "sqrt", "exp", "log", "log10", "sin", "cos", "tan", "sinh"),
    *("cosh", "tanh", "asin", "acos", "atan", "floor", "ceil", "round", "len", "str_len", "lower", "upper"),
)
_TWO = ["<", "<=", ">", ">=", "==", "!=", "-", "/", "//", "%", "**", "atan2", "min2", "max2"]
_MANY = ["and", "or", "+", "*", "coalesce"]
_TEXT = frozenset({"starts_with", "ends_with", "contains", "like", "regex"})
_SPECIAL = frozenset({"col", "lit", "var", "in", "is_null", "cast", "if", "at", "keep"})
_LATER = frozenset(
    {"bitand", "bitor", "bitxor", "shl", "shr", "argmin", "argmax", "first", "dphi", "dr", "mass2"}
)
ARITY: Mapping[str, tuple[int, int]] = {
    **dict.fromkeys(_ONE, (1, 1)),
    **dict.fromkeys(_TWO, (2, 2)),
    **dict.fromkeys(_MANY, (1, 1 << 62)),  # bounded by the nodes of the request
    "if": (3, 3),
}
KNOWN = frozenset(ARITY) | _TEXT | _SPECIAL | AGGREGATE
_EXTRA = {"lit": {"type"}, "is_null": {"nan_is_null"}, "cast": {"safe"}, "at": {"strict"}}
TOTAL = (
    frozenset(COMPARE)
    | _TEXT
    | {
        "col",
        "lit",
        "and",
        "or",
        "not",
        "in",
        "is_null",
        "is_nan",
        "is_finite",
        "if",
        "coalesce",
        "len",
        "str_len",
    }
)
"""Steps that cannot fail on any value: a program of these alone may skip rows by statistics unseen."""


@dataclass(frozen=True, slots=True)
class Scope:
    """Lists that run in parallel; the value of a ``scope`` step.

    Args:
        name: What ``var`` steps call an object of it.
        fields: Variables; explicit scopes have one list per field among the step's ``args``.
        collection: ``Muon`` for the short form: field ``pt`` is the column ``Muon_pt``.
        outer: Position of the enclosing scope's step.
    """

    name: str
    fields: tuple[str, ...]
    collection: str | None = None
    outer: int | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """One operation over the results of earlier steps.

    Args:
        op: The operator as in the request, or ``scope``.
        args: Positions of earlier steps.
        value: What belongs to the operator itself: a path, a Literal, a Scope, options.
        place: Where it stood.
    """

    op: str
    args: tuple[int, ...] = ()
    value: Any = None
    place: Place | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Program:
    """An expression, ready to be walked: the last step is the result."""

    steps: tuple[Step, ...]

    def columns(self) -> set[str]:
        """Top-level columns named outright; those of short scopes depend on the schema."""
        return {step.value[0] for step in self.steps if step.op == "col"}

    def scopes(self) -> Iterator[Scope]:
        """Scopes of the short form."""
        return (s.value for s in self.steps if s.op == "scope" and s.value.collection is not None)

    def total(self) -> bool:
        """Whether evaluation cannot fail on any value."""
        return all(step.op in TOTAL for step in self.steps)

    def live(self) -> int:
        """How many intermediate results are held at once at most: what memory is planned with."""
        last = last_uses(self.steps)
        now = peak = 0
        for position, step in enumerate(self.steps):
            now += 1
            peak = max(peak, now)
            now -= sum(last[arg] == position for arg in set(step.args))
        return peak


def last_uses(steps: tuple[Step, ...]) -> list[int]:
    """Position of the step that needs a step's result last."""
    last = list(range(len(steps)))
    for position, step in enumerate(steps):
        for arg in step.args:
            last[arg] = position
    return last


@dataclass(slots=True)
class _Open:
    """A scope while its body is read."""

    name: str
    fields: list[str]
    collection: str | None
    position: int = -1


_Names = tuple["_Names | None", _Open]


def compile_expression(expression: Any, place: Place | None, budget: list[int] | None = None) -> Program:
    """The program of one JSON expression.

    Args:
        expression: Decoded JSON.
        place: Where it stands in the request.
        budget: One cell with the nodes still allowed; shared by all expressions of a request.

    Raises:
        BadQuery: an unknown operator, wrong arguments, an unknown variable; ``pointer`` says where.
        Unsupported: an operator of the language that this version does not run.
        LimitExceeded: too deep or too many nodes.
    """
    return _Compiler(budget if budget is not None else [MAX_NODES]).run(expression, place)


class _Compiler:
    def __init__(self, budget: list[int]) -> None:
        self.budget = budget
        self.steps: list[Step] = []
        self.results: list[int] = []
        self.seen: dict[tuple[Any, ...], int] = {}
        self.work: list[tuple[Any, ...]] = []

    def run(self, expression: Any, place: Place | None) -> Program:
        self.work.append((self._visit, expression, place, None, 1))
        while self.work:
            act, *rest = self.work.pop()
            act(*rest)
        return Program(tuple(self.steps))

    def _emit(self, op: str, count: int, value: Any, place: Place | None) -> None:
        start = len(self.results) - count
        args = tuple(self.results[start:])
        del self.results[start:]
        self._append(Step(op, args, value, place))

    def _append(self, step: Step) -> None:
        key = (step.op, step.args, step.value) if step.op in {"col", "var"} else None
        if key is not None and key in self.seen:
            self.results.append(self.seen[key])
            return
        self.steps.append(step)
        self.results.append(len(self.steps) - 1)
        if key is not None:
            self.seen[key] = len(self.steps) - 1

    def _visit(self, node: Any, place: Place | None, names: "_Names | None", depth: int) -> None:
        self.budget[0] -= 1
        if self.budget[0] < 0:
            raise LimitExceeded(f"query{shown(place)}: more than {MAX_NODES} nodes; split the query")
        if depth > MAX_DEPTH:
            raise LimitExceeded(
                f"query{shown(place)}: deeper than {MAX_DEPTH} levels; flatten the expression"
            )
        op = _operator(node, place)
        body = node[op]
        if op in ARITY:
            self._plain(op, body, place, names, depth)
        elif op in AGGREGATE or op == "keep":
            self._over_scope(op, body, place, names, depth)
        else:
            self._special(op, node, (place, op), names, depth)

    def _plain(self, op: str, body: Any, place: Place | None, names: "_Names | None", depth: int) -> None:
        low, high = ARITY[op]
        here: Place = (place, op)
        args = body if isinstance(body, list) and high > 1 else [body]
        if isinstance(body, list) and high == 1:
            raise wrong(f"{op!r} takes one expression, not a list", here)
        if not low <= len(args) <= high:
            raise wrong(
                f"{op!r} takes {low if low == high else 'one or more'} arguments, here are {len(args)}", here
            )
        places: list[Place] = [here] if high == 1 else [(here, n) for n in range(len(args))]
        if high > 3 and len(args) > 1:
            # Folded from the left, so that two results are alive at a time instead of all.
            for n in range(len(args) - 1, 0, -1):
                self.work.append((self._emit, op, 2, None, place))
                self.work.append((self._visit, args[n], places[n], names, depth + 1))
            self.work.append((self._visit, args[0], places[0], names, depth + 1))
            return
        self.work.append((self._emit, op, len(args), None, place))
        for n in range(len(args) - 1, -1, -1):
            self.work.append((self._visit, args[n], places[n], names, depth + 1))

    def _over_scope(
        self, op: str, body: Any, place: Place | None, names: "_Names | None", depth: int
    ) -> None:
        here: Place = (place, op)
        if op == "keep" and (place is None or not isinstance(place[1], int) or depth > 1):
            raise wrong("'keep' is a column, not part of an expression", here)
        if not isinstance(body, list) or not (len(body) == 2 or (op == "count" and len(body) == 1)):
            raise wrong(f"{op!r} takes [scope, expression]", here)
        opened, lists = _scope(body[0], (here, 0))
        inner: _Names = (names, opened)
        if sum(1 for _ in _chain(inner)) > MAX_SCOPES:
            raise LimitExceeded(f"query{shown(here)}: more than {MAX_SCOPES} nested scopes; unnest them")
        predicate = body[1] if len(body) == 2 else {"lit": True}
        self.work.append((self._close, op, opened, place))
        self.work.append((self._visit, predicate, (here, 1), inner, depth + 1))
        self.work.append((self._open, opened, len(lists), names, (here, 0)))
        for n in range(len(lists) - 1, -1, -1):
            self.work.append((self._visit, lists[n], ((here, 0), "each"), names, depth + 1))

    def _open(self, opened: _Open, count: int, names: "_Names | None", place: Place) -> None:
        outer = names[1].position if names else None
        scope = Scope(opened.name, tuple(opened.fields), opened.collection, outer)
        self._emit("scope", count, scope, place)
        if outer is not None:
            top = self.steps[-1]
            self.steps[-1] = replace(top, args=(*top.args, outer))
        opened.position = len(self.steps) - 1

    def _close(self, op: str, opened: _Open, place: Place | None) -> None:
        step = self.steps[opened.position]
        if opened.collection is not None:
            self.steps[opened.position] = replace(
                step, value=replace(step.value, fields=tuple(opened.fields))
            )
        self._emit(op, 2, None, place)

    def _special(self, op: str, node: Any, here: Place, names: "_Names | None", depth: int) -> None:
        body = node[op]
        if op == "col":
            path = (body,) if isinstance(body, str) else tuple(body) if isinstance(body, list) else ()
            if not path or not all(isinstance(part, str) for part in path) or len(path) > 32:
                raise wrong("'col' takes a name, or a list of names for a nested field", here)
            self._append(Step("col", (), path, here))
        elif op == "lit":
            self._append(Step("lit", (), literal(body, node.get("type"), here, wrong), here))
        elif op == "var":
            self._variable(body, here, names)
        elif op == "in":
            self._push(op, body, 1, _members(body, here), here, names, depth)
        elif op == "is_null":
            value = _flag(node, "nan_is_null", False, here)
            self._push(op, [body], 1, value, here, names, depth)
        elif op == "cast":
            if not isinstance(body, list) or len(body) != 2 or not isinstance(body[1], str):
                raise wrong("'cast' takes [expression, type name]", here)
            self._push(op, body, 1, (body[1], _flag(node, "safe", True, here)), here, names, depth)
        elif op == "at":
            index = body[1] if isinstance(body, list) and len(body) == 2 else None
            if not isinstance(index, int) or isinstance(index, bool) or abs(index) >= 1 << 31:
                raise wrong("'at' takes [list, whole number]", here)
            self._push(op, body, 1, (index, _flag(node, "strict", False, here)), here, names, depth)
        else:
            if not isinstance(body, list) or len(body) != 2 or not isinstance(body[1], str):
                raise wrong(f"{op!r} takes [expression, text]", here)
            self._push(op, body, 1, body[1], here, names, depth)

    def _push(
        self, op: str, args: Any, count: int, value: Any, here: Place, names: "_Names | None", depth: int
    ) -> None:
        self.work.append((self._emit, op, count, value, here))
        for n in range(count - 1, -1, -1):
            self.work.append((self._visit, args[n], (here, n), names, depth + 1))

    def _variable(self, body: Any, here: Place, names: "_Names | None") -> None:
        if not isinstance(body, str):
            raise wrong("'var' takes a name such as \"mu.pt\"", here)
        name, _, part = body.partition(".")
        for opened in _chain(names):
            if opened.name == name and part:
                if part not in opened.fields:
                    if opened.collection is None:
                        have = ", ".join(opened.fields)
                        raise wrong(f"the scope {name!r} has no {part!r}; it has {have}", here)
                    opened.fields.append(part)
                self._append(Step("var", (opened.position,), part, here))
                return
        have = ", ".join(sorted({o.name for o in _chain(names)})) or "none is open here"
        raise wrong(f"{body[:80]!r} is not a variable of a scope; scopes: {have}", here)


def _chain(names: "_Names | None") -> Iterator[_Open]:
    while names is not None:
        names, opened = names
        yield opened


def _operator(node: Any, place: Place | None) -> str:
    if not isinstance(node, dict) or not node:
        raise wrong('an expression is an object with one operator, such as {"col": "MET_pt"}', place)
    found = [key for key in node if key in KNOWN]
    if len(found) != 1:
        later = [key for key in node if key in _LATER]
        if later:
            raise Unsupported(
                f"query{shown(place)}: {later[0]!r} is not offered yet; compute it after the scan"
            )
        name = next(iter(node))
        raise wrong(f"{name[:50]!r} is not one operator of the language", place)
    surplus = set(node) - {found[0]} - _EXTRA.get(found[0], set())
    if surplus:
        raise wrong(f"{found[0]!r} does not know the key {min(surplus)[:50]!r}", place)
    return str(found[0])


def _flag(node: Mapping[str, Any], key: str, default: bool, here: Place) -> bool:
    value = node.get(key, default)
    if not isinstance(value, bool):
        raise wrong(f"{key!r} is true or false", here)
    return value


def _members(body: Any, here: Place) -> tuple[tuple[Literal, ...], bool, bool]:
    """The literals of an ``in`` and whether null and NaN match."""
    if not isinstance(body, list) or len(body) not in {2, 3} or not isinstance(body[1], list):
        raise wrong('\'in\' takes [expression, [values], {"null": …, "nan": …}]', here)
    if len(body[1]) > MAX_MEMBERS:
        raise LimitExceeded(f"query{shown(here)}: {len(body[1])} values, the limit is {MAX_MEMBERS}")
    options = body[2] if len(body) == 3 else {}
    if not isinstance(options, dict) or set(options) - {"null", "nan"}:
        raise wrong('the options of \'in\' are {"null": …, "nan": …}', here)
    null, nan = (_flag(options, key, False, here) for key in ("null", "nan"))
    return tuple(member(item, ((here, 1), n), wrong) for n, item in enumerate(body[1])), null, nan


def _scope(body: Any, here: Place) -> tuple[_Open, list[Any]]:
    """A scope and the expressions of its lists."""
    if isinstance(body, dict) and ("pairs" in body or "cross" in body):
        raise Unsupported(f"query{shown(here)}: pair and cross scopes are not offered yet; use 'each'")
    if not isinstance(body, dict) or "each" not in body or set(body) - {"each", "as"}:
        raise wrong('a scope is {"each": "Muon"} or {"each": {"pt": "Muon_pt"}, "as": "mu"}', here)
    each, name = body["each"], body.get("as")
    if name is not None and (not isinstance(name, str) or not name or "." in name):
        raise wrong("'as' is a name without a dot", here)
    if isinstance(each, str) and each:
        return _Open(name or each, [], each), []
    if not isinstance(each, dict) or not each or len(each) > 1000:
        raise wrong("'each' takes a collection or an object of lists", here)
    if name is None:
        raise wrong("'as' is missing: the name of one object", here)
    lists = [{"col": item} if isinstance(item, str) else item for item in each.values()]
    return _Open(name, list(each), None), lists
