"""Store a digest of each applied message, by which another message with the same id is recognized."""

import sqlalchemy as sa
from alembic import op

revision = "0002_digest"
down_revision = "0001_first"


def upgrade() -> None:
    op.add_column("order_history", sa.Column("digest", sa.String(32)))


def downgrade() -> None:
    op.drop_column("order_history", "digest")
