"""The query text: qastle (and Python lambdas given as strings) parsed into a tree, never evaluated.

The grammar is that of qastle: atoms are identifiers, quoted strings and numbers; composites are
``(type field …)``. The reader is iterative and bounded, so that a hostile text costs one clear error.
Chains of ``and``, ``or``, ``+`` and ``*`` are kept flat: a trigger list of 300 terms is not 300 levels deep.

Source: ``syntax.lark`` of qastle 0.19; servicex.md §8.1 of the project's contracts.
"""

import ast
import re
import warnings
from dataclasses import dataclass, field

from doma.core.errors import BadQuery, LimitExceeded
from doma.core.text import short

MAX_TEXT = 1 << 20
"""Bytes of a query."""
MAX_NODES = 50_000
MAX_NAME = 1000
MAX_NESTING = 2_000
"""Open brackets at once."""
MAX_DEPTH = 100
"""Depth of the tree after flattening: what the interpreter recurses over."""
MAX_PYTHON = 16 << 10
"""Bytes of one lambda given as Python text."""

FLAT = frozenset({"and", "or", "+", "*"})
_SPACE = re.compile(r"[ \t\r\n]*")
_TYPE = re.compile(r"[A-Za-z]+|\*\*|//|<<|>>|==|!=|<=|>=|[-+*/%&^|~<>]")
_ATOM = re.compile(
    r"""(?P<name>[A-Za-z_][A-Za-z0-9_]*)
      | (?P<number>[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)
      | (?P<text>'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")""",
    re.VERBOSE | re.DOTALL,
)
_ESCAPE = re.compile(r"\\(x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U00(?:0[0-9a-fA-F]|10)[0-9a-fA-F]{4}|.)", re.DOTALL)
_ESCAPED = {"n": "\n", "t": "\t", "r": "\r", "0": "\0", "\\": "\\", "'": "'", '"': '"'}
_WORDS: dict[str, bool | None] = {"True": True, "False": False, "None": None}


@dataclass(frozen=True, slots=True)
class Node:
    """One node: ``name``, ``const`` (value) or a composite (type and fields)."""

    kind: str
    args: tuple["Node", ...] = ()
    value: str | int | float | bool | None = None
    at: int = field(default=0, compare=False, repr=False)
    """Offset in the text, for messages."""
    depth: int = field(default=1, compare=False, repr=False)

    def wrong(self, what: str) -> BadQuery:
        """An error that says where in the text it is."""
        return BadQuery(f"query, at {self.at}: {what}")


def parse(text: str) -> Node:
    """The tree of a query text.

    Raises:
        BadQuery: not one well-formed expression. LimitExceeded: too long, too deep, too many nodes.

    >>> parse("(attr e 'pt')").args[1].value
    'pt'
    """
    if len(text) > MAX_TEXT or len(text.encode("utf-8", "replace")) > MAX_TEXT:
        raise LimitExceeded(f"query: the text has more than {MAX_TEXT} bytes; split the query")
    return _Reader(text).read()


def parse_python(text: str) -> Node:
    """The same tree from a Python expression, such as a lambda that arrived as a string constant.

    Raises:
        BadQuery: no expression, or syntax that the query language does not have.

    >>> parse_python("lambda e: e.pt > 3").kind
    'lambda'
    """
    if len(text) > MAX_PYTHON:
        raise LimitExceeded(f"query: a lambda given as text may have {MAX_PYTHON} bytes, not {len(text)}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as e:
        reason = e.msg if isinstance(e, SyntaxError) else "too complex"
        raise BadQuery(f"query: {short(text, 60)} is no Python expression: {reason}") from e
    return _from_python(tree.body, 0)


def composite(kind: str, args: tuple[Node, ...], at: int) -> Node:
    """A node of fields; nested chains of an associative operator are made one."""
    if kind in FLAT and len(args) >= 2 and args[0].kind == kind and len(args[0].args) >= 2:
        args = (*args[0].args, *args[1:])
    depth = 1 + max((a.depth for a in args), default=0)
    if depth > MAX_DEPTH:
        raise LimitExceeded(f"query, at {at}: expressions are nested more than {MAX_DEPTH} deep; simplify it")
    return Node(kind, args, None, at, depth)


class _Reader:
    """A bracket stack instead of recursion: 100,000 open brackets are an error, not a crash."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.nodes = 0

    def read(self) -> Node:
        open_: list[tuple[str, int, list[Node]]] = []
        done: list[Node] = []
        while True:
            self._skip()
            if self.at >= len(self.text):
                break
            if done:
                raise BadQuery(f"query, at {self.at}: text after the end of the expression")
            char = self.text[self.at]
            if char == "(":
                open_.append(self._begin(len(open_)))
                continue
            if char == ")":
                if not open_:
                    raise BadQuery(f"query, at {self.at}: ')' without '('")
                self.at += 1
                kind, at, fields = open_.pop()
                node = self._counted(composite(kind, tuple(fields), at))
            else:
                node = self._counted(self._atom())
            (open_[-1][2] if open_ else done).append(node)
        if open_:
            kind, at, _ = open_[-1]
            raise BadQuery(f"query, at {at}: '({kind}' is never closed; the text may be cut off")
        if not done:
            raise BadQuery("query: the text is empty; give a qastle expression")
        return done[0]

    def _skip(self) -> None:
        match = _SPACE.match(self.text, self.at)
        assert match is not None
        self.at = match.end()

    def _begin(self, depth: int) -> tuple[str, int, list[Node]]:
        at = self.at
        if depth >= MAX_NESTING:
            raise LimitExceeded(f"query, at {at}: more than {MAX_NESTING} brackets are open")
        self.at += 1
        self._skip()
        match = _TYPE.match(self.text, self.at)
        if match is None:
            raise BadQuery(f"query, at {self.at}: a node type is expected after '('")
        self.at = match.end()
        if self.at < len(self.text) and self.text[self.at] not in " \t\r\n()":
            raise BadQuery(f"query, at {self.at}: white space is expected after {match[0]!r}")
        return match[0], at, []

    def _atom(self) -> Node:
        at, match = self.at, _ATOM.match(self.text, self.at)
        if match is None:
            raise BadQuery(f"query, at {at}: {short(self.text[at : at + 20])} is not understood")
        self.at = match.end()
        if self.at < len(self.text) and self.text[self.at] not in " \t\r\n()":
            raise BadQuery(f"query, at {self.at}: white space is expected after {short(match[0])}")
        if match["name"] is not None:
            if len(match[0]) > MAX_NAME:
                raise LimitExceeded(f"query, at {at}: a name may have at most {MAX_NAME} characters")
            if match[0] in _WORDS:
                return Node("const", value=_WORDS[match[0]], at=at)
            return Node("name", value=match[0], at=at)
        if match["number"] is not None:
            return Node("const", value=_number(match[0], at), at=at)
        return Node("const", value=_ESCAPE.sub(_unescape, match[0][1:-1]), at=at)

    def _counted(self, node: Node) -> Node:
        self.nodes += 1
        if self.nodes > MAX_NODES:
            raise LimitExceeded(f"query: more than {MAX_NODES} nodes; split the query")
        return node


def _number(text: str, at: int) -> float:
    if text.lstrip("+-").isdigit():
        if len(text) > 20 or not -(1 << 63) <= int(text) < 1 << 64:
            raise BadQuery(f"query, at {at}: the integer {short(text, 60)} does not fit in 64 bits")
        return int(text)
    return float(text)


def _unescape(match: re.Match[str]) -> str:
    tail = match[1]
    if len(tail) > 1:
        return chr(int(tail[1:], 16))
    return _ESCAPED.get(tail, match[0])


SIGNS: dict[type[ast.AST], str] = {
    ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.Mod: "%", ast.Pow: "**", ast.FloorDiv: "//",
    ast.BitAnd: "&", ast.BitOr: "|", ast.BitXor: "^", ast.LShift: "<<", ast.RShift: ">>",
    ast.UAdd: "+", ast.USub: "-", ast.Not: "not", ast.Invert: "~", ast.And: "and", ast.Or: "or",
    ast.Eq: "==", ast.NotEq: "!=", ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=",
}  # fmt: skip
"""Python's operators, of one side and of two, in our spelling."""
_COMPARE = {*SIGNS, ast.In, ast.NotIn}


def _compared(op: type[ast.AST], sides: tuple[Node, ...]) -> Node:
    if op in SIGNS:
        return composite(SIGNS[op], sides, 0)
    inside = composite("in", sides, 0)
    return inside if op is ast.In else composite("not", (inside,), 0)


def _from_python(tree: ast.expr, level: int) -> Node:
    """Recursion is bounded by ``level``; what the language lacks is named in the error."""
    if level > MAX_DEPTH:
        raise LimitExceeded(f"query: expressions are nested more than {MAX_DEPTH} deep; simplify it")

    def sub(*trees: ast.expr) -> tuple[Node, ...]:
        return tuple(_from_python(t, level + 1) for t in trees)

    match tree:
        case ast.Constant(value=value) if value is None or isinstance(value, str | int | float):
            if isinstance(value, int) and not -(1 << 63) <= value < 1 << 64:
                raise BadQuery("query: an integer does not fit in 64 bits")
            return Node("const", value=value)
        case ast.Name(id=name):
            return Node("name", value=name)
        case ast.Attribute(value=value, attr=name):
            return composite("attr", (*sub(value), Node("const", value=name)), 0)
        case ast.Subscript(value=value, slice=ast.Slice(lower=low, upper=high, step=step)):
            none = Node("const")
            ends = tuple(none if end is None else sub(end)[0] for end in (low, high, step))
            return composite("subscript", (*sub(value), composite("slice", ends, 0)), 0)
        case ast.Subscript(value=value, slice=index):
            return composite("subscript", sub(value, index), 0)
        case ast.Call(func=func, args=args, keywords=[]) if not any(isinstance(a, ast.Starred) for a in args):
            return composite("call", sub(func, *args), 0)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in SIGNS:
            return composite(SIGNS[type(op)], sub(left, right), 0)
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)):
            return Node("const", value=-value)
        case ast.UnaryOp(op=ast.UAdd(), operand=ast.Constant(value=int() | float() as value)):
            return Node("const", value=value)
        case ast.UnaryOp(op=op, operand=operand):
            return composite(SIGNS[type(op)], sub(operand), 0)
        case ast.BoolOp(op=op, values=values):
            return composite(SIGNS[type(op)], sub(*values), 0)
        case ast.Compare(left=left, ops=ops, comparators=others) if all(type(o) in _COMPARE for o in ops):
            sides = sub(left, *others)
            pairs = tuple(_compared(type(o), sides[i : i + 2]) for i, o in enumerate(ops))
            return pairs[0] if len(pairs) == 1 else composite("and", pairs, 0)
        case ast.IfExp(test=test, body=body, orelse=orelse):
            return composite("if", sub(test, body, orelse), 0)
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return composite("list", sub(*items), 0)
        case ast.Dict(keys=keys, values=values):
            named = sub(*(k for k in keys if k is not None))
            return composite("dict", (composite("list", named, 0), composite("list", sub(*values), 0)), 0)
        case ast.Lambda(args=arguments, body=body):
            names = tuple(Node("name", value=a.arg) for a in arguments.args)
            return composite("lambda", (composite("list", names, 0), *sub(body)), 0)
        case _:
            raise BadQuery(f"query: Python's {type(tree).__name__} is not part of the query language")
