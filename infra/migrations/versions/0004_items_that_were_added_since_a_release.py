"""Which items were added since a release, and where their vectors and codes lie."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """One step forward."""
    op.create_table(
        "addition",
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("addition_id", sa.String(64), nullable=False),
        sa.Column("created_at", sa.DateTime(), nullable=False),
        sa.Column("space_id", sa.String(64), nullable=False),
        sa.Column("codebook_id", sa.String(64), nullable=False),
        sa.Column("path", sa.String(200), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("items", sa.Integer(), nullable=False),
        sa.Column("done_by", sa.String(200), nullable=False),
        sa.PrimaryKeyConstraint("number", name="pk_addition"),
        sa.UniqueConstraint("addition_id", name="uq_addition_addition_id"),
    )


def downgrade() -> None:
    """The same step back; added items are found and ranked no more until a run takes them up."""
    op.drop_table("addition")
