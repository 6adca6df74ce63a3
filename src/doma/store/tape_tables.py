"""What is remembered of files on tape and of the requests to stage them: states and tables.

A file's row is found by the version of what lies in the disk buffer (its copy, or the stub that holds its
place), so a rename of the file or of a directory above it needs no row to be found. ``path`` is where it was
last seen.

Source: WLCG Tape REST API v1 §"Stage"; rules W81-W96 of the storage contract.
"""

from enum import StrEnum

from sqlalchemy import JSON, BigInteger, Column, Double, ForeignKey, Index, Integer, String, Table, Text
from sqlalchemy import UniqueConstraint as Unique

from doma.db.tables import Counter, metadata
from doma.store.protocol import Locality


class Held(StrEnum):
    """Where the bytes of a file are, and what is being done about it."""

    DISK = "DISK"
    """Only in the buffer; waits to be archived."""
    ARCHIVING = "ARCHIVING"
    BOTH = "BOTH"
    EVICTING = "EVICTING"
    """Its copy is being replaced by a stub."""
    TAPE = "TAPE"
    """Only on tape; a stub holds its place."""
    QUEUED = "QUEUED"
    """As TAPE, and waits to be recalled."""
    RECALLING = "RECALLING"
    LOST = "LOST"
    """The library does not have it any more; the stub stays."""
    DOOMED = "DOOMED"
    """Deleted or replaced: waits to be removed from the buffer and from tape."""


COPIES = (Held.DISK, Held.ARCHIVING, Held.BOTH)
"""States in which the bytes can be read."""
AWAY = (Held.TAPE, Held.QUEUED, Held.RECALLING)
"""States in which only the library has them."""

LOCALITY = {
    Held.DISK: Locality.DISK,
    Held.ARCHIVING: Locality.DISK,
    Held.BOTH: Locality.DISK_AND_TAPE,
    Held.EVICTING: Locality.DISK_AND_TAPE,
    Held.TAPE: Locality.TAPE,
    Held.QUEUED: Locality.TAPE,
    Held.RECALLING: Locality.TAPE,
    Held.LOST: Locality.LOST,
}


class Stage(StrEnum):
    """What has become of one file of a request, as the wire says it."""

    SUBMITTED = "SUBMITTED"
    STARTED = "STARTED"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"


OPEN = (Stage.SUBMITTED, Stage.STARTED)

files = Table(
    "tape_files",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("endpoint", String(64), nullable=False),
    Column("path", Text, nullable=False),
    Column("version", Text, nullable=False),
    Column("disk", Text, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("modified", Double, nullable=False),
    Column("checksums", JSON, nullable=False),
    Column("state", String(12), nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("since", Double, nullable=False),
    Column("ready", Double, nullable=False),
    Column("used", Double, nullable=False),
    Column("activity", String(64), nullable=False),
    Column("cartridge", String(64)),
    Column("position", BigInteger),
    Column("error", Text),
    Index(None, "endpoint", "disk"),
    Index(None, "endpoint", "path"),
    Index(None, "endpoint", "state", "cartridge", "position"),
)
"""``id`` is random and stands in the stub: nobody can write a stub for a file of others. ``version`` is what
clients see, for the whole life of the content; ``disk`` is the version of what lies in the buffer now.
``since``: when it came to its state's queue; ``ready``: not to be tried before; both Unix seconds."""

requests = Table(
    "tape_requests",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("owner", Text, nullable=False),
    Column("issuer", Text, nullable=False),
    Column("created", Double, nullable=False),
    Column("started", Double),
    Column("completed", Double),
    Column("files", Integer, nullable=False),
    Column("open", Integer, nullable=False),
    Index(None, "owner", "completed"),
    Index(None, "completed"),
)
"""``owner``: ``issuer#subject``. ``open``: files that are not final."""

staged = Table(
    "tape_request_files",
    metadata,
    Column("id", Counter, primary_key=True, autoincrement=True),
    Column("request", String(36), ForeignKey(requests.c.id, ondelete="CASCADE"), nullable=False),
    Column("path", Text, nullable=False),
    Column("state", String(10), nullable=False),
    Column("looked", Integer, nullable=False),
    Column("lifetime", Double, nullable=False),
    Column("activity", String(64), nullable=False),
    Column("file", String(32)),
    Column("started", Double),
    Column("finished", Double),
    Column("pinned_until", Double),
    Column("error", Text),
    Unique("request", "path"),
    Index(None, "file"),
    Index(None, "looked"),
)
"""``looked``: 0 until the store was asked about the path. ``path`` as sent, double slashes collapsed.
``pinned_until`` stands from completion to release: the copy may not be evicted before."""
