"""Names of a query against the columns that are there."""

import difflib
from collections.abc import Iterable

import pyarrow as pa
import pyarrow.types as pt

from doma.core.errors import UnknownColumn
from doma.scan.grammar import Program, Scope
from doma.scan.place import shown
from doma.scan.segments import is_list


def unknown(name: str, known: Iterable[str], where: str, kind: str = "column") -> UnknownColumn:
    """The error for a name that is not there, with the nearest ones."""
    names = list(known)
    near = difflib.get_close_matches(name, names[:50_000], 3, 0.5)
    folded = [n for n in names if n.lower() == name.lower() and n not in near]
    near = [*folded, *near][:3]
    hint = f"nearest: {', '.join(near)}" if near else f"it has {len(names)} others"
    return UnknownColumn(f"{where}: no {kind} {name[:200]!r}; {hint}", column=name[:200], near=near)


def needs(program: Program, schema: pa.Schema) -> set[str]:
    """Top-level columns that a program reads.

    Raises:
        UnknownColumn: one of them is not in the schema.
    """
    names = program.columns()
    for scope in program.scopes():
        names.update(column for column, _ in members(scope, schema).values())
    known = set(schema.names)
    for step in program.steps:
        if step.op == "col" and step.value[0] not in known:
            raise unknown(step.value[0], known, f"query{shown(step.place)}")
    return names


def members(scope: Scope, schema: pa.Schema, *, every: bool = False) -> dict[str, tuple[str, str | None]]:
    """Variables of a short scope: the column each one is in, and the field of a list of structs.

    Args:
        scope: Of the short form.
        schema: Where the columns are looked up.
        every: All lists of the collection, not only those used.
    """
    head = f"{scope.collection}_"
    known = set(schema.names)
    if scope.collection in known and is_list(schema.field(scope.collection).type):
        inner = schema.field(scope.collection).type.value_type
        if pt.is_struct(inner):
            have = [field.name for field in inner]
            missing = next((f for f in scope.fields if f not in have), None)
            if missing is not None:
                raise unknown(missing, have, f"collection {scope.collection}", "field")
            chosen = have if every else scope.fields or have[:1]
            return {name: (str(scope.collection), name) for name in chosen}
    lists = [f.name for f in schema if f.name.startswith(head) and is_list(f.type)]
    fields = [name[len(head) :] for name in lists] if every else scope.fields
    if not fields and lists:
        fields = (lists[0][len(head) :],)
    if not fields:
        raise unknown(head + "*", known, "query", "list column")
    for field in fields:
        if head + field not in known:
            raise unknown(head + field, known, "query")
    return {field: (head + field, None) for field in fields}
