"""Create orders, their history (which is also the inbox), outbox, compensations and the tables that support them."""

import sqlalchemy as sa
from alembic import op

from order_service.storage.tables import BigId, ExactDecimal, UtcDateTime, index_filled

revision = "0001_first"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "orders",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("key", sa.Uuid, nullable=False),
        sa.Column("user_id", sa.Integer, nullable=False),
        sa.Column("menu_ids", sa.Text, nullable=False),
        sa.Column("created_at", UtcDateTime, nullable=False),
        sa.Column("expected_total", ExactDecimal),
        sa.Column("state", sa.String(24), nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("items", sa.Text),
        sa.Column("total_price", ExactDecimal),
        sa.Column("ledger", sa.Text, nullable=False),
        sa.Column("reason", sa.String(40)),
        sa.Column("detail", sa.Text),
        sa.Column("rejected_menu_id", sa.Integer),
        sa.Column("paid_at", UtcDateTime),
        sa.Column("due_at", UtcDateTime),
        sa.Column("reminders_left", sa.Integer, nullable=False),
        sa.Column("traceparent", sa.String(55)),
        sa.Column("idempotency_key", sa.String(255)),
        sa.Column("request_hash", sa.String(64)),
        sa.Index(None, "user_id", "id"),
        index_filled("due_at"),
        index_filled("idempotency_key", unique=True),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "order_history",
        sa.Column("id", BigId, primary_key=True),
        sa.Column("order_id", sa.Integer, nullable=False),
        sa.Column("at", UtcDateTime, nullable=False),
        sa.Column("type", sa.String(40), nullable=False),
        sa.Column("from_state", sa.String(24)),
        sa.Column("to_state", sa.String(24), nullable=False),
        sa.Column("message_id", sa.String(255)),
        sa.UniqueConstraint("order_id", "type", "message_id"),
    )
    op.create_table(
        "outbox",
        sa.Column("id", BigId, primary_key=True),
        sa.Column("order_id", sa.Integer),
        sa.Column("type", sa.String(255)),
        sa.Column("message_id", sa.String(255)),
        sa.Column("exchange", sa.String(255), nullable=False),
        sa.Column("routing_key", sa.String(255), nullable=False),
        sa.Column("body", sa.LargeBinary, nullable=False),
        sa.Column("traceparent", sa.String(55)),
        sa.Column("properties", sa.Text),
        sa.Column("created_at", UtcDateTime, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False, server_default="0"),
        sa.Column("due_at", UtcDateTime, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "suspects", sa.Column("key", sa.String(64), primary_key=True), sa.Column("attempts", sa.Integer, nullable=False)
    )
    op.create_table(
        "compensations",
        sa.Column("id", sa.String(36), primary_key=True),
        sa.Column("order_id", sa.Integer, nullable=False),
        sa.Column("type", sa.String(40), nullable=False),
        sa.Column("subject", sa.String(100)),
        sa.Column("amount", ExactDecimal),
        sa.Column("reason", sa.String(40), nullable=False),
        sa.Column("sequence", sa.Integer, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("confirmed_at", UtcDateTime),
        sa.Column("due_at", UtcDateTime),
        index_filled("due_at"),
    )
    op.create_table(
        "menu_takings",
        sa.Column("order_id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("taken", sa.Text, nullable=False),
        sa.Column("asked", sa.Integer),
        sa.Column("at", UtcDateTime, nullable=False),
    )


def downgrade() -> None:
    for table in ("menu_takings", "compensations", "suspects", "outbox", "order_history", "orders"):
        op.drop_table(table)
