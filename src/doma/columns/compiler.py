"""From nodes to expressions: names, records, attributes, subscripts, functions and methods.

The sequence operators have a module of their own, :mod:`doma.columns.operators`.
"""

from dataclasses import dataclass, field

from doma.columns import expressions as ex
from doma.columns import functions as known
from doma.columns import operators
from doma.columns.language import MAX_DEPTH, MAX_NAME, Node, parse_python
from doma.columns.near import did_you_mean, unknown
from doma.core.errors import BadQuery, LimitExceeded

MAX_COLUMNS = 10_000
"""Columns of the output, and fields of any record on the way."""
Env = dict[str, tuple[ex.Var, ex.Shape]]
Typed = tuple[ex.Expr, ex.Shape]


@dataclass
class Compiler:
    """One query on its way to a plan; what it learns of tree and branches."""

    tree: str | None = None
    sources: int = 0
    everything: bool = False
    branches: set[str] = field(default_factory=set)
    first: set[str] = field(default_factory=set)
    seed: int | float | bool | None = None
    slots: int = 0
    used: set[int] = field(default_factory=set)
    filtering: bool = False
    above: int = 0
    """Depth of the lambdas given as text that are being read."""

    def expr(self, node: Node, env: Env) -> Typed:
        """The expression of a node, and its shape.

        Raises:
            BadQuery, UnknownColumn, LimitExceeded.
        """
        match node.kind:
            case "const":
                if isinstance(node.value, str) and len(node.value) > MAX_NAME:
                    raise LimitExceeded(f"query, at {node.at}: a text may have {MAX_NAME} characters")
                return ex.Const(node.value), ex.ONE
            case "name":
                return self._name(node, env)
            case "list":
                return self._record(node, [str(i) for i in range(len(node.args))], node.args, env, True)
            case "dict":
                return self._dict(node, env)
            case "attr":
                self._arity(node, 2)
                return self._attr(node, env)
            case "subscript":
                self._arity(node, 2)
                return self._subscript(node, env)
            case "call":
                return self._call(node, env)
            case "if":
                self._arity(node, 3)
                return self._if(node.args, env)
            case "lambda":
                raise node.wrong("a lambda stands where a value is expected")
            case _:
                return self._other(node, env)

    def _other(self, node: Node, env: Env) -> Typed:
        """Operators and arithmetic as nodes."""
        if node.kind in known.OPERATORS:
            return operators.operator(self, node.kind, node.args, node, env)
        if node.kind in known.BINARY or node.kind in known.UNARY:
            return self._arithmetic(node, env)
        if node.kind == "in":
            self._arity(node, 2)
            return operators.operator(self, "Contains", node.args[::-1], node, env)
        if node.kind == "EventDataset":
            return self._dataset(node, node.args)
        if node.kind in {"Range", "MetaData"}:
            return self._named_call(node.kind, node.args, node, env)
        kinds = (*known.OPERATORS, "list", "dict", "attr", "subscript", "call", "if", "lambda")
        raise node.wrong(f"there is no node {node.kind!r}; {did_you_mean(node.kind, kinds)}")

    def whole(self, shape: ex.Shape) -> None:
        """Whole events in the output need every branch."""
        if shape.kind == "row":
            self.everything = True
        for inner in (shape.item, *(s for _, s in shape.fields)):
            if inner is not None:
                self.whole(inner)

    def value(self, node: Node, env: Env) -> ex.Expr:
        """An expression that is a plain value: not an event, not the file's rows."""
        expr, shape = self.expr(node, env)
        if shape.kind in {"row", "rows"}:
            raise node.wrong("a whole event is no value; name one of its branches")
        return expr

    def number(self, node: Node, env: Env, what: str, text: bool = False) -> ex.Expr:
        """A value that may be a number (or text) for each element."""
        expr = self.value(node, env)
        if isinstance(expr, ex.Const) and (expr.value is None or (isinstance(expr.value, str) and not text)):
            raise node.wrong(f"{what} does not work on {expr.value!r}")
        if isinstance(expr, ex.Record):
            raise node.wrong(f"{what} does not work on a list or record; name one of its fields")
        return expr

    def _name(self, node: Node, env: Env) -> Typed:
        name = str(node.value)
        if name in env:
            self.used.add(env[name][0].slot)
            return env[name]
        raise node.wrong(f"unknown name {name!r}; {did_you_mean(name, {*env, 'np', *known.NAMES})}")

    def _dict(self, node: Node, env: Env) -> Typed:
        self._arity(node, 2)
        keys, values = node.args
        if keys.kind != "list" or values.kind != "list" or len(keys.args) != len(values.args):
            raise node.wrong("dict needs a list of keys and as many values")
        names = [k.value for k in keys.args]
        if not all(isinstance(n, str) and 0 < len(n) <= MAX_NAME for n in names):
            raise keys.wrong(f"the keys of a dict must be strings of 1 to {MAX_NAME} characters")
        return self._record(node, [str(n) for n in names], values.args, env, False)

    def _record(
        self, node: Node, names: list[str], nodes: tuple[Node, ...], env: Env, is_tuple: bool
    ) -> Typed:
        if not names:
            raise node.wrong("an empty list or dict has no columns")
        if len(set(names)) != len(names):
            twice = next(n for i, n in enumerate(names) if n in set(names[:i]))
            raise node.wrong(f"the column {twice} is named twice")
        pairs = [self.expr(n, env) for n in nodes]
        for inner, (_, shape) in zip(nodes, pairs, strict=True):
            if shape.kind == "rows":
                raise inner.wrong("the whole dataset is no value; Select from it")
            if shape.kind == "row":
                self.everything = True
        shape = ex.Shape("record", None, tuple(zip(names, (s for _, s in pairs), strict=True)))
        if shape.width > MAX_COLUMNS:
            raise LimitExceeded(f"query, at {node.at}: records may have {MAX_COLUMNS} fields in all")
        return ex.Record(tuple(names), tuple(e for e, _ in pairs), is_tuple), shape

    def _attr(self, node: Node, env: Env) -> Typed:
        owner, name = node.args
        if name.kind != "const" or not isinstance(name.value, str):
            raise name.wrong("the name of an attribute must be a string")
        if _is_numpy(owner, env):
            if name.value in known.CONSTANTS:
                return ex.Const(known.CONSTANTS[name.value]), ex.ONE
            raise node.wrong(
                f"np.{name.value} is not offered as a value; {did_you_mean(name.value, known.CONSTANTS)}"
            )
        source, shape = self.expr(owner, env)
        return self._field(source, shape, name.value, node.at)

    def _field(self, source: ex.Expr, shape: ex.Shape, name: str, at: int) -> Typed:
        if len(name) > MAX_NAME:
            raise LimitExceeded(f"query, at {at}: a name may have at most {MAX_NAME} characters")
        if shape.kind == "row":
            self.branches.add(name)
            if self.filtering:
                self.first.add(name)
            return ex.Field(source, name), ex.ANY
        if shape.kind == "rows":
            raise BadQuery(f"query, at {at}: take .{name} of an event inside Select, not of the dataset")
        if shape.kind == "one":
            raise BadQuery(f"query, at {at}: a number has no attribute {name!r}")
        of = shape.item if shape.kind == "list" else shape
        if of is None or of.kind != "record":
            return ex.Field(source, name), ex.ANY
        fields = dict(of.fields)
        if name not in fields:
            raise unknown(f"query, at {at}: the record has no", name, fields)
        inner = fields[name]
        return ex.Field(source, name), ex.Shape("list", inner) if shape.kind == "list" else inner

    def _subscript(self, node: Node, env: Env) -> Typed:
        source, shape = self.expr(node.args[0], env)
        index = node.args[1]
        if index.kind == "const" and isinstance(index.value, str):
            return self._field(source, shape, index.value, node.at)
        if shape.kind in {"row", "rows", "one"}:
            raise node.wrong("[] needs a sequence or a record before it")
        if index.kind == "slice":
            return self._slice(source, shape, index)
        number = index.value if index.kind == "const" else None
        if shape.kind == "record":
            if type(number) is not int or not -len(shape.fields) <= number < len(shape.fields):
                raise node.wrong(f"[] on a record needs an integer below {len(shape.fields)}")
            name, inner = shape.fields[number]
            return ex.Field(source, name), inner
        inner = shape.item if shape.kind == "list" and shape.item and number is not None else ex.ANY
        return ex.Item(source, self.value(index, env)), inner

    def _slice(self, source: ex.Expr, shape: ex.Shape, node: Node) -> Typed:
        ends = [n.value if n.kind == "const" else "" for n in node.args]
        if not 1 <= len(ends) <= 3 or not all(e is None or type(e) is int for e in ends):
            raise node.wrong("a slice takes up to three integers, or None")
        low, high, step = [e if isinstance(e, int) else None for e in (*ends, None, None)][:3]
        if step == 0:
            raise node.wrong("the step of a slice must not be 0")
        if shape.kind == "record":
            fields = shape.fields[slice(low, high, step)]
            if not fields:
                raise node.wrong("the slice takes no field of the record")
            # A tuple is counted anew, as in Python; what it is made of is not repeated for each field.
            shapes = tuple((str(i) if shape.is_tuple else n, s) for i, (n, s) in enumerate(fields))
            return ex.Slice(source, low, high, step), ex.Shape("record", None, shapes)
        return ex.Slice(source, low, high, step), shape

    def _if(self, args: tuple[Node, ...], env: Env) -> Typed:
        test, (yes, one), (no, other) = (
            self.number(args[0], env, "if … else"),
            *(self.expr(a, env) for a in args[1:]),
        )
        for node, shape in zip(args[1:], (one, other), strict=True):
            if shape.kind in {"row", "rows"}:
                raise node.wrong("a whole event is no value; name one of its branches")
        names = [[n for n, _ in shape.fields] for shape in (one, other)]
        if "any" not in {one.kind, other.kind} and names[0] != names[1]:
            raise args[1].wrong("if … else: both records need the same fields")
        return ex.If(test, yes, no), one if one == other else ex.ANY

    def _call(self, node: Node, env: Env) -> Typed:
        if not node.args:
            raise node.wrong("call needs a function")
        func, args = node.args[0], node.args[1:]
        if func.kind == "attr" and len(func.args) == 2 and isinstance(func.args[1].value, str):
            owner, name = func.args[0], func.args[1].value
            if _is_numpy(owner, env):
                return self._function(name, args, node, env, f"np.{name}")
            if name in known.OPERATORS:
                return operators.operator(self, name, (owner, *args), node, env)
            if name == "MetaData":
                return self.expr(owner, env)
            return self._method(known.METHOD_ALIASES.get(name, name), owner, args, node, env)
        if func.kind != "name":
            raise node.wrong("only operators, functions and methods can be called")
        return self._named_call(str(func.value), args, node, env)

    def _named_call(self, name: str, args: tuple[Node, ...], node: Node, env: Env) -> Typed:
        if name in env:
            raise node.wrong(f"{name!r} is a value and cannot be called")
        if name == "EventDataset":
            return self._dataset(node, args)
        if name == "MetaData" and args:
            return self.expr(args[0], env)
        if name in {"Range", "range"}:
            self.count(name, args, 1, 2, node)
            ends = [self.number(a, env, name) for a in args]
            return ex.Span(*(ends if len(ends) == 2 else (ex.Const(0), *ends))), ex.Shape("list", ex.ONE)
        if name in known.OPERATORS:
            return operators.operator(self, name, args, node, env)
        return self._function(name, args, node, env, name)

    def _dataset(self, node: Node, args: tuple[Node, ...]) -> Typed:
        self.sources += 1
        if len(args) > 2 or any(a.kind not in {"const", "list"} for a in args):
            raise node.wrong("EventDataset takes a file and a tree name, as text")
        if len(args) == 2 and (args[1].kind == "list" or args[1].value is not None):
            name = args[1].value
            if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME:
                raise args[1].wrong("the tree name must be text")
            self.tree = name
        return ex.Events(), ex.ROWS

    def _function(self, name: str, args: tuple[Node, ...], node: Node, env: Env, shown: str) -> Typed:
        if name in known.FOLDS and len(args) == 1:
            return operators.operator(self, known.FOLDS[name], args, node, env)
        if name in {"min", "max"} and len(args) > 1:
            return ex.Ufunc(f"{name}imum", tuple(self.number(a, env, shown) for a in args)), ex.ANY
        if name == "where":
            self.count(shown, args, 3, 3, node)
            return self._if(args, env)
        if name in known.CASTS:
            self.count(shown, args, 1, 1, node)
            return ex.Cast(known.CASTS[name], self.number(args[0], env, shown)), ex.ANY
        ufunc = known.ALIASES.get(name, name)
        if ufunc in known.UFUNCS:
            self.count(shown, args, known.UFUNCS[ufunc], known.UFUNCS[ufunc], node)
            text = ufunc in {"equal", "not_equal"}
            return ex.Ufunc(ufunc, tuple(self.number(a, env, shown, text) for a in args)), ex.ANY
        raise node.wrong(f"there is no function {shown!r}; {did_you_mean(name, known.NAMES)}")

    def _method(self, name: str, owner: Node, args: tuple[Node, ...], node: Node, env: Env) -> Typed:
        if name not in known.VECTOR_METHODS:
            names = {*known.OPERATORS, *known.VECTOR_METHODS}
            raise node.wrong(f"there is no method {name!r}; {did_you_mean(name, names)}")
        self.count(name, args, known.VECTOR_METHODS[name], known.VECTOR_METHODS[name], node)
        of, shape = self.expr(owner, env)
        if shape.kind in {"one", "row", "rows"}:
            raise node.wrong(f".{name} needs four-momenta; call ToFourMomenta() first")
        return ex.Method(name, of, tuple(self.value(a, env) for a in args)), ex.ANY

    def _arithmetic(self, node: Node, env: Env) -> Typed:
        text = node.kind in {"==", "!="}
        args = tuple(self.number(a, env, repr(node.kind), text) for a in node.args)
        if len(args) == 1 and node.kind in known.UNARY:
            return ex.Ufunc(known.UNARY[node.kind], args), ex.ANY
        if len(args) == 2 and node.kind in known.BINARY:
            return ex.Ufunc(known.BINARY[node.kind], args), ex.ANY
        if len(args) > 2 and node.kind in {"and", "or", "+", "*"}:
            return ex.Ufunc(known.BINARY[node.kind], args), ex.ANY
        raise node.wrong(f"{node.kind!r} does not take {len(args)} operands")

    def function(
        self, name: str, node: Node, items: tuple[ex.Shape, ...], env: Env
    ) -> tuple[ex.Lambda, ex.Shape]:
        """A lambda over arguments of these shapes, and the shape of its result."""
        depth = 0
        if node.kind == "const" and isinstance(node.value, str):
            node = parse_python(node.value)
            depth = node.depth
        if node.kind != "lambda" or len(node.args) != 2 or node.args[0].kind != "list":
            raise node.wrong(f"{name} needs a lambda here")
        names = node.args[0].args
        if len(names) != len(items) or any(n.kind != "name" for n in names):
            wanted = "one argument" if len(items) == 1 else f"{len(items)} arguments"
            raise node.wrong(f"the lambda of {name} must have {wanted}")
        if self.above + depth > MAX_DEPTH:
            raise LimitExceeded(f"query: lambdas are nested more than {MAX_DEPTH} deep; simplify it")
        slots = tuple(range(self.slots + 1, self.slots + 1 + len(items)))
        self.slots += len(items)
        mine = {str(n.value): (ex.Var(s), i) for n, s, i in zip(names, slots, items, strict=True)}
        around, self.used = self.used, set()
        self.above += depth
        body, shape = self.expr(node.args[1], {**env, **mine})
        self.above -= depth
        free = self.used.difference(slots)
        self.used = around | free
        return ex.Lambda(slots[0], body, tuple(sorted(free)), slots[1] if len(slots) > 1 else 0), shape

    def _arity(self, node: Node, fields: int) -> None:
        self.count(node.kind, node.args, fields, fields, node)

    @staticmethod
    def count(name: str, args: tuple[Node, ...], low: int, high: int, node: Node) -> None:
        """Refuse a wrong number of fields."""
        if not low <= len(args) <= high:
            wanted = str(low) if low == high else f"{low} to {high}"
            raise node.wrong(f"{name} takes {wanted} fields, not {len(args)}")


def _is_numpy(node: Node, env: Env) -> bool:
    return node.kind == "name" and node.value in {"np", "numpy", "math"} and node.value not in env
