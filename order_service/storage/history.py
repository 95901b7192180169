"""The history of each order: one entry for each message, request and deadline, in the order they were applied."""

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

import sqlalchemy as sa
import structlog

from order_service.domain.order import Order, State
from order_service.storage import bulk
from order_service.storage.tables import order_history

log = structlog.get_logger(__name__)
#: An order with this many entries records only what changes it, which is bounded like its reservations and payments.
#: Other messages need no entry: the decision table ignores them again if they are repeated.
MAX_ENTRIES = 500


class Entry(NamedTuple):
    """One message, request or deadline, and the transition it made, if any."""

    order_id: int
    at: datetime
    type: str
    from_state: str | None
    to_state: str
    message_id: str | None = None
    digest: str | None = None


def superfluous(connection: sa.Connection, unchanging: Sequence[Entry]) -> set[Entry]:
    """Those of the new entries of messages that changed nothing for which the history has no space.

    Certain only while their orders are locked.
    """
    if not unchanging:
        return set()
    ids = sorted({entry.order_id for entry in unchanging})
    of_orders = sa.select(order_history.c.order_id, sa.func.count()).group_by(order_history.c.order_id)
    found = connection.execute(of_orders.where(bulk.among(connection, order_history.c.order_id, ids)))
    space = dict.fromkeys(ids, MAX_ENTRIES) | {order_id: MAX_ENTRIES - count for order_id, count in found}
    beyond: set[Entry] = set()
    for entry in unchanging:
        space[entry.order_id] -= 1
        if space[entry.order_id] < 0:
            beyond.add(entry)
        elif space[entry.order_id] == 0:
            log.warning("a history is full: messages that change nothing are not recorded", order_id=entry.order_id)
    return beyond


def inserts(entries: Sequence[Entry]) -> bulk.Insert:
    return bulk.Insert(order_history, [entry._asdict() for entry in entries])


def read_history(
    connection: sa.Connection, order: Order, *, after: int | None = None, limit: int
) -> list[tuple[int, Entry]]:
    """The entries of an order after a position, or from the start, oldest first, each with its position.

    The OrderPlaced entry, at position 0, is derived from the order's row.
    """
    columns = [order_history.c[name] for name in ("id", *Entry._fields)]
    # OFFSET 0: PostgreSQL would otherwise read the whole table in the order of the primary key. An order has few
    # entries, so sorting them costs less than a second index.
    of_order = sa.select(*columns).where(order_history.c.order_id == order.id).offset(0).subquery()
    found = connection.execute(
        sa.select(of_order).where(of_order.c.id > (after or 0)).order_by(of_order.c.id).limit(limit)
    )
    entries = [(position, Entry(*values)) for position, *values in found]
    if after is not None:
        return entries
    return [(0, Entry(order.id, order.created_at, "OrderPlaced", None, State.AWAITING_MENU.value)), *entries][:limit]
