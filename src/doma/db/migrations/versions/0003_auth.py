"""What the built-in issuer remembers: refresh families, device and authorization codes, revoked tokens."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "auth_families",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("client", sa.String(128), nullable=False),
        sa.Column("subject", sa.String(255), nullable=False),
        sa.Column("scope", sa.Text(), nullable=False),
        sa.Column("audience", sa.JSON(), nullable=False),
        sa.Column("details", sa.JSON(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("made", sa.Double(), nullable=False),
        sa.Column("expires", sa.Double(), nullable=False),
        sa.Column("revoked", sa.Double(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_auth_families"),
    )
    op.create_index("ix_auth_families_expires", "auth_families", ["expires"])
    op.create_table(
        "auth_rotations",
        sa.Column("family", sa.String(36), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("family", "number", name="pk_auth_rotations"),
        sa.ForeignKeyConstraint(
            ["family"], ["auth_families.id"], name="fk_auth_rotations_family", ondelete="CASCADE"
        ),
    )
    op.create_index("ix_auth_rotations_at", "auth_rotations", ["at"])
    op.create_table(
        "auth_codes",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("user_code", sa.String(64), nullable=True),
        sa.Column("client", sa.String(128), nullable=False),
        sa.Column("scope", sa.Text(), nullable=False),
        sa.Column("audience", sa.JSON(), nullable=False),
        sa.Column("details", sa.JSON(), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("subject", sa.String(255), nullable=True),
        sa.Column("auth_time", sa.Double(), nullable=True),
        sa.Column("pause", sa.Integer(), nullable=False),
        sa.Column("polled", sa.Double(), nullable=True),
        sa.Column("family", sa.String(36), nullable=True),
        sa.Column("made", sa.Double(), nullable=False),
        sa.Column("expires", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_auth_codes"),
        sa.UniqueConstraint("user_code", name="uq_auth_codes_user_code"),
    )
    op.create_index("ix_auth_codes_expires", "auth_codes", ["expires"])
    op.create_table(
        "auth_revoked",
        sa.Column("jti", sa.String(255), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("expires", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("jti", name="pk_auth_revoked"),
    )
    op.create_index("ix_auth_revoked_at", "auth_revoked", ["at"])
    op.create_index("ix_auth_revoked_expires", "auth_revoked", ["expires"])


def downgrade() -> None:
    for name in ("auth_revoked", "auth_codes", "auth_rotations", "auth_families"):
        op.drop_table(name)
