"""Idempotency keys of requests, and an index for the orders of a user."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("orders", sa.Column("idempotency_key", sa.String(255)))
    op.add_column("orders", sa.Column("request_hash", sa.String(64)))
    op.create_index("ix_orders_idempotency_key", "orders", ["idempotency_key"], unique=True)
    op.create_index("ix_orders_user_id_id", "orders", ["user_id", "id"])


def downgrade() -> None:
    op.drop_index("ix_orders_user_id_id", "orders")
    op.drop_index("ix_orders_idempotency_key", "orders")
    op.drop_column("orders", "request_hash")
    op.drop_column("orders", "idempotency_key")
