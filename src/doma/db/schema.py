"""The tables' revisions: Alembic scripts in ``migrations/versions``, run by the program itself."""

from pathlib import Path

from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text

from doma.core.errors import ConfigError

SCRIPTS = Path(__file__).parent / "migrations"

_LOCK = 0x646F6D61  # "doma"


def upgrade(tx: Connection) -> None:
    """Bring the tables to the newest revision, inside the caller's write transaction.

    Two processes that start at once do it one after the other: SQLite's write transaction excludes the
    second, PostgreSQL takes an advisory lock; the second then finds nothing to do.

    Raises:
        ConfigError: a newer release has already changed this database.
    """
    if tx.dialect.name == "postgresql":
        tx.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
    script = ScriptDirectory(str(SCRIPTS))
    known = {revision.revision for revision in script.walk_revisions()}
    current = MigrationContext.configure(tx).get_current_heads()
    unknown = [head for head in current if head not in known]
    if unknown:
        raise ConfigError(
            f"database: its revision {unknown[0]!r} is newer than this program; "
            "start the newer release, or name another database"
        )
    if set(current) == set(script.get_heads()):
        return
    # An env.py would be run as a script by Alembic; the same few lines as plain code are checked and typed.
    with EnvironmentContext(
        Config(), script, fn=lambda revision, context: script._upgrade_revs("heads", revision)
    ) as environment:
        environment.configure(
            connection=tx, fn=lambda revision, context: script._upgrade_revs("heads", revision)
        )
        environment.run_migrations()
