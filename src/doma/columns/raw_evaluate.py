"""Values of uproot-raw expressions over the events of a step."""

import ast
import operator
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import awkward as ak
import numpy as np
import numpy.typing as npt

from doma.columns.near import did_you_mean, unknown
from doma.columns.raw_functions import FUNCTIONS, call, crosses
from doma.columns.raw_language import BINARY, GETTER, MAX_INT, UNARY, Formula, dotted
from doma.columns.values import Rows
from doma.core.errors import BadQuery, DomaError, LimitExceeded, UnknownColumn
from doma.core.text import line_of, short

PYTHON: dict[str, Callable[..., Any]] = {
    "add": operator.add, "subtract": operator.sub, "multiply": operator.mul, "true_divide": operator.truediv,
    "floor_divide": operator.floordiv, "remainder": operator.mod, "power": operator.pow,
    "left_shift": operator.lshift, "right_shift": operator.rshift, "negative": operator.neg,
    "positive": operator.pos,
}  # fmt: skip
"""Operators between constants."""
CHAIN = 50
"""Aliases that need one another in a row."""


@dataclass(frozen=True, slots=True)
class Names:
    """What a name means in one tree."""

    place: str
    branches: frozenset[str]
    aliases: Mapping[str, Formula]
    standard_axis: bool = False

    def needs(
        self, formula: Formula, path: tuple[str, ...] = (), seen: dict[str, set[str]] | None = None
    ) -> set[str]:
        """The branches that a formula reads, those of its aliases included.

        Raises:
            UnknownColumn: with the nearest names. BadQuery: an alias that needs itself. LimitExceeded.
        """
        seen = {} if seen is None else seen
        if formula.text in self.branches:
            return {formula.text}
        if formula.node is None:
            raise self.unknown(formula.text)
        found: set[str] = set()
        for name in _names(formula.node, self):
            if name in self.branches:
                found.add(name)
            elif name in path:
                raise BadQuery(f"the alias {name!r} needs itself: {' → '.join((*path, name))}")
            elif len(path) == CHAIN:
                raise LimitExceeded(f"the alias {path[0]!r} needs a chain of more than {CHAIN} others")
            else:
                if name not in seen:  # or each of n aliases that use the next one twice would double the work
                    seen[name] = self.needs(self.aliases[name], (*path, name), seen)
                found |= seen[name]
        return found

    def known(self, name: str) -> bool:
        return name in self.branches or name in self.aliases

    def unknown(self, name: str) -> UnknownColumn:
        return unknown(f"{self.place}: there is no branch", name, (*self.branches, *self.aliases))


@dataclass(slots=True)
class Evaluator:
    """Formulas over some events; an alias is computed once."""

    names: Names
    rows: Rows
    _aliases: dict[str, Any] = field(default_factory=dict)

    def column(self, formula: Formula) -> ak.Array:
        """(size,) values of an expression.

        Raises:
            BadQuery: it does not fit the data, or has not one value for each event.
        """
        with _said(formula.text):
            value = self._formula(formula)
            if isinstance(value, bool | int | float) and _is_constant(formula.node):
                value = ak.Array(np.full(self.rows.size, value))
            if isinstance(value, np.ndarray) and value.ndim:
                value = ak.Array(value)
            if not isinstance(value, ak.Array) or len(value) != self.rows.size:
                got = f"{len(value)} values" if isinstance(value, ak.Array) else f"one {type(value).__name__}"
                raise BadQuery(f"it gives {got} for {self.rows.size} events, not one for each")
        return value

    def mask(self, formula: Formula) -> npt.NDArray[np.bool_]:
        """(size,) of a cut: true where it holds; a missing value does not."""
        value = self.column(formula)
        with _said(formula.text):
            if value.ndim != 1 or ak.fields(value):
                raise BadQuery("a cut needs one boolean for each event; any() or all() make one of a list")
            return np.asarray(ak.fill_none(value != 0, False), dtype=np.bool_)

    def _formula(self, formula: Formula) -> Any:
        if formula.text in self.names.branches:
            return self.rows.column(formula.text)
        assert formula.node is not None
        with np.errstate(all="ignore"):
            return self._value(formula.node)

    def _name(self, name: str) -> Any:
        if name in self.names.branches:
            return self.rows.column(name)
        if name not in self._aliases:
            self._aliases[name] = self._formula(self.names.aliases[name])
        return self._aliases[name]

    def _value(self, node: ast.expr) -> Any:
        match node:
            case ast.Constant(value=value):
                return value
            case ast.Name(id=name):
                return self._name(name)
            case ast.Attribute(value=inner, attr=attr):
                full = dotted(node)
                if full is not None and self.names.known(full):
                    return self._name(full)
                return _member(self._value(inner), attr)
            case ast.BinOp(left=left, op=op, right=right):
                return _operator(BINARY[type(op)], self._value(left), self._value(right))
            case ast.UnaryOp(op=unary, operand=operand):
                return _operator(UNARY[type(unary)], self._value(operand))
            case ast.BoolOp(op=both, values=values):
                found = self._value(values[0])
                for other in values[1:]:
                    found = _operator(BINARY[type(both)], found, self._value(other))
                return found
            case ast.Compare():
                return self._compare(node)
            case ast.Call(func=ast.Name(id=name), args=args, keywords=keywords):
                if name == GETTER:
                    return self._name(_text(args[0]))
                given = {k.arg or "": self._value(k.value) for k in keywords}
                return call(name, [self._value(a) for a in args], given, self.names.standard_axis)
            case ast.Subscript(value=inner, slice=index):
                return _item(self._value(inner), self._index(index))
            case ast.List(elts=items) | ast.Tuple(elts=items):
                return [self._value(i) for i in items]
            case ast.Dict(keys=keys, values=values):
                return {_text(k): self._value(v) for k, v in zip(keys, values, strict=True)}
            case _:
                raise AssertionError(type(node))

    def _compare(self, node: ast.Compare) -> Any:
        sides = [self._value(node.left), *map(self._value, node.comparators)]
        found: Any = None
        for op, left, right in zip(node.ops, sides, sides[1:], strict=False):
            part = _operator(BINARY[type(op)], left, right)
            found = part if found is None else _operator("logical_and", found, part)
        return found

    def _index(self, node: ast.expr) -> Any:
        match node:
            case ast.Tuple(elts=items):
                return tuple(self._index(i) for i in items)
            case ast.Slice(lower=lower, upper=upper, step=step):
                ends = [None if b is None else self._value(b) for b in (lower, upper, step)]
                if not all(e is None or type(e) is int for e in ends) or ends[2] == 0:
                    raise BadQuery("a slice takes whole numbers, and its step is not 0")  # awkward hangs
                return slice(*ends)
            case _:
                return self._value(node)


def across_events(formula: Formula) -> bool:
    """Whether a formula names an axis that is not within the event; then a cut must not come before it."""
    if formula.node is None:
        return False
    calls = [n for n in ast.walk(formula.node) if isinstance(n, ast.Call)]
    return any(
        isinstance(c.func, ast.Name)
        and crosses(c.func.id, len(c.args), {k.arg or "": getattr(k.value, "value", 1) for k in c.keywords})
        for c in calls
    )


def _names(node: ast.expr, names: Names) -> Iterator[str]:
    """The branches and aliases that a node mentions."""
    match node:
        case ast.Call(func=ast.Name(id=name), args=args, keywords=keywords):
            if name == GETTER:
                wanted = _text(args[0])
                if not names.known(wanted):
                    raise names.unknown(wanted)
                yield wanted
                return
            for child in (*args, *(k.value for k in keywords)):
                yield from _names(child, names)
        case ast.Name(id=name):
            if not names.known(name):
                if name in FUNCTIONS:
                    raise BadQuery(f"{name} is a function; call it with brackets")
                raise names.unknown(name)
            yield name
        case ast.Attribute(value=inner):
            full = dotted(node)
            if full is not None and names.known(full):
                yield full
            elif full is not None and not _begins_known(inner, names):
                raise names.unknown(full)
            else:
                yield from _names(inner, names)
        case _:
            for part in ast.iter_child_nodes(node):
                if isinstance(part, ast.expr):
                    yield from _names(part, names)


def _begins_known(node: ast.expr, names: Names) -> bool:
    """Whether some beginning of ``a.b.c`` is a branch whose members the rest names."""
    while isinstance(node, ast.Attribute):
        if names.known(dotted(node) or ""):
            return True
        node = node.value
    return isinstance(node, ast.Name) and names.known(node.id)


def _is_constant(node: ast.expr | None) -> bool:
    return node is not None and not any(isinstance(n, ast.Name) for n in ast.walk(node))


def _text(node: ast.expr | None) -> str:
    assert isinstance(node, ast.Constant)
    return str(node.value)


def _operator(name: str, *values: Any) -> Any:
    if not all(isinstance(v, ak.Array | np.ndarray | np.generic | bool | int | float) for v in values):
        raise BadQuery(f"{name} takes arrays and numbers")
    if any(isinstance(v, ak.Array | np.ndarray | np.generic) for v in values) or name not in PYTHON:
        return getattr(np, name)(*values)
    # NumPy's whole numbers would wrap round silently, Python's grow without bound.
    if name in {"power", "left_shift"} and abs(values[1]) > 1023:
        raise LimitExceeded(f"the number {values[1]} is too large here")
    found = PYTHON[name](*values)
    if isinstance(found, complex) or (isinstance(found, int) and abs(found) >= MAX_INT):
        raise LimitExceeded("a constant has more than 64 bits")
    return found


def _member(value: Any, name: str) -> Any:
    fields = ak.fields(value) if isinstance(value, ak.Array) else []
    if name not in fields:
        raise BadQuery(f"there is no member {name!r} here; {did_you_mean(name, fields)}")
    return value[name]


def _item(value: Any, index: Any) -> Any:
    if isinstance(value, list) and isinstance(index, int):
        return value[index]
    if not isinstance(value, ak.Array):
        raise BadQuery("only an array can be indexed")
    if isinstance(index, str):
        return _member(value, index)
    return value[index]


@contextmanager
def _said(text: str) -> Iterator[None]:
    """What NumPy and awkward raise on a query that does not fit the data, as ours, with the expression."""
    try:
        yield
    except UnknownColumn:
        raise
    except BadQuery as e:
        raise BadQuery(f"{short(text)}: {e.message}") from e
    except DomaError:
        raise
    except (ValueError, TypeError, LookupError, ArithmeticError, AttributeError, NotImplementedError,
            AssertionError, RecursionError) as e:  # fmt: skip
        raise BadQuery(f"{short(text)}: {line_of(str(e)) or type(e).__name__}") from e
