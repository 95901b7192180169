"""The history of each order: one entry for each message, request and deadline, in the order they were applied."""

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

import sqlalchemy as sa

from order_service.domain.order import Order, State
from order_service.storage import bulk
from order_service.storage.tables import order_history


class Entry(NamedTuple):
    """One message, request or deadline, and the transition it made, if any."""

    order_id: int
    at: datetime
    type: str
    from_state: str | None
    to_state: str
    message_id: str | None = None
    digest: str | None = None


def inserts(entries: Sequence[Entry]) -> bulk.Insert:
    return bulk.Insert(order_history, [entry._asdict() for entry in entries])


def read_history(
    connection: sa.Connection, order: Order, *, after: int | None = None, limit: int
) -> list[tuple[int, Entry]]:
    """The entries of an order after a position, or from the start, oldest first, each with its position.

    The OrderPlaced entry, at position 0, is derived from the order's row.
    """
    columns = [order_history.c[name] for name in ("id", *Entry._fields)]
    wanted = sa.select(*columns).where(order_history.c.order_id == order.id, order_history.c.id > (after or 0))
    found = connection.execute(wanted.order_by(order_history.c.id).limit(limit))
    entries = [(position, Entry(*values)) for position, *values in found]
    if after is not None:
        return entries
    return [(0, Entry(order.id, order.created_at, "OrderPlaced", None, State.AWAITING_MENU.value)), *entries][:limit]
