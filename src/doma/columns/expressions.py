"""The expressions of a plan: frozen, resolved, in one spelling; and what is known of their shape.

Their ``repr`` is the canonical text of a query, from which the key of cached results is made.
"""

from dataclasses import dataclass, field


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
class Slice:
    """``source[low:high:step]`` of each sequence."""

    source: "Expr"
    low: int | None
    high: int | None
    step: int | None


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
class Fill:
    """``source`` with a value in the place of what is missing."""

    source: "Expr"
    default: "Expr"


@dataclass(frozen=True, slots=True)
class Record:
    """Named values; the names of a tuple are ``0``, ``1`` and so on."""

    names: tuple[str, ...]
    values: tuple["Expr", ...]
    is_tuple: bool


@dataclass(frozen=True, slots=True)
class Lambda:
    """A function of one argument; of two (accumulated, item) for a fold."""

    slot: int
    body: "Expr"
    free: tuple[int, ...] = ()
    """Arguments of enclosing lambdas that the body uses."""
    second: int = 0


@dataclass(frozen=True, slots=True)
class Op:
    """A sequence operator over its source."""

    name: str
    source: "Expr"
    by: Lambda | None = None
    arg: "Expr | None" = None
    over_events: bool = False
    """Its source runs over the events of the file."""


@dataclass(frozen=True, slots=True)
class Fold:
    """``Aggregate``: from the seed over the members of each sequence, in order."""

    source: "Expr"
    seed: "Expr"
    by: Lambda


@dataclass(frozen=True, slots=True)
class Span:
    """The integers from ``low`` up to but without ``high``."""

    low: "Expr"
    high: "Expr"


@dataclass(frozen=True, slots=True)
class Method:
    """A vector method."""

    name: str
    source: "Expr"
    args: tuple["Expr", ...]


Expr = (
    Const | Var | Events | Field | Item | Slice | Ufunc | Cast | If | Fill | Record | Op | Fold | Span
    | Method
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Shape:
    """What is known of a value.

    ``rows`` (what runs over the events), ``row`` (an event), ``list``, ``record``, ``one`` (a number or text)
    or ``any``.
    """

    kind: str
    item: "Shape | None" = None
    fields: tuple[tuple[str, "Shape"], ...] = ()
    width: int = field(init=False, default=1)
    """Columns that it makes in the output."""

    def __post_init__(self) -> None:
        inner = (self.item, *(s for _, s in self.fields))
        object.__setattr__(self, "width", max(1, sum(s.width for s in inner if s is not None)))

    @property
    def is_tuple(self) -> bool:
        """Whether it is a record whose fields are numbered."""
        return self.kind == "record" and all(n == str(i) for i, (n, _) in enumerate(self.fields))


ANY, ONE, ROW = Shape("any"), Shape("one"), Shape("row")
ROWS = Shape("rows", ROW)


def members(shape: Shape) -> Shape:
    """What a sequence consists of; a record of sequences is a sequence of records."""
    if shape.kind == "record":
        return Shape("record", None, tuple((n, s.item or ANY) for n, s in shape.fields))
    return shape.item or ANY
