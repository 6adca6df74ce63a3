"""The typed plan of a query: names resolved, operators in one spelling, branches known, nothing evaluated.

:func:`compile_text` turns the tree of :mod:`doma.columns.language` into frozen expressions that the
interpreter walks. It refuses unknown names with the nearest known ones, checks the number of fields, and
follows the shape of every value as far as it is known without the file: an operator on a number is an
error here; on a branch only the file can tell.
"""

import hashlib
from dataclasses import dataclass, field

from doma.columns import functions as known
from doma.columns.expressions import (
    ANY,
    ONE,
    ROWS,
    Cast,
    Const,
    Events,
    Expr,
    Field,
    If,
    Item,
    Lambda,
    Method,
    Op,
    Record,
    Shape,
    Ufunc,
    Var,
    shape_after,
)
from doma.columns.language import MAX_NAME, Node, parse, parse_python
from doma.columns.near import did_you_mean, near
from doma.core.errors import BadQuery, LimitExceeded, UnknownColumn


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

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical query: the same question in another spelling has the same digest."""
        return hashlib.sha256(repr((self.body, self.tree, self.columns)).encode()).hexdigest()


def compile_text(text: str) -> Plan:
    """The plan of a qastle text.

    Raises:
        BadQuery, UnknownColumn, LimitExceeded: the message says where and what is near.

    >>> compile_text("(call Select (call EventDataset 'f' 'T') (lambda (list e) (attr e 'pt')))").branches
    ('pt',)
    """
    compiler = _Compiler()
    node, columns = _unwrapped(parse(text))
    body, shape = compiler.expr(node, {})
    if compiler.sources != 1:
        raise BadQuery(f"query: it must read one EventDataset, this one has {compiler.sources}")
    if shape.kind in {"rows", "list"}:
        compiler.whole(shape)
    elif not (isinstance(body, Op) and body.name in known.REDUCTIONS):
        raise BadQuery(
            "query: the result must be a sequence, or Count, Sum, Max or Min of one; wrap it in Select"
        )
    return Plan(
        body,
        compiler.tree,
        None if compiler.everything else tuple(sorted(compiler.branches)),
        tuple(sorted(compiler.first)),
        columns,
    )


def _unwrapped(node: Node) -> tuple[Node, tuple[str, ...] | None]:
    """The query inside a terminal wrapper, and the column names that the wrapper gives."""
    if node.kind in known.WRAPPERS:
        args = node.args
    elif node.kind == "call" and node.args and node.args[0].value in known.WRAPPERS:
        args = node.args[1:]
    else:
        return node, None
    if not args:
        raise BadQuery(f"query, at {node.at}: the result wrapper has no source")
    names: tuple[str, ...] | None = None
    if len(args) > 1:
        listed = args[1].args if args[1].kind == "list" else (args[1],)
        if not all(isinstance(n.value, str) for n in listed):
            raise BadQuery(f"query, at {args[1].at}: column names must be strings")
        names = tuple(str(n.value) for n in listed) or None
    return args[0], names


Env = dict[str, tuple[Var, Shape]]


@dataclass
class _Compiler:
    tree: str | None = None
    sources: int = 0
    everything: bool = False
    branches: set[str] = field(default_factory=set)
    first: set[str] = field(default_factory=set)
    slots: int = 0
    used: set[int] = field(default_factory=set)
    filtering: bool = False

    def expr(self, node: Node, env: Env) -> tuple[Expr, Shape]:
        match node.kind:
            case "const":
                return Const(node.value), ONE
            case "name":
                return self._name(node, env)
            case "list":
                return self._record(node, [str(i) for i in range(len(node.args))], node.args, env, True)
            case "dict":
                return self._dict(node, env)
            case "attr":
                self._arity(node, "attr", 2, 2)
                return self._attr(node, env)
            case "subscript":
                self._arity(node, "subscript", 2, 2)
                return self._subscript(node, env)
            case "call":
                return self._call(node, env)
            case "if":
                self._arity(node, "if", 3, 3)
                return If(*(self._value(a, env) for a in node.args)), ANY
            case "lambda":
                raise BadQuery(f"query, at {node.at}: a lambda stands where a value is expected")
            case _:
                return self._other(node, env)

    def _other(self, node: Node, env: Env) -> tuple[Expr, Shape]:
        """Operators and arithmetic as nodes."""
        if node.kind in known.OPERATORS:
            return self._operator(node.kind, node.args, node, env)
        if node.kind in known.BINARY or node.kind in known.UNARY:
            return self._arithmetic(node, env)
        if node.kind == "EventDataset":
            return self._dataset(node, node.args)
        kinds = (*known.OPERATORS, "list", "dict", "attr", "subscript", "call", "if", "lambda")
        raise BadQuery(
            f"query, at {node.at}: there is no node {node.kind!r}; {did_you_mean(node.kind, kinds)}"
        )

    def whole(self, shape: Shape) -> None:
        """Whole events in the output need every branch."""
        if shape.kind in {"row", "rows"}:
            self.everything = True
        for inner in (shape.item, *(s for _, s in shape.fields)):
            if inner is not None:
                self.whole(inner)

    def _value(self, node: Node, env: Env) -> Expr:
        """An expression that is a plain value: not an event, not the file's rows."""
        expr, shape = self.expr(node, env)
        if shape.kind in {"row", "rows"}:
            raise BadQuery(f"query, at {node.at}: a whole event is no value; name one of its branches")
        return expr

    def _name(self, node: Node, env: Env) -> tuple[Expr, Shape]:
        name = str(node.value)
        if name in env:
            self.used.add(env[name][0].slot)
            return env[name]
        names = {*env, *known.OPERATORS, *known.FOLDS, *known.UFUNCS, *known.ALIASES, "np"}
        raise BadQuery(f"query, at {node.at}: unknown name {name!r}; {did_you_mean(name, names)}")

    def _dict(self, node: Node, env: Env) -> tuple[Expr, Shape]:
        self._arity(node, "dict", 2, 2)
        keys, values = node.args
        if keys.kind != "list" or values.kind != "list" or len(keys.args) != len(values.args):
            raise BadQuery(f"query, at {node.at}: dict needs a list of keys and as many values")
        names = [k.value for k in keys.args]
        if not all(isinstance(n, str) and 0 < len(n) <= MAX_NAME for n in names):
            raise BadQuery(
                f"query, at {keys.at}: the keys of a dict must be strings of 1 to {MAX_NAME} characters"
            )
        return self._record(node, [str(n) for n in names], values.args, env, False)

    def _record(
        self, node: Node, names: list[str], nodes: tuple[Node, ...], env: Env, is_tuple: bool
    ) -> tuple[Expr, Shape]:
        if not names:
            raise BadQuery(f"query, at {node.at}: an empty list or dict has no columns")
        twice = {n for n in names if names.count(n) > 1} if len(names) < 1000 else set()
        if twice or len(set(names)) != len(names):
            raise BadQuery(f"query, at {node.at}: the column {', '.join(sorted(twice))} is named twice")
        pairs = [self.expr(n, env) for n in nodes]
        for _, shape in pairs:
            if shape.kind in {"row", "rows"}:
                self.everything = True
        fields = tuple(zip(names, (s for _, s in pairs), strict=True))
        return Record(tuple(names), tuple(e for e, _ in pairs), is_tuple), Shape("record", None, fields)

    def _attr(self, node: Node, env: Env) -> tuple[Expr, Shape]:
        owner, name = node.args
        if name.kind != "const" or not isinstance(name.value, str):
            raise BadQuery(f"query, at {name.at}: the name of an attribute must be a string")
        if _is_numpy(owner, env):
            if name.value in known.CONSTANTS:
                return Const(known.CONSTANTS[name.value]), ONE
            raise BadQuery(
                f"query, at {node.at}: np.{name.value} is not offered as a value; "
                f"{did_you_mean(name.value, known.CONSTANTS)}"
            )
        source, shape = self.expr(owner, env)
        return self._field(source, shape, name.value, node.at)

    def _field(self, source: Expr, shape: Shape, name: str, at: int) -> tuple[Expr, Shape]:
        if len(name) > MAX_NAME:
            raise LimitExceeded(f"query, at {at}: a name may have at most {MAX_NAME} characters")
        if shape.kind == "row":
            self.branches.add(name)
            if self.filtering:
                self.first.add(name)
            return Field(source, name), ANY
        if shape.kind == "rows":
            raise BadQuery(f"query, at {at}: take .{name} of an event inside Select, not of the dataset")
        if shape.kind == "one":
            raise BadQuery(f"query, at {at}: a number has no attribute {name!r}")
        if shape.kind == "record":
            fields = dict(shape.fields)
            if name not in fields:
                raise UnknownColumn(
                    f"query, at {at}: the record has no {name!r}; {did_you_mean(name, fields)}",
                    name=name,
                    near=near(name, fields),
                )
            return Field(source, name), fields[name]
        return Field(source, name), ANY

    def _subscript(self, node: Node, env: Env) -> tuple[Expr, Shape]:
        source, shape = self.expr(node.args[0], env)
        index = node.args[1]
        if index.kind == "const" and isinstance(index.value, str):
            return self._field(source, shape, index.value, node.at)
        if shape.kind in {"row", "rows", "one"}:
            raise BadQuery(f"query, at {node.at}: [] needs a sequence or a record before it")
        number = index.value if index.kind == "const" else None
        if shape.kind == "record":
            if not isinstance(number, int) or not -len(shape.fields) <= number < len(shape.fields):
                raise BadQuery(
                    f"query, at {node.at}: [] on a record needs an integer below {len(shape.fields)}"
                )
            name, inner = shape.fields[number]
            return Field(source, name), inner
        inner = shape.item if shape.kind == "list" and shape.item and number is not None else ANY
        return Item(source, self._value(index, env)), inner

    def _call(self, node: Node, env: Env) -> tuple[Expr, Shape]:
        if not node.args:
            raise BadQuery(f"query, at {node.at}: call needs a function")
        func, args = node.args[0], node.args[1:]
        if func.kind == "attr" and len(func.args) == 2 and isinstance(func.args[1].value, str):
            owner, name = func.args[0], func.args[1].value
            if _is_numpy(owner, env):
                return self._function(name, args, node, env, f"np.{name}")
            if name in known.OPERATORS:
                return self._operator(name, (owner, *args), node, env)
            if name == "MetaData":
                return self.expr(owner, env)
            return self._method(known.METHOD_ALIASES.get(name, name), owner, args, node, env)
        if func.kind != "name":
            raise BadQuery(f"query, at {node.at}: only operators, functions and methods can be called")
        name = str(func.value)
        if name in env:
            raise BadQuery(f"query, at {node.at}: {name!r} is a value and cannot be called")
        if name == "EventDataset":
            return self._dataset(node, args)
        if name == "MetaData" and args:
            return self.expr(args[0], env)
        if name in known.OPERATORS:
            return self._operator(name, args, node, env)
        return self._function(name, args, node, env, name)

    def _dataset(self, node: Node, args: tuple[Node, ...]) -> tuple[Expr, Shape]:
        self.sources += 1
        if len(args) > 2 or any(a.kind not in {"const", "list"} for a in args):
            raise BadQuery(f"query, at {node.at}: EventDataset takes a file and a tree name, as text")
        if len(args) == 2 and args[1].value is not None:
            if not isinstance(args[1].value, str):
                raise BadQuery(f"query, at {args[1].at}: the tree name must be text")
            self.tree = args[1].value
        return Events(), ROWS

    def _function(
        self, name: str, args: tuple[Node, ...], node: Node, env: Env, shown: str
    ) -> tuple[Expr, Shape]:
        if name in known.FOLDS and len(args) == 1:
            return self._operator(known.FOLDS[name], args, node, env)
        if name in {"min", "max"} and len(args) > 1:
            return Ufunc(f"{name}imum", tuple(self._value(a, env) for a in args)), ANY
        if name in known.CASTS:
            self._count(shown, args, 1, 1, node)
            return Cast(known.CASTS[name], self._value(args[0], env)), ANY
        ufunc = known.ALIASES.get(name, name)
        if ufunc in known.UFUNCS:
            self._count(shown, args, known.UFUNCS[ufunc], known.UFUNCS[ufunc], node)
            return Ufunc(ufunc, tuple(self._value(a, env) for a in args)), ANY
        names = {*known.UFUNCS, *known.ALIASES, *known.CASTS, *known.FOLDS, *known.OPERATORS}
        raise BadQuery(f"query, at {node.at}: there is no function {shown!r}; {did_you_mean(name, names)}")

    def _method(
        self, name: str, owner: Node, args: tuple[Node, ...], node: Node, env: Env
    ) -> tuple[Expr, Shape]:
        if name not in known.VECTOR_METHODS:
            names = {*known.OPERATORS, *known.VECTOR_METHODS}
            raise BadQuery(f"query, at {node.at}: there is no method {name!r}; {did_you_mean(name, names)}")
        self._count(name, args, known.VECTOR_METHODS[name], known.VECTOR_METHODS[name], node)
        return Method(name, self._value(owner, env), tuple(self._value(a, env) for a in args)), ANY

    def _arithmetic(self, node: Node, env: Env) -> tuple[Expr, Shape]:
        args = tuple(self._value(a, env) for a in node.args)
        if len(args) == 1 and node.kind in known.UNARY:
            return Ufunc(known.UNARY[node.kind], args), ANY
        if len(args) == 2 and node.kind in known.BINARY:
            return Ufunc(known.BINARY[node.kind], args), ANY
        if len(args) > 2 and node.kind in {"and", "or", "+", "*"}:
            return Ufunc(known.BINARY[node.kind], args), ANY
        raise BadQuery(f"query, at {node.at}: {node.kind!r} does not take {len(args)} operands")

    def _operator(self, name: str, args: tuple[Node, ...], node: Node, env: Env) -> tuple[Expr, Shape]:
        self._count(name, args, *known.OPERATORS[name], node)
        source, shape = self.expr(args[0], env)
        if shape.kind in {"one", "row"} or (
            shape.kind == "record" and name not in {"Zip", "ToFourMomentum", "ToFourMomenta", "SelectMany"}
            and not (isinstance(source, Record) and source.is_tuple)
        ):  # fmt: skip
            what = {"one": "a number", "row": "an event", "record": "a record"}[shape.kind]
            raise BadQuery(f"query, at {node.at}: {name} needs a sequence, this is {what}")
        item = shape.item or ANY
        if name in known.WITH_LAMBDA and len(args) == 2:
            filtering, self.filtering = self.filtering, name == "Where" and shape.kind == "rows"
            by, result = self._lambda(name, args[1], item, env)
            self.filtering = filtering
            return Op(name, source, by), shape_after(name, shape, result)
        if shape.kind == "rows" and name != "Count":
            raise BadQuery(
                f"query, at {node.at}: {name} of whole events is not offered; Select a column first"
            )
        if name in {"First", "Last"}:
            return Op(name, source), item
        if name == "Choose":
            n = args[1].value if args[1].kind == "const" else None
            if not isinstance(n, int) or isinstance(n, bool) or not 1 <= n <= 6:
                raise BadQuery(f"query, at {args[1].at}: Choose needs a number from 1 to 6")
            return Op(name, source, arg=Const(n)), Shape("list", Shape("list", item))
        if len(args) == 2:
            result = item if name == "ElementAt" else (ONE if name == "Contains" else Shape("list", ANY))
            return Op(name, source, arg=self._value(args[1], env)), result
        return Op(name, source), shape_after(name, shape, ANY)

    def _lambda(self, name: str, node: Node, item: Shape, env: Env) -> tuple[Lambda, Shape]:
        if node.kind == "const" and isinstance(node.value, str):
            node = parse_python(node.value)
        if node.kind != "lambda" or len(node.args) != 2 or node.args[0].kind != "list":
            raise BadQuery(f"query, at {node.at}: {name} needs a lambda as its second field")
        names = node.args[0].args
        if len(names) != 1 or names[0].kind != "name":
            raise BadQuery(f"query, at {node.at}: the lambda of {name} must have one argument")
        self.slots += 1
        slot = self.slots
        around, self.used = self.used, set()
        body, shape = self.expr(node.args[1], {**env, str(names[0].value): (Var(slot), item)})
        free = self.used - {slot}
        self.used = around | free
        return Lambda(slot, body, tuple(sorted(free))), shape

    def _arity(self, node: Node, name: str, low: int, high: int) -> None:
        self._count(name, node.args, low, high, node)

    @staticmethod
    def _count(name: str, args: tuple[Node, ...], low: int, high: int, node: Node) -> None:
        if not low <= len(args) <= high:
            wanted = str(low) if low == high else f"{low} to {high}"
            raise BadQuery(f"query, at {node.at}: {name} takes {wanted} fields, not {len(args)}")


def _is_numpy(node: Node, env: Env) -> bool:
    return node.kind == "name" and node.value in {"np", "numpy", "math"} and node.value not in env
