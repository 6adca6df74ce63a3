"""The tables of the built-in issuer; revision 0003 makes them."""

from sqlalchemy import Column, Double, ForeignKey, Index, Integer, MetaData, String, Table, Text
from sqlalchemy.types import JSON

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

families = Table(
    "auth_families",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("client", String(128), nullable=False),
    Column("subject", String(255), nullable=False),
    Column("scope", Text, nullable=False),
    Column("audience", JSON, nullable=False),
    Column("details", JSON, nullable=False),
    Column("number", Integer, nullable=False),
    Column("made", Double, nullable=False),
    Column("expires", Double, nullable=False),
    Column("revoked", Double),
    Index(None, "expires"),
)
"""A refresh token with all that it was rotated into; ``number`` is the newest. No token stands here."""

rotations = Table(
    "auth_rotations",
    metadata,
    Column("family", String(36), ForeignKey("auth_families.id", ondelete="CASCADE"), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("at", Double, nullable=False),
    Index(None, "at"),
)
"""When the refresh token of this number was made from the one before; kept as long as the grace."""

codes = Table(
    "auth_codes",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("user_code", String(64), unique=True),
    Column("client", String(128), nullable=False),
    Column("scope", Text, nullable=False),
    Column("audience", JSON, nullable=False),
    Column("details", JSON, nullable=False),
    Column("state", String(16), nullable=False),
    Column("subject", String(255)),
    Column("auth_time", Double),
    Column("pause", Integer, nullable=False),
    Column("polled", Double),
    Column("family", String(36)),
    Column("made", Double, nullable=False),
    Column("expires", Double, nullable=False),
    Index(None, "expires"),
)
"""What may be used once: device codes, authorization codes, client assertions; ``id`` is a SHA-256."""

revoked = Table(
    "auth_revoked",
    metadata,
    Column("jti", String(255), primary_key=True),
    Column("at", Double, nullable=False),
    Column("expires", Double, nullable=False),
    Index(None, "at"),
    Index(None, "expires"),
)
"""Access tokens that are void before they expire."""
