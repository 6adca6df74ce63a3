"""Four-momenta: records seen as Lorentz vectors, by the ``vector`` package.

They compute in the precision of their coordinates, as the reference does; ``np.float64(…)`` asks for more.
"""

import awkward as ak

from doma.columns.functions import BY_NUMBER, COORDINATES
from doma.columns.values import Fields, Value, array, deepest, element, innermost, mapped
from doma.core.errors import BadQuery

NAMES = {2: "Momentum2D", 3: "Momentum3D", 4: "Momentum4D"}


def to_momenta(source: Value) -> Value:
    """Name the records (at any depth of lists) four-momenta.

    Raises:
        BadQuery: the records lack coordinates.
    """
    scope = source.scope if not isinstance(source.data, Fields) else deepest([source])
    if scope is None:
        raise BadQuery("query: ToFourMomenta needs records with pt, eta, phi, mass; this is a constant")
    data = array(source, scope)
    if element(data) != "records":
        raise BadQuery(
            f"query: ToFourMomenta needs records with pt, eta, phi, mass; these are {element(data)}"
        )
    fields = set(ak.fields(data))
    # How many coordinates of each row there are, from the first without a gap.
    found = (next((i for i, names in enumerate(row) if not fields & names), 4) for row in COORDINATES)
    size = max(found)
    if size < 2:
        raise BadQuery(
            "query: ToFourMomenta needs the fields pt, eta, phi, mass (or px, py, pz, E); "
            f"there are {', '.join(sorted(fields))}"
        )
    return Value(scope, mapped(data, lambda records: _named(records, NAMES[size])))


def is_momentum(data: object) -> bool:
    """Whether the elements are four-momenta."""
    return isinstance(data, ak.Array) and innermost(data).parameter("__record__") in NAMES.values()


def method(name: str, source: Value, args: list[Value]) -> Value:
    """A property or method of four-momenta."""
    scope = deepest([source, *args])
    if scope is None:
        raise BadQuery(f"query: .{name}() needs four-momenta, this is a constant")
    momenta = (source,) if name in BY_NUMBER else (source, *args)
    operands = [array(v, scope) for v in (source, *args)]
    if not all(is_momentum(o) for o in operands[: len(momenta)]):
        raise BadQuery(f"query: .{name} needs four-momenta on both sides; call ToFourMomenta() first")
    if any(element(o) != "numbers" for o in operands[len(momenta) :]):
        raise BadQuery(f"query: .{name} needs a number")
    try:
        found = getattr(operands[0], name)
        return Value(scope, found(*operands[1:]) if callable(found) else found)
    except AttributeError as e:
        there = ", ".join(sorted(ak.fields(operands[0])))
        raise BadQuery(f"query: .{name} needs more coordinates than {there}, such as eta and mass") from e
    except (TypeError, ValueError) as e:
        raise BadQuery(
            f"query: .{name}: the four-momenta do not pair up; use a lambda over one of them"
        ) from e


def _named(records: ak.Array, name: str) -> ak.Array:
    import vector

    vector.register_awkward()
    parts = {field: records[field] for field in ak.fields(records)}
    return ak.zip(parts, depth_limit=1, with_name=name)
