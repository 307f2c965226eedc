"""Releases, and the one row that says which of them answers."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """One step forward."""
    op.create_table(
        "release",
        sa.Column("release_id", sa.String(64), nullable=False),
        sa.Column("created_at", sa.DateTime(), nullable=False),
        sa.Column("space_id", sa.String(64), nullable=False),
        sa.Column("ctr_model", sa.String(64), nullable=False),
        sa.Column("artifacts", sa.JSON(), nullable=False),
        sa.Column("metrics", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("release_id", name="pk_release"),
    )
    op.create_table(
        "current_release",
        sa.Column("row", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("release_id", sa.String(64), nullable=False),
        sa.Column("previous_id", sa.String(64), nullable=True),
        sa.Column("since", sa.DateTime(), nullable=False),
        sa.PrimaryKeyConstraint("row", name="pk_current_release"),
        sa.ForeignKeyConstraint(["release_id"], ["release.release_id"], name="fk_current_release_release_id"),
        sa.ForeignKeyConstraint(["previous_id"], ["release.release_id"], name="fk_current_release_previous_id"),
    )


def downgrade() -> None:
    """The same step back."""
    op.drop_table("current_release")
    op.drop_table("release")
