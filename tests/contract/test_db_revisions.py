"""Every revision of the tables, taken back and done again with rows present: nothing is lost on the way."""

from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, MetaData, Table, inspect, select
from sqlalchemy.types import JSON, Boolean, Double, Float, Integer, LargeBinary

from doma.db import schema

REVISIONS = [r.revision for r in ScriptDirectory(str(schema.SCRIPTS)).walk_revisions()]
"""The newest first."""


def back(tx: Connection, revision: str) -> None:
    script = ScriptDirectory(str(schema.SCRIPTS))
    with EnvironmentContext(Config(), script) as environment:
        environment.configure(
            connection=tx, fn=lambda current, context: script._downgrade_revs(revision, current)
        )
        environment.run_migrations()


def tables(tx: Connection) -> list[Table]:
    found = MetaData()
    found.reflect(tx)
    return [t for t in found.sorted_tables if t.name != "alembic_version"]


def shape(tx: Connection) -> dict[str, object]:
    look = inspect(tx)
    return {
        t.name: (
            sorted((c.name, repr(c.type), c.nullable) for c in t.columns),
            sorted((i["name"] or "", i["column_names"]) for i in look.get_indexes(t.name)),
            sorted((k["constrained_columns"], k["referred_table"]) for k in look.get_foreign_keys(t.name)),
        )
        for t in tables(tx)
    }


def fill(tx: Connection) -> None:
    """One row in every empty table; whatever refers to another row refers to that one."""
    for table in tables(tx):
        if tx.execute(select(table)).first() is not None:
            continue
        row: dict[str, object] = {}
        for column in table.columns:
            match column.type:
                case Boolean():
                    row[column.name] = True
                case JSON():
                    row[column.name] = ["x"]
                case Double() | Float():
                    row[column.name] = 1.0
                case Integer():
                    row[column.name] = 1
                case LargeBinary():
                    row[column.name] = b"x"
                case _:
                    row[column.name] = "success" if column.name == "state" else "x"
        tx.execute(table.insert().values(row))


def rows(tx: Connection) -> dict[str, list[dict[str, object]]]:
    return {t.name: [dict(r) for r in tx.execute(select(t)).mappings()] for t in tables(tx)}


def test_taking_revisions_back_and_doing_them_again_loses_no_row_that_has_a_table(database):
    made = database.look_sync(shape)
    for target in (*REVISIONS[1:], "base"):
        database.run_sync(fill)
        before = database.look_sync(rows)
        database.run_sync(lambda tx, target=target: back(tx, target))
        kept = database.look_sync(rows)
        for name, found in kept.items():
            assert len(found) == 1, f"{name} has lost its row on the way to {target}"
            assert found == [{column: before[name][0][column] for column in found[0]}]
        database.migrate()
        assert database.look_sync(shape) == made
        after = database.look_sync(rows)
        for name, found in kept.items():
            assert found == [{column: after[name][0][column] for column in found[0]}]
