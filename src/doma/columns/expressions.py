"""The expressions of a plan: frozen, resolved, in one spelling; and what is known of their shape.

Their ``repr`` is the canonical text of a query, from which the key of cached results is made.
"""

from dataclasses import dataclass

from doma.columns.functions import REDUCTIONS


@dataclass(frozen=True, slots=True)
class Const:
    """A constant."""

    value: str | int | float | bool | None


@dataclass(frozen=True, slots=True)
class Var:
    """The argument of an enclosing lambda, by number."""

    slot: int


@dataclass(frozen=True, slots=True)
class Events:
    """The rows of the file."""


@dataclass(frozen=True, slots=True)
class Field:
    """A branch of the event, a field of a record, a property of a vector."""

    source: "Expr"
    name: str


@dataclass(frozen=True, slots=True)
class Item:
    """``source[index]``."""

    source: "Expr"
    index: "Expr"


@dataclass(frozen=True, slots=True)
class Ufunc:
    """An allow-listed NumPy ufunc, element by element; more than two arguments fold from the left."""

    name: str
    args: tuple["Expr", ...]


@dataclass(frozen=True, slots=True)
class Cast:
    """Conversion to a dtype."""

    dtype: str
    source: "Expr"


@dataclass(frozen=True, slots=True)
class If:
    """Element-wise choice."""

    test: "Expr"
    yes: "Expr"
    no: "Expr"


@dataclass(frozen=True, slots=True)
class Record:
    """Named values; the names of a tuple are ``0``, ``1`` and so on."""

    names: tuple[str, ...]
    values: tuple["Expr", ...]
    is_tuple: bool


@dataclass(frozen=True, slots=True)
class Lambda:
    """A function of one argument."""

    slot: int
    body: "Expr"
    free: tuple[int, ...] = ()
    """Arguments of enclosing lambdas that the body uses."""


@dataclass(frozen=True, slots=True)
class Op:
    """A sequence operator over its source."""

    name: str
    source: "Expr"
    by: Lambda | None = None
    arg: "Expr | None" = None


@dataclass(frozen=True, slots=True)
class Method:
    """A vector method."""

    name: str
    source: "Expr"
    args: tuple["Expr", ...]


Expr = Const | Var | Events | Field | Item | Ufunc | Cast | If | Record | Op | Method


@dataclass(frozen=True, slots=True)
class Shape:
    """What is known of a value: ``rows``, ``row``, ``list``, ``record``, ``one`` (a number) or ``any``."""

    kind: str
    item: "Shape | None" = None
    fields: tuple[tuple[str, "Shape"], ...] = ()


ANY, ONE, ROW = Shape("any"), Shape("one"), Shape("row")
ROWS = Shape("rows", ROW)


def shape_after(name: str, source: Shape, body: Shape) -> Shape:
    """What is known of an operator's result."""
    if name in {"Where", "OrderBy", "OrderByDescending"}:
        return source
    if name == "Select":
        return Shape("list", body)
    if name == "SelectMany":
        return Shape("list", body.item or ANY)
    if name == "Zip" and source.kind == "record":
        items = tuple((n, s.item or ANY) for n, s in source.fields)
        return Shape("list", Shape("record", None, items))
    if name in {"Any", "All"}:
        return ONE
    if name in REDUCTIONS:
        # The innermost axis is reduced: of a list of lists a list remains.
        flat = source.item is not None and source.item.kind in {"one", "row", "record"}
        return ONE if flat else ANY
    return ANY
