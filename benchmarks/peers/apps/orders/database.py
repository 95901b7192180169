"""The database as the peers that use psycopg see it: one transaction a message."""

import json
from typing import Any

import psycopg
from psycopg_pool import ConnectionPool

from orders.model import price_of
from orders.statements import PAY, PLACE, REMEMBER, RESERVE

#: For `connect` and the pool. Autocommit, so that a single statement is its own transaction, without BEGIN and COMMIT.
HOW: dict[str, Any] = {"autocommit": True, "cursor_factory": psycopg.RawCursor}


def pool(url: str, *, size: int) -> ConnectionPool:
    return ConnectionPool(url, min_size=size, max_size=size, kwargs=HOW, open=True)


def place(connection: psycopg.Connection, user_id: int, menu_ids: list[int]) -> int:
    """Store an order; its id."""
    row = connection.execute(PLACE, (user_id, json.dumps(menu_ids))).fetchone()
    assert row is not None
    return int(row[0])


def reserve(
    connection: psycopg.Connection, message_id: str, *, order_id: int, items: list[dict[str, Any]]
) -> int | None:
    """Apply MenuReserved once; the amount to ask for, or None when there is nothing to do."""
    amount = price_of(items)
    with connection.transaction():
        if not connection.execute(REMEMBER, (message_id,)).rowcount:
            return None
        done = connection.execute(RESERVE, (order_id, json.dumps(items), amount))
    return amount if done.rowcount else None


def pay(connection: psycopg.Connection, message_id: str, *, order_id: int, payment_id: str, amount: int) -> bool:
    """Apply PaymentCompleted once; whether the order is paid now by it."""
    with connection.transaction():
        if not connection.execute(REMEMBER, (message_id,)).rowcount:
            return False
        done = connection.execute(PAY, (order_id, payment_id, amount))
    return bool(done.rowcount)
