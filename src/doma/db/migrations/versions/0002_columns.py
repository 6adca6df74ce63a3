"""Requests of the column service, their files, and the cache of results."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    counter = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    op.create_table(
        "column_requests",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("issuer", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("scopes", sa.JSON(), nullable=False),
        sa.Column("title", sa.Text(), nullable=True),
        sa.Column("did", sa.Text(), nullable=False),
        sa.Column("selection", sa.Text(), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("codegen", sa.String(32), nullable=False),
        sa.Column("format", sa.String(32), nullable=False),
        sa.Column("destination", sa.String(32), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("wanted", sa.String(16), nullable=False),
        sa.Column("failure", sa.Text(), nullable=True),
        sa.Column("files", sa.Integer(), nullable=False),
        sa.Column("completed", sa.Integer(), nullable=False),
        sa.Column("failed", sa.Integer(), nullable=False),
        sa.Column("submitted", sa.Double(), nullable=False),
        sa.Column("finished", sa.Double(), nullable=True),
        sa.Column("visible", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_column_requests"),
    )
    op.create_index("ix_column_requests_owner_submitted", "column_requests", ["owner", "submitted"])
    op.create_index("ix_column_requests_finished", "column_requests", ["finished"])
    op.create_table(
        "column_files",
        sa.Column("id", counter, autoincrement=True, nullable=False),
        sa.Column("request", sa.String(36), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("owner", sa.String(128), nullable=True),
        sa.Column("lease_until", sa.Double(), nullable=True),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("name", sa.Text(), nullable=True),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("events", sa.BigInteger(), nullable=False),
        sa.Column("seconds", sa.Double(), nullable=False),
        sa.Column("read", sa.BigInteger(), nullable=False),
        sa.Column("visible", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_column_files"),
        sa.ForeignKeyConstraint(
            ["request"], ["column_requests.id"], name="fk_column_files_request", ondelete="CASCADE"
        ),
        sa.UniqueConstraint("request", "number", name="uq_column_files_request_number"),
    )
    op.create_index("ix_column_files_state_lease_until", "column_files", ["state", "lease_until"])
    op.create_table(
        "column_cache",
        sa.Column("key", sa.String(64), nullable=False),
        sa.Column("input", sa.String(64), nullable=False),
        sa.Column("version", sa.Text(), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("object_version", sa.Text(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("events", sa.BigInteger(), nullable=False),
        sa.Column("request", sa.String(36), nullable=False),
        sa.Column("made", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("key", name="pk_column_cache"),
    )
    op.create_index("ix_column_cache_input", "column_cache", ["input"])
    op.create_index("ix_column_cache_request", "column_cache", ["request"])


def downgrade() -> None:
    op.drop_table("column_cache")
    op.drop_table("column_files")
    op.drop_table("column_requests")
