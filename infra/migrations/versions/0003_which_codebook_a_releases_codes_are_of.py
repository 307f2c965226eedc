"""Which codebook a release's codes are of; those recorded before name none."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """One step forward: what a release's codebook is lies in its artifacts, which a database need not be beside."""
    op.add_column("release", sa.Column("codebook_id", sa.String(64), nullable=True))


def downgrade() -> None:
    """The same step back; releases stay, and lose the names of their codebooks."""
    op.drop_column("release", "codebook_id")
