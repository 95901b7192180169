"""What the board of orders shows: the newest orders of each column, and figures of the last day and hour."""

from collections.abc import Collection, Mapping, Sequence
from datetime import timedelta
from math import ceil
from typing import Any

import sqlalchemy as sa

from order_service.domain.order import FINAL, State
from order_service.storage import bulk
from order_service.storage.database import current_time
from order_service.storage.tables import IS_PENDING, is_time, order_history, orders

#: The columns, with the states of their orders.
COLUMNS: Mapping[str, Collection[State]] = {
    "pending": [state for state in State if state not in FINAL],
    "paid": [State.PAID],
    "ended": [State.FAILED, State.CANCELLED],
}
#: How many of the newest orders of each column are shown.
SHOWN = 200
#: How many of the newest entries of all histories are searched: for what has changed in a moment, and for what ended in
#: a day. A transaction may commit its entries after later ones, but not after this many.
RECENT_ENTRIES, DAY_ENTRIES = 3000, 50_000
#: How many of the newest orders are searched for those of the last hour.
HOUR_ORDERS = 3000
MINUTES = 60
#: The length of the periods in which ended orders are counted, in seconds: a day begins with one in nearly all zones.
PERIOD_SECONDS = 1800


def versions(connection: sa.Connection, known: Sequence[int], *, entries: int = RECENT_ENTRIES) -> dict[int, int]:
    """The ids and versions of the orders `known`, of the newest pending ones and of the last to enter each column.

    The latter are found among this many history entries.
    """
    columns, history = orders.c, order_history.c
    newest = sa.select(history.id, history.order_id, history.from_state, history.to_state)
    recent = newest.order_by(history.id.desc()).limit(entries).cte("recent").c
    is_change = recent.from_state != recent.to_state
    parts = [
        sa.select(recent.order_id).where(is_change, recent.to_state.in_(states)).order_by(recent.id.desc())
        for states in COLUMNS.values()
    ]
    parts.append(sa.select(columns.id).where(IS_PENDING).order_by(columns.id.desc()))
    limited = [sa.select(part.limit(SHOWN).subquery()) for part in parts]
    ids = sa.union_all(*limited, sa.select(columns.id).where(bulk.among(connection, columns.id, known)))
    wanted = sa.select(columns.id, columns.version).where(columns.id.in_(ids))
    return {row.id: row.version for row in connection.execute(wanted)}


def ended(connection: sa.Connection) -> list[tuple[int, str, int]]:
    """How many orders entered each final state in each period of the last 24 hours.

    A period is named by its beginning in seconds since 1970. Counts the newest DAY_ENTRIES entries at most.
    """
    history = order_history.c
    newest = sa.select(history.at, history.from_state, history.to_state).order_by(history.id.desc())
    recent = newest.limit(DAY_ENTRIES).subquery().c
    is_counted = (
        is_time(recent.at),
        recent.at > current_time(connection) - timedelta(days=1),
        recent.to_state.in_(FINAL),
    )
    period = sa.cast(sa.extract("epoch", recent.at), sa.BigInteger) // PERIOD_SECONDS
    counts = sa.select(period, recent.to_state, sa.func.count()).where(
        *is_counted, recent.from_state != recent.to_state
    )
    found = connection.execute(counts.group_by(period, recent.to_state))
    return [(int(begin) * PERIOD_SECONDS, state, count) for begin, state, count in found]


def last_hour(connection: sa.Connection) -> dict[str, Any]:
    """How many orders were placed in each minute, the oldest first, and the p50 and p95 from then to their payment.

    In seconds, or None if none of them is paid; those of the whole hour too. Counts the newest HOUR_ORDERS at most.
    """
    now = current_time(connection)
    found = sa.select(orders.c.created_at, orders.c.paid_at).order_by(orders.c.id.desc()).limit(HOUR_ORDERS).subquery()
    is_paid = is_time(found.c.paid_at)
    newest = sa.select(found.c.created_at, sa.case((is_paid, found.c.paid_at))).where(is_time(found.c.created_at))
    placed: list[int] = [0] * MINUTES
    paid: list[list[float]] = [[] for _ in placed]
    for created_at, paid_at in connection.execute(newest):
        minute = MINUTES - 1 - max(0, int((now - created_at).total_seconds() // 60))
        if minute >= 0:
            placed[minute] += 1
            if paid_at:
                paid[minute].append((paid_at - created_at).total_seconds())
    minutes = [{"orders": count} | _percentiles(seconds) for count, seconds in zip(placed, paid, strict=True)]
    return {"minutes": minutes} | _percentiles([each for seconds in paid for each in seconds])


def _percentiles(values: Sequence[float]) -> dict[str, float | None]:
    ordered = sorted(values)
    return {
        f"p{percent}": round(ordered[ceil(len(ordered) * percent / 100) - 1], 3) if ordered else None
        for percent in (50, 95)
    }
