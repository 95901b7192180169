"""Store the client's tracestate with the order, and send it with each event."""

import sqlalchemy as sa
from alembic import op

revision = "0003_tracestate"
down_revision = "0002_history"


def upgrade() -> None:
    for table in ("orders", "outbox"):
        op.add_column(table, sa.Column("tracestate", sa.String(512)))


def downgrade() -> None:
    for table in ("outbox", "orders"):
        op.drop_column(table, "tracestate")
