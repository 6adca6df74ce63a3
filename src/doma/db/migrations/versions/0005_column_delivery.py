"""Column delivery: datasets of requests, replicas and progress of files, use of cached results."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

FILES = ("replicas", "cached", "entries", "passed", "moved", "place", "log", "history")


def upgrade() -> None:
    op.add_column("column_requests", sa.Column("dataset", sa.Integer(), nullable=True))
    op.add_column(
        "column_requests", sa.Column("served", sa.Double(), nullable=False, server_default=sa.text("0"))
    )
    op.create_index("ix_column_requests_dataset", "column_requests", ["dataset"])
    with op.batch_alter_table("column_files") as table:
        table.add_column(sa.Column("replicas", sa.JSON(), nullable=False, server_default="[]"))
        table.add_column(sa.Column("cached", sa.Boolean(), nullable=False, server_default=sa.false()))
        table.add_column(sa.Column("entries", sa.BigInteger(), nullable=False, server_default="0"))
        table.add_column(sa.Column("passed", sa.BigInteger(), nullable=False, server_default="0"))
        table.add_column(sa.Column("moved", sa.Double(), nullable=True))
        table.add_column(sa.Column("place", sa.Text(), nullable=True))
        table.add_column(sa.Column("log", sa.Text(), nullable=True))
        table.add_column(sa.Column("history", sa.JSON(), nullable=False, server_default="[]"))
    op.create_index("ix_column_files_request_state", "column_files", ["request", "state"])
    with op.batch_alter_table("column_cache") as table:
        table.add_column(sa.Column("used", sa.Double(), nullable=False, server_default="0"))
        table.add_column(sa.Column("entries", sa.BigInteger(), nullable=False, server_default="0"))
    op.create_index("ix_column_cache_used", "column_cache", ["used"])


def downgrade() -> None:
    op.drop_index("ix_column_cache_used", "column_cache")
    op.drop_index("ix_column_files_request_state", "column_files")
    op.drop_index("ix_column_requests_dataset", "column_requests")
    # Not in a batch: SQLite would make the table of the requests anew, and drop their files with the old one.
    for table, names in (
        ("column_cache", ("used", "entries")),
        ("column_files", FILES),
        ("column_requests", ("dataset", "served")),
    ):
        for name in names:
            op.drop_column(table, name)
