"""Expressions of uproot-raw: Python's syntax, cut down to what computes on columns.

The text is parsed into Python's syntax tree and checked node by node against a closed list; nothing is ever
compiled or evaluated by Python. Names are looked up when a file is there, since branches may be called
anything: a text that is exactly a branch's name means that branch.

Source: servicex.md §8.2 of the project's contracts; ``uproot.language.python``.
"""

import ast
from dataclasses import dataclass

from doma.columns import functions as known
from doma.columns.language import SIGNS
from doma.columns.near import did_you_mean
from doma.columns.raw_functions import FUNCTIONS, KEYWORDS
from doma.core.errors import BadQuery, LimitExceeded
from doma.core.text import short

MAX_TEXT = 10_000
MAX_DEPTH = 60
MAX_NODES = 3000
MAX_INT = 1 << 64
GETTER = "get"
SYNTAX = set("()'\"+*=<>,&|~%^{}")
"""A text with one of these that does not parse is wrong; without them it may be a branch's name."""

UNARY = {op: known.UNARY[sign] for op, sign in SIGNS.items() if issubclass(op, ast.unaryop)}
BINARY = {op: known.BINARY[sign] for op, sign in SIGNS.items() if op not in UNARY}


@dataclass(frozen=True, slots=True)
class Formula:
    """A parsed text."""

    name: str
    """Of the column or alias that it gives."""
    text: str
    node: ast.expr | None
    """None: it can only be the name of a branch."""
    shape: str
    """The same for spellings that mean the same."""

    @property
    def paths(self) -> set[str]:
        """What in it may be a branch's place, as in ``parent/child``."""
        calls = [] if self.node is None else [n for n in ast.walk(self.node) if isinstance(n, ast.Call)]
        got = {a.value for c in calls for a in c.args if isinstance(a, ast.Constant)}
        return {t for t in {self.text, *got} if isinstance(t, str) and "/" in t}

    @classmethod
    def parse(cls, name: str, text: str) -> "Formula":
        """Check a text as far as that goes without a file.

        Raises:
            BadQuery, LimitExceeded: what is wrong, and where.

        >>> Formula.parse("a", "met > 10").shape == Formula.parse("b", "(met>10)").shape
        True
        """
        if len(text) > MAX_TEXT:
            raise LimitExceeded(f"an expression of {len(text)} characters is longer than {MAX_TEXT}")
        try:
            node = ast.parse(text.strip(), mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError) as e:
            if SYNTAX & set(text):
                raise BadQuery(f"{short(text)} is no expression: {_why(e)}") from e
            return cls(name, text, None, text)
        _Checker(text).check(node, 0)
        return cls(name, text, node, ast.dump(node))


class _Checker:
    """Refuses what is not in the language."""

    def __init__(self, text: str) -> None:
        self._text, self._nodes = text, 0

    def check(self, node: ast.expr, depth: int, place: str = "") -> None:
        """A node; ``place`` says where constants and lists may stand: index, argument."""
        self._nodes += 1
        if depth > MAX_DEPTH or self._nodes > MAX_NODES:
            raise LimitExceeded(f"{short(self._text)} is nested too deeply or too long")
        match node:
            case ast.BinOp(left=left, op=op, right=right) if type(op) in BINARY:
                inner = [left, right]
            case ast.UnaryOp(operand=operand):
                inner = [operand]
            case ast.BoolOp(values=values):
                inner = values
            case ast.Compare(left=left, ops=ops, comparators=others) if all(type(o) in BINARY for o in ops):
                inner = [left, *others]
            case ast.Call():
                return self._call(node, depth)
            case ast.Subscript(value=value, slice=index):
                self.check(value, depth + 1)
                return self._index(index, depth + 1)
            case ast.Attribute(value=value, attr=attr):
                if attr.startswith("__"):
                    raise self._refused(node, f"the name {attr!r}")
                inner = [value]
            case ast.Name(id=name):
                if name.startswith("__"):
                    raise self._refused(node, f"the name {name!r}")
                return None
            case ast.Constant():
                return self._constant(node, place)
            case ast.List(elts=items) | ast.Tuple(elts=items) if place == "argument":
                inner = items
            case ast.Dict(keys=keys, values=values) if place == "argument":
                if not all(isinstance(k, ast.Constant) and isinstance(k.value, str) for k in keys):
                    raise self._refused(node, "a dict whose keys are no strings")
                inner = values
            case _:
                raise self._refused(node, WORDS.get(type(node), f"{type(node).__name__}"))
        for child in inner:
            self.check(child, depth + 1)
        return None

    def _call(self, node: ast.Call, depth: int) -> None:
        if not isinstance(node.func, ast.Name):
            raise self._refused(node, "a call of something that is no name")
        name = node.func.id
        if name == GETTER:
            if node.keywords or len(node.args) != 1 or not _is_text(node.args[0]):
                raise self._refused(node, "get() of anything but one string")
            return
        if name not in FUNCTIONS:
            raise BadQuery(
                f"{short(self._text)}: there is no function {name!r}; {did_you_mean(name, FUNCTIONS)}"
            )
        for argument in node.args:
            self.check(argument, depth + 1, "argument")
        for keyword in node.keywords:
            if keyword.arg not in KEYWORDS:
                raise self._refused(node, f"the argument {keyword.arg or '**'!r}")
            self.check(keyword.value, depth + 1, "keyword")

    def _index(self, node: ast.expr, depth: int) -> None:
        match node:
            case ast.Tuple(elts=items):
                for item in items:
                    self._index(item, depth + 1)
            case ast.List(elts=items) if all(_is_text(i) for i in items) or all(_is_number(i) for i in items):
                return
            case ast.Slice(lower=lower, upper=upper, step=step):
                for bound in (lower, upper, step):
                    if bound is not None:
                        self.check(bound, depth + 1)
            case _:
                self.check(node, depth + 1, "index")

    def _constant(self, node: ast.Constant, place: str) -> None:
        value = node.value
        if isinstance(value, int) and abs(value) >= MAX_INT:
            raise self._refused(node, "a number of more than 64 bits")
        allowed: tuple[type, ...] = (bool, int, float)
        if place:
            allowed = (*allowed, str, type(None))
        if place == "index" and value is Ellipsis:
            return
        if not isinstance(value, allowed):
            raise self._refused(node, f"{type(value).__name__} {str(value)[:40]!r}")

    def _refused(self, node: ast.expr, what: str) -> BadQuery:
        return BadQuery(f"{short(self._text)}, column {node.col_offset + 1}: {what} has no place here")


WORDS: dict[type, str] = {
    ast.Lambda: "a lambda", ast.IfExp: "if … else (use where)", ast.ListComp: "a comprehension",
    ast.SetComp: "a comprehension", ast.DictComp: "a comprehension", ast.GeneratorExp: "a comprehension",
    ast.JoinedStr: "an f-string", ast.NamedExpr: "an assignment", ast.Await: "await", ast.Yield: "yield",
    ast.Starred: "*", ast.List: "a list", ast.Tuple: "a tuple", ast.Dict: "a dict", ast.Set: "a set",
    ast.Compare: "in, not in or is", ast.BinOp: "@",
}  # fmt: skip


def dotted(node: ast.expr) -> str | None:
    """``a.b.c`` as a text; None if it does not begin with a name."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        head = dotted(node.value)
        return None if head is None else f"{head}.{node.attr}"
    return None


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _is_number(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, int) and abs(node.value) < MAX_INT


def _why(error: BaseException) -> str:
    if isinstance(error, SyntaxError):
        return f"{error.msg} (column {error.offset})"
    return "it is nested too deeply" if isinstance(error, RecursionError | MemoryError) else str(error)[:100]
