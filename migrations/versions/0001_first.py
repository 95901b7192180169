"""The first schema: orders, their history (which is also the inbox), outbox and compensations."""

import sqlalchemy as sa
from alembic import op

from order_service.tables import BigId, ExactDecimal, UtcDateTime

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "orders",
        sa.Column("id", sa.Integer, nullable=False),
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
        sa.PrimaryKeyConstraint("id", name="pk_orders"),
        sqlite_autoincrement=True,
    )
    _index_due("orders")
    op.create_table(
        "order_history",
        sa.Column("id", BigId, nullable=False),
        sa.Column("order_id", sa.Integer, nullable=False),
        sa.Column("at", UtcDateTime, nullable=False),
        sa.Column("type", sa.String(40), nullable=False),
        sa.Column("from_state", sa.String(24)),
        sa.Column("to_state", sa.String(24), nullable=False),
        sa.Column("message_id", sa.String(255)),
        sa.PrimaryKeyConstraint("id", name="pk_order_history"),
        sa.UniqueConstraint("order_id", "type", "message_id", name="uq_order_history_order_id_type_message_id"),
    )
    op.create_table(
        "outbox",
        sa.Column("id", BigId, nullable=False),
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
        sa.PrimaryKeyConstraint("id", name="pk_outbox"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "suspects",
        sa.Column("key", sa.String(64), nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.PrimaryKeyConstraint("key", name="pk_suspects"),
    )
    op.create_table(
        "compensations",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("order_id", sa.Integer, nullable=False),
        sa.Column("type", sa.String(40), nullable=False),
        sa.Column("subject", sa.String(100)),
        sa.Column("amount", ExactDecimal),
        sa.Column("reason", sa.String(40), nullable=False),
        sa.Column("sequence", sa.Integer, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("confirmed_at", UtcDateTime),
        sa.Column("due_at", UtcDateTime),
        sa.PrimaryKeyConstraint("id", name="pk_compensations"),
    )
    _index_due("compensations")


def _index_due(table: str) -> None:
    armed = sa.text("due_at is not null")
    op.create_index(f"ix_{table}_due_at", table, ["due_at"], postgresql_where=armed, sqlite_where=armed)


def downgrade() -> None:
    for table in ("compensations", "suspects", "outbox", "order_history", "orders"):
        op.drop_table(table)
