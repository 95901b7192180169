"""What happened to each order, and so also the inbox: which messages were already applied to it."""

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from order_service.domain.order import Order, State
from order_service.storage import bulk
from order_service.storage.tables import order_history, suspects


class Entry(NamedTuple):
    """One thing that happened: a message, a request or a deadline, and the transition it made or did not make."""

    order_id: int
    at: datetime
    type: str
    from_state: str | None
    to_state: str
    message_id: str | None = None


#: What makes a message a repeat. The type belongs to it: two siblings may count their ids from one.
Key = tuple[int, str, str]


def applied(connection: sa.Connection, keys: Sequence[Key]) -> set[Key]:
    """Which of these messages were applied before. Only sure while their orders are locked."""
    if not keys:
        return set()
    columns = (order_history.c.order_id, order_history.c.type, order_history.c.message_id)
    return {(row[0], row[1], row[2]) for row in bulk.present(connection, columns, keys)}


def recorded(entries: Sequence[Entry]) -> bulk.Insert:
    """Writes down what happened, in the order in which it happened."""
    return bulk.Insert(order_history, [entry._asdict() for entry in entries])


def of_order(connection: sa.Connection, order: Order) -> list[Entry]:
    """The whole story of one order, oldest first. Its beginning needs no row: the order's own tells it."""
    columns = [order_history.c[name] for name in Entry._fields]
    of_it = sa.select(*columns).where(order_history.c.order_id == order.id).order_by(order_history.c.id)
    placed = Entry(order.id, order.created_at, "OrderPlaced", None, State.AWAITING_MENU.value)
    return [placed, *(Entry(*row) for row in connection.execute(of_it))]


def count_attempt(connection: sa.Connection, key: str) -> int:
    """Note, before it is tried, that a suspect is tried once more; returns how often that makes."""
    insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
    counted = insert(suspects).values(key=key, attempts=1)
    more = {"attempts": suspects.c.attempts + 1}
    upsert = counted.on_conflict_do_update(index_elements=["key"], set_=more).returning(suspects.c.attempts)
    return int(connection.execute(upsert).scalar_one())


def clear_suspect(connection: sa.Connection, key: str) -> None:
    """It has been dealt with."""
    connection.execute(sa.delete(suspects).where(suspects.c.key == key))
