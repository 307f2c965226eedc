"""Who did what to which release, which are retired, and which features each online store holds."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

BEFORE = "switched before acts were recorded"


def upgrade() -> None:
    """One step forward; what answers now becomes the first entry of the history."""
    op.add_column("release", sa.Column("retired_at", sa.DateTime(), nullable=True))
    op.create_table(
        "release_act",
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("act", sa.String(16), nullable=False),
        sa.Column("release_id", sa.String(64), nullable=False),
        sa.Column("previous_id", sa.String(64), nullable=True),
        sa.Column("done_at", sa.DateTime(), nullable=False),
        sa.Column("done_by", sa.String(200), nullable=False),
        sa.Column("why", sa.Text(), nullable=False),
        sa.Column("gates", sa.JSON(), nullable=True),
        sa.PrimaryKeyConstraint("number", name="pk_release_act"),
        sa.ForeignKeyConstraint(["release_id"], ["release.release_id"], name="fk_release_act_release_id"),
        sa.ForeignKeyConstraint(["previous_id"], ["release.release_id"], name="fk_release_act_previous_id"),
    )
    op.execute(
        "INSERT INTO release_act (act, release_id, previous_id, done_at, done_by, why) "
        f"SELECT 'promoted', release_id, previous_id, since, 'unknown', '{BEFORE}' FROM current_release"
    )
    op.create_table(
        "stored_features",
        sa.Column("store", sa.String(200), nullable=False),
        sa.Column("features", sa.String(64), nullable=False),
        sa.Column("as_of", sa.DateTime(), nullable=False),
        sa.Column("begun_at", sa.DateTime(), nullable=False),
        sa.Column("loaded_at", sa.DateTime(), nullable=True),
        sa.PrimaryKeyConstraint("store", name="pk_stored_features"),
    )


def downgrade() -> None:
    """The same step back; the history is lost, releases and the current one stay."""
    op.drop_table("stored_features")
    op.drop_table("release_act")
    op.drop_column("release", "retired_at")  # SQLite has had this since 3.35; a copy of the table would break its keys
