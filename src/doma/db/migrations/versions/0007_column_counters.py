"""Column delivery: who computes what on behalf of all, and sums over the files of a request."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

SUMS = ("entries", "passed", "read", "bytes", "events")


def upgrade() -> None:
    op.create_table(
        "column_leads",
        sa.Column("key", sa.String(64), nullable=False),
        sa.Column("owner", sa.String(128), nullable=False),
        sa.Column("lease_until", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("key", name="pk_column_leads"),
    )
    with op.batch_alter_table("column_requests") as table:
        for name in SUMS:
            table.add_column(sa.Column(name, sa.BigInteger(), nullable=False, server_default="0"))
        table.add_column(sa.Column("seconds", sa.Double(), nullable=False, server_default="0"))
        table.add_column(sa.Column("quickest", sa.Double()))
        table.add_column(sa.Column("slowest", sa.Double()))
        table.add_column(sa.Column("pushed", sa.Integer(), nullable=False, server_default="0"))
    with op.batch_alter_table("column_files") as table:
        table.add_column(sa.Column("pushed", sa.Boolean(), nullable=False, server_default=sa.false()))
    of = "FROM column_files WHERE column_files.request = column_requests.id AND column_files.state"
    ended = ", ".join(
        f"{n} = (SELECT COALESCE(SUM(column_files.{n}), 0) {of} IN ('success', 'failure', 'canceled'))"
        for n in SUMS
    )
    done = ", ".join(
        f"{n} = (SELECT {what} {of} = 'success')"
        for n, what in (("seconds", "COALESCE(SUM(column_files.seconds), 0)"),
                        ("quickest", "MIN(column_files.seconds)"), ("slowest", "MAX(column_files.seconds)"))
    )  # fmt: skip
    op.execute(f"UPDATE column_requests SET {ended}, {done}")  # noqa: S608 - names from above


def downgrade() -> None:
    # Not in a batch: SQLite would make the table of the requests anew, and drop their files with the old one.
    op.drop_column("column_files", "pushed")
    for name in (*SUMS, "seconds", "quickest", "slowest", "pushed"):
        op.drop_column("column_requests", name)
    op.drop_table("column_leads")
