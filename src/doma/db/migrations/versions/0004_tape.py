"""Files on tape, requests to stage them, and pins."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    counter = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    op.create_table(
        "tape_files",
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("endpoint", sa.String(64), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("version", sa.Text(), nullable=False),
        sa.Column("disk", sa.Text(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("modified", sa.Double(), nullable=False),
        sa.Column("checksums", sa.JSON(), nullable=False),
        sa.Column("state", sa.String(12), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("since", sa.Double(), nullable=False),
        sa.Column("ready", sa.Double(), nullable=False),
        sa.Column("used", sa.Double(), nullable=False),
        sa.Column("activity", sa.String(64), nullable=False),
        sa.Column("cartridge", sa.String(64), nullable=True),
        sa.Column("position", sa.BigInteger(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_tape_files"),
    )
    op.create_index("ix_tape_files_endpoint_disk", "tape_files", ["endpoint", "disk"])
    op.create_index("ix_tape_files_endpoint_path", "tape_files", ["endpoint", "path"])
    op.create_index(
        "ix_tape_files_endpoint_state_cartridge_position",
        "tape_files",
        ["endpoint", "state", "cartridge", "position"],
    )
    op.create_table(
        "tape_requests",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("issuer", sa.Text(), nullable=False),
        sa.Column("created", sa.Double(), nullable=False),
        sa.Column("started", sa.Double(), nullable=True),
        sa.Column("completed", sa.Double(), nullable=True),
        sa.Column("files", sa.Integer(), nullable=False),
        sa.Column("open", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_tape_requests"),
    )
    op.create_index("ix_tape_requests_owner_completed", "tape_requests", ["owner", "completed"])
    op.create_index("ix_tape_requests_completed", "tape_requests", ["completed"])
    op.create_table(
        "tape_request_files",
        sa.Column("id", counter, autoincrement=True, nullable=False),
        sa.Column("request", sa.String(36), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("state", sa.String(10), nullable=False),
        sa.Column("looked", sa.Integer(), nullable=False),
        sa.Column("lifetime", sa.Double(), nullable=False),
        sa.Column("activity", sa.String(64), nullable=False),
        sa.Column("file", sa.String(32), nullable=True),
        sa.Column("started", sa.Double(), nullable=True),
        sa.Column("finished", sa.Double(), nullable=True),
        sa.Column("pinned_until", sa.Double(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_tape_request_files"),
        sa.ForeignKeyConstraint(
            ["request"], ["tape_requests.id"], name="fk_tape_request_files_request", ondelete="CASCADE"
        ),
        sa.UniqueConstraint("request", "path", name="uq_tape_request_files_request_path"),
    )
    op.create_index("ix_tape_request_files_file", "tape_request_files", ["file"])
    op.create_index("ix_tape_request_files_looked", "tape_request_files", ["looked"])


def downgrade() -> None:
    op.drop_table("tape_request_files")
    op.drop_table("tape_requests")
    op.drop_table("tape_files")
