"""How far each order has got at a Menu Service that only speaks HTTP; see consumer.py."""

import json
from datetime import datetime
from typing import NamedTuple

import sqlalchemy as sa

from order_service.storage.tables import menu_takings


class Taking(NamedTuple):
    """The stock taken so far, and the line asked for since, whose answer is not known."""

    order_id: int
    taken: tuple[int, ...]
    asked: int | None
    at: datetime


def find(connection: sa.Connection, order_id: int) -> Taking | None:
    row = connection.execute(sa.select(menu_takings).where(menu_takings.c.order_id == order_id)).one_or_none()
    return None if row is None else Taking(row.order_id, tuple(json.loads(row.taken)), row.asked, row.at)


def put(connection: sa.Connection, taking: Taking) -> None:
    """Write down how far the order has got. Its order has to be locked."""
    drop(connection, taking.order_id)
    row = taking._asdict() | {"taken": json.dumps(taking.taken)}
    connection.execute(sa.insert(menu_takings).values(row))


def drop(connection: sa.Connection, order_id: int) -> None:
    """Nothing is in hand for this order."""
    connection.execute(sa.delete(menu_takings).where(menu_takings.c.order_id == order_id))
