"""Store a digest of each applied message, which distinguishes messages with the same id."""

import sqlalchemy as sa
from alembic import op

revision = "0002_history"
down_revision = "0001_first"


def upgrade() -> None:
    op.add_column("order_history", sa.Column("digest", sa.String(32)))


def downgrade() -> None:
    op.drop_column("order_history", "digest")
