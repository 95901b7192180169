"""The progress of each order's reservation at a Menu Service that only speaks HTTP."""

import json
from datetime import datetime
from typing import NamedTuple

import sqlalchemy as sa

from order_service.storage.tables import menu_takings


class Progress(NamedTuple):
    """The menu ids whose stock was taken, and the one whose PUT has no known answer yet."""

    order_id: int
    taken: tuple[int, ...]
    asked: int | None
    at: datetime


def find(connection: sa.Connection, order_id: int) -> Progress | None:
    """The progress of an order, if any is recorded."""
    row = connection.execute(sa.select(menu_takings).where(menu_takings.c.order_id == order_id)).one_or_none()
    return None if row is None else Progress(row.order_id, tuple(json.loads(row.taken)), row.asked, row.at)


def save(connection: sa.Connection, progress: Progress) -> None:
    """Record the progress of an order that is locked in this transaction."""
    delete(connection, progress.order_id)
    row = progress._asdict() | {"taken": json.dumps(progress.taken)}
    connection.execute(sa.insert(menu_takings).values(row))


def delete(connection: sa.Connection, order_id: int) -> None:
    """Record that no stock is taken for an order."""
    connection.execute(sa.delete(menu_takings).where(menu_takings.c.order_id == order_id))
