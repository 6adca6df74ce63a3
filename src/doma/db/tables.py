"""What the tables of all services share: naming, column types, and the outbox."""

from sqlalchemy import BigInteger, Column, Double, Index, Integer, MetaData, String, Table, Text
from sqlalchemy.types import JSON

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)
"""Every table of the program; a service adds its own in its ``tables.py`` or ``repo.py``."""

Counter = BigInteger().with_variant(Integer(), "sqlite")
"""A 64-bit number that a primary key may count by itself in both databases."""

events = Table(
    "events",
    metadata,
    Column("id", Counter, primary_key=True, autoincrement=True),
    Column("kind", String(64), nullable=False),
    Column("subject", Text, nullable=False),
    Column("owner", Text, nullable=False),
    Column("data", JSON, nullable=False),
    Column("at", Double, nullable=False),
    Index(None, "at"),
    # Numbers of pruned rows never come back: a client's Last-Event-ID would point into the past.
    sqlite_autoincrement=True,
)
"""The outbox. ``id`` grows in the order of commits; ``at`` is Unix seconds."""

cursors = Table(
    "cursors",
    metadata,
    Column("consumer", String(128), primary_key=True),
    Column("position", Counter, nullable=False),
    Column("at", Double, nullable=False),
)
"""How far each relay has come: the last ``events.id`` that it passed on."""
