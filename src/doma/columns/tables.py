"""The tables of the column service: requests, their files, cached results, who computes what.

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
    false,
)

from doma.db.tables import Counter, metadata

requests = Table(
    "column_requests",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("owner", Text, nullable=False),
    Column("issuer", Text, nullable=False),
    Column("subject", Text, nullable=False),
    Column("scopes", JSON, nullable=False),
    Column("title", Text),
    Column("did", Text, nullable=False),
    Column("dataset", Integer),
    Column("selection", Text, nullable=False),
    Column("digest", String(64), nullable=False),
    Column("codegen", String(32), nullable=False),
    Column("format", String(32), nullable=False),
    Column("destination", String(32), nullable=False),
    Column("state", String(16), nullable=False),
    Column("wanted", String(16), nullable=False),
    Column("failure", Text),
    Column("files", Integer, nullable=False),
    Column("completed", Integer, nullable=False),
    Column("failed", Integer, nullable=False),
    Column("submitted", Double, nullable=False),
    Column("finished", Double),
    Column("visible", BigInteger, nullable=False),
    Column("served", Double, nullable=False),
    Column("entries", BigInteger, nullable=False, server_default="0"),
    Column("passed", BigInteger, nullable=False, server_default="0"),
    Column("read", BigInteger, nullable=False, server_default="0"),
    Column("bytes", BigInteger, nullable=False, server_default="0"),
    Column("events", BigInteger, nullable=False, server_default="0"),
    Column("seconds", Double, nullable=False, server_default="0"),
    Column("quickest", Double),
    Column("slowest", Double),
    Column("pushed", Integer, nullable=False, server_default="0"),
    Index(None, "owner", "submitted"),
    Index(None, "finished"),
    Index(None, "dataset"),
)
"""``visible``: microseconds of the youngest visible result, so that the next one is later; ``served``: when a
file of it was last claimed, so that requests take turns. From ``entries`` on: sums over the files that ended,
the last four over those that are done."""

files = Table(
    "column_files",
    metadata,
    Column("id", Counter, primary_key=True, autoincrement=True),
    Column("request", String(36), ForeignKey(requests.c.id, ondelete="CASCADE"), nullable=False),
    Column("number", Integer, nullable=False),
    Column("url", Text, nullable=False),
    Column("replicas", JSON, nullable=False),
    Column("state", String(16), nullable=False),
    Column("owner", String(128)),
    Column("lease_until", Double),
    Column("attempt", Integer, nullable=False),
    Column("reason", Text),
    Column("name", Text),
    Column("bytes", BigInteger, nullable=False),
    Column("events", BigInteger, nullable=False),
    Column("seconds", Double, nullable=False),
    Column("read", BigInteger, nullable=False),
    Column("visible", BigInteger, nullable=False),
    Column("cached", Boolean, nullable=False),
    Column("entries", BigInteger, nullable=False),
    Column("passed", BigInteger, nullable=False),
    Column("moved", Double),
    Column("place", Text),
    Column("log", Text),
    Column("history", JSON, nullable=False),
    Column("pushed", Boolean, nullable=False, server_default=false()),
    UniqueConstraint("request", "number"),
    Index(None, "state", "lease_until"),
    Index(None, "request", "state"),
)
"""``entries``: of the input; ``passed``: those done, as of ``moved``; ``place``: the replica that was read;
``cached``: the result was taken over; ``log``: what the user's code printed; ``history``: failed attempts;
``pushed``: its filter ran beside the data. A waiting file with a ``lease_until`` is left alone till then."""

cache = Table(
    "column_cache",
    metadata,
    Column("key", String(64), primary_key=True),
    Column("input", String(64), nullable=False),
    Column("version", Text, nullable=False),
    Column("path", Text, nullable=False),
    Column("object_version", Text, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("events", BigInteger, nullable=False),
    Column("entries", BigInteger, nullable=False),
    Column("request", String(36), nullable=False),
    Column("made", Double, nullable=False),
    Column("used", Double, nullable=False),
    Index(None, "input"),
    Index(None, "request"),
    Index(None, "used"),
)
"""Results by question and input version. ``path`` is the object of the request that computed it or, once that
is deleted (``request`` is empty), one of the cache's own."""

leads = Table(
    "column_leads",
    metadata,
    Column("key", String(64), primary_key=True),
    Column("owner", String(128), nullable=False),
    Column("lease_until", Double, nullable=False),
)
"""Which service process computes the answer to a question about an input; the others wait for it."""
