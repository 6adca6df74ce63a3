"""Queries as trees, and what they mean: an interpreter that loops over the events.

It knows nothing of scopes, layouts or steps: it walks the tree for one event at a time with Python's loops
over NumPy's scalars, so that promotion, overflow and division by zero are NumPy's. What differs on purpose
from Python (docs/manual/columns.md, the contract's table): ``First`` and the like of too short a sequence and
``Max`` of an empty one are missing, what is computed of them is missing, and a missing condition is false;
constants take the type of what they meet; NaN sorts last.
"""

# What no case takes goes to the line after it; draws are of any type.
# mypy: disable-error-code="exhaustive-match, no-any-return"

from itertools import combinations
from typing import Any

import awkward as ak
import numpy as np

SCALARS = {"i": "int32", "l": "int64", "u": "uint8", "f": "float32", "d": "float64", "b": "bool"}
LISTS = {"p": "float32", "q": "int32", "r": "float64"}
"""``p`` and ``q`` are equally long in every event."""
TEXTS = ["a", "b", "", "Ä 'x'"]
CALLS = {"abs": np.absolute, "maximum": np.maximum, "minimum": np.minimum, "floor": np.floor}
SIGNS = {
    "+": np.add, "-": np.subtract, "*": np.multiply, "/": np.true_divide, "%": np.remainder,
    "//": np.floor_divide, "==": np.equal, "!=": np.not_equal, "<": np.less, "<=": np.less_equal,
    ">": np.greater, ">=": np.greater_equal, "and": np.logical_and, "or": np.logical_or, "**": np.power,
}  # fmt: skip
BITS = {
    "&": np.bitwise_and, "|": np.bitwise_or, "^": np.bitwise_xor, "<<": np.left_shift, ">>": np.right_shift,
}  # fmt: skip
Tree = tuple[Any, ...]


class Events:
    """Rows in memory."""

    def __init__(self, columns: dict[str, ak.Array]) -> None:
        self.columns, self.names, self.size = columns, tuple(columns), len(columns["i"])

    def column(self, name: str) -> ak.Array:
        return self.columns[name]

    def where(self, mask: Any) -> "Events":
        return Events({k: v[mask] for k, v in self.columns.items()})


class Members(list[Any]):
    """The members of a sequence, and one more of their type: what an empty sequence is made of."""

    def __init__(self, items: Any, sample: Any) -> None:
        super().__init__(items)
        self.sample = sample


def meant(tree: Tree, env: dict[str, Any]) -> Any:
    """The value of a tree for one event; None: missing."""
    kind, *args = tree
    match kind:
        case "const":
            return args[0]
        case "column":
            return env["e"][args[0]]
        case "var":
            return env[args[0]]
        case "if":
            test, yes, no = (meant(a, env) for a in args)
            found = yes if true(test) else no
            if found is None or isinstance(found, str):
                return found
            # Awkward gives a constant its own type here, and so does the reference engine.
            return np.result_type(*(np.asarray(v) for v in (yes, no) if v is not None)).type(found)
        case "in":
            value = meant(args[0], env)
            return np.bool_(any(value == c for c in args[1]))
        case "fold":
            return folded(args, env)
        case "chain":
            low, middle, high = (meant(a, env) for a in args)
            return np.logical_and(low < middle, middle <= high)
        case "not":
            return np.logical_not(meant(args[0], env))
        case "~":
            return np.invert(meant(args[0], env))
        case "neg":
            return np.negative(meant(args[0], env))
        case "field":
            return meant(args[0], env)[args[1]]
        case "default":
            found, sample = meant(args[0], env), meant(args[0][1], env).sample
            if isinstance(sample, str):
                return args[1] if found is None else found
            return np.result_type(sample, args[1]).type(args[1] if found is None else found)
        case _ if kind in SIGNS or kind in BITS or kind in CALLS:
            values = [meant(a, env) for a in args]
            if any(isinstance(v, str) for v in values):
                return np.bool_((values[0] == values[1]) is (kind == "=="))
            return None if any(v is None for v in values) else {**SIGNS, **BITS, **CALLS}[kind](*values)
    return sequence(kind, args, env)


def sequence(kind: str, args: list[Any], env: dict[str, Any]) -> Any:
    def each(item: Any) -> Any:
        return meant(args[2], {**env, args[1]: item})

    if kind == "Zip":
        parts = {n: meant(t, env) for n, t in args[0].items()}
        samples = {n: p.sample for n, p in parts.items()}
        return Members([dict(zip(parts, x, strict=True)) for x in zip(*parts.values(), strict=True)], samples)
    if kind == "Range":
        low, high = (int(meant(a, env)) for a in args)
        return Members(map(np.int64, range(low, high)), np.int64(1))
    if kind == "dict":
        return {n: meant(t, env) for n, t in args[0].items()}
    items = meant(args[0], env)
    match kind:
        case "Count" | "len":
            return np.int64(len(items))
        case "First" | "Last" | "ElementAt":
            at = {"First": 0, "Last": -1}.get(kind, args[-1])
            return items[at] if -len(items) <= at < len(items) else None
        case "Sum":
            return np.sum(np.array(list(items), dtype=np.asarray(items.sample).dtype))
        case "Max" | "Min":
            extreme = np.fmax if kind == "Max" else np.fmin  # as awkward's, NaN is passed over
            return extreme.reduce(np.array(list(items))) if items else None
        case "Select":
            return Members(map(each, items), each(items.sample))
        case "Where":
            return Members((x for x in items if true(each(x))), items.sample)
        case "Any":
            return np.bool_(any(true(each(x)) for x in items))
        case "All":
            return np.bool_(all(true(each(x)) for x in items))
        case "SelectMany":
            return Members((y for x in items for y in each(x)), each(items.sample).sample)
        case "OrderBy" | "OrderByDescending":
            sign = 1.0 if kind == "OrderBy" else -1.0
            return Members(sorted(items, key=lambda x: (nan(each(x)), sign * ordered(each(x)))), items.sample)
        case "slice":
            return Members(items[slice(*args[1])], items.sample)
        case "Concat":
            return Members([*items, *meant(args[1], env)], items.sample)
        case "Contains":
            return np.bool_(any(x == args[1] for x in items))
        case "Choose":
            return Members(combinations(items, 2), (items.sample, items.sample))
    raise AssertionError(kind)


def folded(args: list[Any], env: dict[str, Any]) -> Any:
    """``Aggregate``; its type is what two rounds make of the seed's."""
    items, acc = meant(args[0], env), np.asarray(args[1])[()]

    def step(item: Any) -> Any:
        return meant(args[4], {**env, args[2]: acc, args[3]: item})

    for _ in range(2):
        acc = np.result_type(acc, step(items.sample)).type(args[1])
    for item in items:
        acc = np.asarray(step(item)).astype(acc.dtype)[()]
    return acc


def true(value: Any) -> bool:
    return value is not None and bool(value)


def nan(value: Any) -> bool:
    return bool(value != value)


def ordered(value: Any) -> Any:
    return 0 if nan(value) else int(value) if isinstance(value, np.integer) else float(value)


def spelled(tree: Tree) -> str:
    """The tree as the body of a Python lambda."""
    kind, *args = tree
    match kind:
        case "const":
            return repr(args[0])
        case "column":
            return f"e.{args[0]}"
        case "var":
            return str(args[0])
        case "if":
            return f"({spelled(args[1])} if {spelled(args[0])} else {spelled(args[2])})"
        case "in":
            return f"({spelled(args[0])} in {args[1]!r})"
        case "chain":
            return f"({spelled(args[0])} < {spelled(args[1])} <= {spelled(args[2])})"
        case "not":
            return f"(not {spelled(args[0])})"
        case "neg":
            return f"(-{spelled(args[0])})"
        case "field":
            return f"{spelled(args[0])}[{args[1]!r}]"
        case "~":
            return f"(~{spelled(args[0])})"
        case "fold":
            return (
                f"{spelled(args[0])}.Aggregate({args[1]!r}, lambda {args[2]}, {args[3]}: {spelled(args[4])})"
            )
        case "Range":
            return f"Range({spelled(args[0])}, {spelled(args[1])})"
        case "dict":
            return "{" + ", ".join(f"{n!r}: {spelled(t)}" for n, t in args[0].items()) + "}"
        case "Contains":
            return f"{spelled(args[0])}.Contains({args[1]!r})"
        case "default":
            text = spelled(args[0])
            comma = "" if text.endswith("()") else ", "
            return f"{text[:-1]}{comma}{args[1]!r})"
        case "len":
            return f"len({spelled(args[0])})"
        case "slice":
            return f"{spelled(args[0])}[" + ":".join("" if a is None else str(a) for a in args[1]) + "]"
        case "Zip":
            return "Zip({" + ", ".join(f"{n!r}: {spelled(t)}" for n, t in args[0].items()) + "})"
        case "Choose":
            return f"{spelled(args[0])}.Choose(2)"
        case "Concat":
            return f"{spelled(args[0])}.Concat({spelled(args[1])})"
        case "ElementAt":
            return f"{spelled(args[0])}.ElementAt({args[1]})"
        case _ if kind in CALLS:
            return f"np.{kind}({', '.join(map(spelled, args))})"
        case _ if kind in SIGNS or kind in BITS:
            return f"({spelled(args[0])} {kind} {spelled(args[1])})"
    by = f"lambda {args[1]}: {spelled(args[2])}" if len(args) > 1 else ""
    return f"{spelled(args[0])}.{kind}({by})"


def same(found: Any, wanted: Any) -> bool:
    if isinstance(wanted, list) and isinstance(found, list):
        return len(found) == len(wanted) and all(map(same, found, wanted))
    if isinstance(wanted, dict) and isinstance(found, dict):
        return found.keys() == wanted.keys() and all(same(found[n], w) for n, w in wanted.items())
    if found is None or wanted is None or isinstance(wanted, str):
        return found == wanted
    value = wanted.item() if isinstance(wanted, np.generic) else wanted
    return type(found) is type(value) and (found == value or (found != found and value != value))


def typed(value: Any) -> str:
    """The type of what the interpreter gave, as awkward writes it; of a missing value nothing."""
    if isinstance(value, Members):
        return f"var * {typed(value.sample)}"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{n}: {typed(v)}" for n, v in value.items()) + "}"
    return "string" if isinstance(value, str) else "" if value is None else str(value.dtype)
