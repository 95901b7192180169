"""Figures of the database for monitoring. Each query reads open rows only, found by a partial index."""

from datetime import UTC, datetime

import sqlalchemy as sa

from order_service import metrics
from order_service.domain.order import FINAL, State
from order_service.metrics import Metric
from order_service.storage.database import current_time
from order_service.storage.tables import IS_PENDING, compensations, is_time, orders, outbox

#: The values of a gauge by the values of its labels.
Figures = dict[Metric, dict[tuple[str, ...], float]]


def read(connection: sa.Connection, compensation_attempts: int) -> Figures:
    """Read the gauges; a compensation counts once it was requested this many times, or if an operator makes it."""
    now = current_time(connection)
    offset = datetime.now(UTC) - now
    created_at = sa.case((is_time(orders.c.created_at), orders.c.created_at))
    by_state = sa.select(orders.c.state, sa.func.count(), sa.func.min(created_at)).where(IS_PENDING)
    found = connection.execute(by_state.group_by(orders.c.state)).all()
    # The first id instead of the smallest time: that has no index.
    first = sa.select(outbox.c.created_at).where(is_time(outbox.c.created_at)).order_by(outbox.c.id).limit(1)
    is_overdue = sa.or_(compensations.c.attempts >= compensation_attempts, compensations.c.due_at.is_(None))
    unconfirmed = sa.select(sa.func.count()).where(compensations.c.confirmed_at.is_(None), is_overdue)
    return {
        metrics.PENDING: {(state.value,): 0 for state in State if state not in FINAL}
        | {(state,): count for state, count, _ in found},
        metrics.OLDEST_PENDING: {(): _age(min((oldest for _, _, oldest in found if oldest), default=None), now)},
        metrics.OUTBOX_ROWS: {(): connection.execute(sa.select(sa.func.count()).select_from(outbox)).scalar_one()},
        metrics.OUTBOX_OLDEST: {(): _age(connection.execute(first).scalar(), now)},
        metrics.CLOCK_OFFSET: {(): offset.total_seconds()},
        metrics.UNCONFIRMED: {(): connection.execute(unconfirmed).scalar_one()},
    }


def _age(since: datetime | None, now: datetime) -> float:
    return 0.0 if since is None else max(0.0, (now - since).total_seconds())
