"""The tables of the newest schema; migrations/ creates it."""

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import sqlalchemy as sa

from order_service.domain.order import FINAL


class UtcDateTime(sa.TypeDecorator[datetime]):
    """Timezone-aware UTC on both databases; SQLite has no time zones."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        return value and (value.astimezone(UTC) if value.tzinfo else value.replace(tzinfo=UTC))


def is_time(column: sa.ColumnElement[Any]) -> sa.ColumnElement[bool]:
    """Whether Python can express this time, unlike infinity in PostgreSQL or a damaged text in SQLite.

    For what reads many rows, and would fail because of one.
    """
    return column.between(datetime(1970, 1, 1, tzinfo=UTC), datetime(9999, 1, 1, tzinfo=UTC))


class ExactDecimal(sa.TypeDecorator[Decimal]):
    """Numeric on PostgreSQL, text on SQLite, which would store a float."""

    impl = sa.Numeric(15, 4).with_variant(sa.String(20), "sqlite")
    cache_ok = True

    def process_bind_param(self, value: Decimal | None, dialect: sa.Dialect) -> Any:
        return str(value) if value is not None and dialect.name == "sqlite" else value

    def process_result_value(self, value: Any, dialect: sa.Dialect) -> Decimal | None:
        return None if value is None else Decimal(value)


#: Names for constraints and indexes, so that alembic can drop them, on SQLite too.
metadata = sa.MetaData(
    naming_convention={"ix": "ix_%(table_name)s_%(column_0_N_name)s", "uq": "uq_%(table_name)s_%(column_0_N_name)s",
                       "fk": "fk_%(table_name)s_%(column_0_N_name)s", "pk": "pk_%(table_name)s"}
)  # fmt: skip
#: SQLite assigns ids only to an INTEGER PRIMARY KEY.
BigId = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def index_filled(column: str, *, unique: bool = False) -> sa.Index:
    """An index of the rows that have a value: most inserts and updates do not touch it."""
    filled = sa.text(f"{column} is not null")
    return sa.Index(None, column, unique=unique, postgresql_where=filled, sqlite_where=filled)


orders = sa.Table(
    "orders",
    metadata,
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
    # JSON: reservations, payments, released, refunded; always read and written together with the order.
    sa.Column("ledger", sa.Text, nullable=False),
    sa.Column("reason", sa.String(40)),
    sa.Column("detail", sa.Text),
    sa.Column("rejected_menu_id", sa.Integer),
    sa.Column("paid_at", UtcDateTime),
    sa.Column("due_at", UtcDateTime),
    sa.Column("reminders_left", sa.Integer, nullable=False),
    sa.Column("traceparent", sa.String(55)),
    sa.Column("tracestate", sa.String(512)),
    # The request's Idempotency-Key and the hash of its body; in the order's row, and so written in its transaction.
    sa.Column("idempotency_key", sa.String(255)),
    sa.Column("request_hash", sa.String(64)),
    sa.Index(None, "user_id", "id"),
    index_filled("due_at"),
    index_filled("idempotency_key", unique=True),
    # Ids are never reused: a sibling may have stored an order that an operator deleted.
    sqlite_autoincrement=True,
)
#: Whether an order has not ended. Such an order always has a deadline: by its index the few among millions are found.
IS_PENDING = sa.and_(orders.c.due_at.is_not(None), orders.c.state.not_in(FINAL))

order_history = sa.Table(
    "order_history",
    metadata,
    sa.Column("id", BigId, primary_key=True),
    sa.Column("order_id", sa.Integer, nullable=False),
    sa.Column("at", UtcDateTime, nullable=False),
    sa.Column("type", sa.String(40), nullable=False),
    sa.Column("from_state", sa.String(24)),
    sa.Column("to_state", sa.String(24), nullable=False),
    # The inbox: a message is applied to an order once. Null for requests and deadlines.
    sa.Column("message_id", sa.String(255)),
    # Of the message's content, because a sender may use an id twice. Null in rows from before it was stored.
    sa.Column("digest", sa.String(32)),
    sa.UniqueConstraint("order_id", "type", "message_id"),
)

outbox = sa.Table(
    "outbox",
    metadata,
    sa.Column("id", BigId, primary_key=True),
    sa.Column("order_id", sa.Integer),
    sa.Column("type", sa.String(255)),
    sa.Column("message_id", sa.String(255)),
    sa.Column("exchange", sa.String(255), nullable=False),
    sa.Column("routing_key", sa.String(255), nullable=False),
    sa.Column("body", sa.LargeBinary, nullable=False),
    sa.Column("traceparent", sa.String(55)),
    sa.Column("tracestate", sa.String(512)),
    # JSON, dead letters only: the AMQP properties of the original, and its headers with the reason added.
    sa.Column("properties", sa.Text),
    sa.Column("created_at", UtcDateTime, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False, server_default="0"),
    # When the row may next be claimed; a return or a refusal moves it to a later time.
    sa.Column("due_at", UtcDateTime, nullable=False),
    sqlite_autoincrement=True,
)

# Possible poison messages, which were redelivered repeatedly: how many times each was tried alone.
suspects = sa.Table(
    "suspects",
    metadata,
    sa.Column("key", sa.String(64), primary_key=True),
    sa.Column("attempts", sa.Integer, nullable=False),
)

# The progress of orders at a Menu Service that only speaks HTTP: being reserved, or abandoned after a partial
# reservation.
menu_takings = sa.Table(
    "menu_takings",
    metadata,
    sa.Column("order_id", sa.Integer, primary_key=True, autoincrement=False),
    # JSON: the menu ids whose stock was taken.
    sa.Column("taken", sa.Text, nullable=False),
    # The menu id whose stock is being taken, or may have been taken.
    sa.Column("asked", sa.Integer),
    sa.Column("at", UtcDateTime, nullable=False),
)

_UNCONFIRMED = sa.text("confirmed_at is null")
compensations = sa.Table(
    "compensations",
    metadata,
    sa.Column("id", sa.String(36), primary_key=True),
    sa.Column("order_id", sa.Integer, nullable=False),
    sa.Column("type", sa.String(40), nullable=False),
    sa.Column("subject", sa.String(100)),
    sa.Column("amount", ExactDecimal),
    sa.Column("reason", sa.String(40), nullable=False),
    sa.Column("sequence", sa.Integer, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("confirmed_at", UtcDateTime),
    # When it is requested again; null once confirmed, and if an operator makes it.
    sa.Column("due_at", UtcDateTime),
    index_filled("due_at"),
    sa.Index("ix_compensations_unconfirmed", "order_id", postgresql_where=_UNCONFIRMED, sqlite_where=_UNCONFIRMED),
)
