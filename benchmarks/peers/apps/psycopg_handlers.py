"""The handlers of the peers that use psycopg: one transaction per message, then the event that follows from it."""

import json
from collections.abc import Callable
from typing import Any

import psycopg
from psycopg_pool import ConnectionPool

from orders import PAY, REMEMBER, RESERVE, price_of

#: With autocommit, a single statement is its own transaction, without BEGIN and COMMIT.
CONNECT: dict[str, Any] = {"autocommit": True, "cursor_factory": psycopg.RawCursor}

#: Publishes an event: (routing key, event).
Publish = Callable[[str, dict[str, Any]], None]
Handler = Callable[..., None]


def pool(url: str, *, size: int) -> ConnectionPool:
    return ConnectionPool(url, min_size=size, max_size=size, kwargs=CONNECT, open=True)


def menu_reserved(
    connection: psycopg.Connection, message_id: str, publish: Publish, *, order_id: int, items: list[dict[str, Any]]
) -> None:
    amount = price_of(items)
    if _apply_once(connection, message_id, RESERVE, order_id, json.dumps(items), amount):
        publish("payment.requested", {"order_id": order_id, "amount": amount})


def payment_completed(
    connection: psycopg.Connection, message_id: str, publish: Publish, *, order_id: int, payment_id: str, amount: int
) -> None:
    if _apply_once(connection, message_id, PAY, order_id, payment_id, amount):
        publish("order.paid", {"order_id": order_id, "payment_id": payment_id})


def _apply_once(connection: psycopg.Connection, message_id: str, statement: str, *arguments: Any) -> bool:
    """Run the statement unless the message was applied before; whether it changed the order."""
    with connection.transaction():
        if not connection.execute(REMEMBER, (message_id,)).rowcount:
            return False
        return bool(connection.execute(statement, arguments).rowcount)
