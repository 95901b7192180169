"""Store a digest of each applied message, which distinguishes messages with the same id; index pages of a history."""

import sqlalchemy as sa
from alembic import op

revision = "0002_history"
down_revision = "0001_first"


def upgrade() -> None:
    op.add_column("order_history", sa.Column("digest", sa.String(32)))
    op.create_index("ix_order_history_order_id_id", "order_history", ["order_id", "id"])


def downgrade() -> None:
    op.drop_index("ix_order_history_order_id_id", "order_history")
    op.drop_column("order_history", "digest")
