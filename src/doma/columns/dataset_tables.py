"""The tables of datasets: what identifiers were resolved to, and the catalogue of this server's own.

Revisions under ``db/migrations`` make them.
"""

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    String,
    Table,
    Text,
    UniqueConstraint,
)

from doma.db.tables import Counter, metadata

datasets = Table(
    "datasets",
    metadata,
    Column("id", Counter, primary_key=True, autoincrement=True),
    Column("current", String(64), unique=True),
    Column("finder", String(32), nullable=False),
    Column("name", Text, nullable=False),
    Column("issuer", Text, nullable=False),
    Column("subject", Text, nullable=False),
    Column("scopes", JSON, nullable=False),
    Column("state", String(16), nullable=False),
    Column("owner", String(128)),
    Column("lease_until", Double),
    Column("attempt", Integer, nullable=False),
    Column("reason", Text),
    Column("stale", Boolean, nullable=False),
    Column("files", Integer, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("events", BigInteger, nullable=False),
    Column("used", Double, nullable=False),
    Column("updated", Double, nullable=False),
    Index(None, "state"),
    Index(None, "used"),
)
"""``current``: digest of finder, name and realm, NULL once another row has to be made; ``issuer``,
``subject``, ``scopes``: who asked first; ``owner``: the process that looks it up."""

dataset_files = Table(
    "dataset_files",
    metadata,
    Column("id", Counter, primary_key=True, autoincrement=True),
    Column("dataset", Counter, ForeignKey(datasets.c.id, ondelete="CASCADE"), nullable=False),
    Column("number", Integer, nullable=False),
    Column("name", Text, nullable=False),
    Column("replicas", JSON, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("events", BigInteger, nullable=False),
    Column("adler32", String(8)),
    UniqueConstraint("dataset", "number"),
)

catalogue = Table(
    "catalogue",
    metadata,
    Column("id", Counter, primary_key=True, autoincrement=True),
    Column("owner", Text, nullable=False),
    Column("issuer", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("shared", Boolean, nullable=False),
    Column("changed", Double, nullable=False),
    UniqueConstraint("owner", "name"),
    Index(None, "issuer", "name"),
)
"""``shared``: everybody with a token of the same issuer may read it."""

catalogue_files = Table(
    "catalogue_files",
    metadata,
    Column("id", Counter, primary_key=True, autoincrement=True),
    Column("dataset", Counter, ForeignKey(catalogue.c.id, ondelete="CASCADE"), nullable=False),
    Column("name", Text, nullable=False),
    Column("replicas", JSON, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("events", BigInteger, nullable=False),
    Column("adler32", String(8)),
    UniqueConstraint("dataset", "name"),
)
