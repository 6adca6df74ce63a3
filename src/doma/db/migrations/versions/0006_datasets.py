"""Datasets: what identifiers were resolved to, and the catalogue of this server's own."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

Counter = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "datasets",
        sa.Column("id", Counter, autoincrement=True, nullable=False),
        sa.Column("current", sa.String(64)),
        sa.Column("finder", sa.String(32), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("issuer", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("scopes", sa.JSON(), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("owner", sa.String(128)),
        sa.Column("lease_until", sa.Double()),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("reason", sa.Text()),
        sa.Column("stale", sa.Boolean(), nullable=False),
        sa.Column("files", sa.Integer(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("events", sa.BigInteger(), nullable=False),
        sa.Column("used", sa.Double(), nullable=False),
        sa.Column("updated", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_datasets"),
        sa.UniqueConstraint("current", name="uq_datasets_current"),
    )
    op.create_index("ix_datasets_state", "datasets", ["state"])
    op.create_index("ix_datasets_used", "datasets", ["used"])
    _files("dataset_files", "datasets", sa.Column("number", sa.Integer(), nullable=False), "number")
    op.create_table(
        "catalogue",
        sa.Column("id", Counter, autoincrement=True, nullable=False),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("issuer", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("shared", sa.Boolean(), nullable=False),
        sa.Column("changed", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_catalogue"),
        sa.UniqueConstraint("owner", "name", name="uq_catalogue_owner_name"),
    )
    op.create_index("ix_catalogue_issuer_name", "catalogue", ["issuer", "name"])
    _files("catalogue_files", "catalogue", None, "name")


def downgrade() -> None:
    for name in ("catalogue_files", "catalogue", "dataset_files", "datasets"):
        op.drop_table(name)


def _files(name: str, parent: str, more: "sa.Column[int] | None", unique: str) -> None:
    op.create_table(
        name,
        sa.Column("id", Counter, autoincrement=True, nullable=False),
        sa.Column("dataset", Counter, nullable=False),
        *([more] if more is not None else []),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("replicas", sa.JSON(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("events", sa.BigInteger(), nullable=False),
        sa.Column("adler32", sa.String(8)),
        sa.PrimaryKeyConstraint("id", name=f"pk_{name}"),
        sa.UniqueConstraint("dataset", unique, name=f"uq_{name}_dataset_{unique}"),
        sa.ForeignKeyConstraint(["dataset"], [f"{parent}.id"], name=f"fk_{name}_dataset", ondelete="CASCADE"),
    )
