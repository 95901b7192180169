"""The outbox: messages written in the transaction that causes them, claimed by the relay, deleted once confirmed."""

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from operator import attrgetter
from typing import Any

import sqlalchemy as sa

from order_service.backoff import Backoff
from order_service.contract.events import OUTGOING
from order_service.contract.outgoing import Outgoing
from order_service.contract.topology import EXCHANGE
from order_service.domain.order import AWAITING_MENU, State
from order_service.storage import bulk
from order_service.storage.database import Database
from order_service.storage.tables import compensations, orders, outbox

#: How long a returned or refused row waits before its next attempt.
ROW_BACKOFF = Backoff(first=1, longest=60)
#: Published without the mandatory flag: they need no subscriber. Every other message waits until a queue is bound.
NEEDS_NO_SUBSCRIBER = {name for name, model in OUTGOING.items() if not model.mandatory}
#: The most body bytes in one statement. PostgreSQL limits a parameter to 1 GiB; a body has two digits per byte.
MAX_STATEMENT_BYTES = 16 * 1024 * 1024
#: Excludes dead letters, whose type and id may equal an event's.
_is_event = outbox.c.exchange == EXCHANGE


def inserts(messages: Sequence[Outgoing], now: datetime) -> Iterator[bulk.Insert]:
    """The rows to insert, for `bulk.write`: in one part, unless dead letters are too large for one statement."""
    rows: list[Mapping[str, Any]] = []
    size = 0
    for message in messages:
        if rows and size + len(message.body) > MAX_STATEMENT_BYTES:
            yield bulk.Insert(outbox, rows)
            rows, size = [], 0
        rows.append(_row(message, now))
        size += len(message.body)
    yield bulk.Insert(outbox, rows)


def _row(message: Outgoing, now: datetime) -> Mapping[str, Any]:
    properties = None if message.properties is None else json.dumps(message.properties)
    return message._asdict() | {"properties": properties, "created_at": now, "attempts": 0, "due_at": now}


def unsent(connection: sa.Connection, ids: Sequence[str]) -> dict[str, list[int]]:
    """The row ids of those events that are still in the outbox, by event id.

    Scans the outbox, so pass many ids at once. An index would slow down every insert, and only deadlines and
    compensations would use it.
    """
    wanted = sa.select(outbox.c.message_id, outbox.c.id).where(
        bulk.among(connection, outbox.c.message_id, ids), _is_event
    )
    found: dict[str, list[int]] = {}
    for message_id, row_id in connection.execute(wanted):
        found.setdefault(message_id, []).append(row_id)
    return found


def lock_bodies(connection: sa.Connection, row_ids: Sequence[int]) -> Sequence[tuple[int, bytes]]:
    """Lock those of these rows that no relay holds, and return their ids and bodies.

    Waiting for a held row would keep its order locked.
    """
    unclaimed = sa.select(outbox.c.id, outbox.c.body).where(outbox.c.id.in_(row_ids))
    return [(row.id, row.body) for row in connection.execute(unclaimed.with_for_update(skip_locked=True))]


def replace_body(connection: sa.Connection, row_id: int, body: bytes) -> None:
    connection.execute(sa.update(outbox).where(outbox.c.id == row_id).values(body=body))


_DUE = (
    sa.select(outbox).where(outbox.c.due_at <= sa.bindparam("now")).order_by(outbox.c.id).limit(sa.bindparam("limit"))
)
_DUE_IDS = _DUE.with_only_columns(outbox.c.id).with_for_update(skip_locked=True).scalar_subquery()
#: The ids as an array, so that the subquery runs once, regardless of the plan.
_TAKE = sa.delete(outbox).where(outbox.c.id == sa.any_(sa.func.array(_DUE_IDS))).returning(outbox)


class Claim:
    """Rows that this relay alone may publish until it settles them.

    On PostgreSQL they are deleted in an open transaction, which a killed relay's connection rolls back. On SQLite only
    one relay works at a time (`Database.acquire_role`), so reading the rows claims them.
    """

    def __init__(self, database: Database, limit: int, now: datetime) -> None:
        """Claim the oldest rows that are due. Raises SQLAlchemyError while the database is unreachable."""
        self._database = database
        claim = _DUE if database.is_sqlite else _TAKE
        self._connection = database.engine.connect().execution_options(read_only=True)
        try:
            found = self._connection.execute(claim, {"now": now, "limit": limit})
            self.rows = sorted(found.all(), key=attrgetter("id"))
        except BaseException:
            self._connection.close()
            raise
        if database.is_sqlite or not self.rows:
            self._connection.close()

    def settle(self, *, sent: Sequence[int], failed: Sequence[int], now: datetime) -> None:
        """Delete the sent rows, reschedule those returned or refused, and release the others.

        Raises SQLAlchemyError while the database is unreachable: the rows then stay, and
        are published again under the same ids.
        """
        if self._database.is_sqlite:
            with self._database.writing() as connection:
                if sent:
                    connection.execute(sa.delete(outbox).where(outbox.c.id.in_(sent)))
                self._reschedule(connection, failed, now)
            return
        try:
            if len(sent) < len(self.rows):
                kept = [dict(row._mapping) for row in self.rows if row.id not in sent]
                self._connection.execute(sa.insert(outbox), kept)
            self._reschedule(self._connection, failed, now)
            self._connection.commit()
        finally:
            self._connection.close()

    def _reschedule(self, connection: sa.Connection, failed: Sequence[int], now: datetime) -> None:
        if failed:
            connection.execute(sa.delete(outbox).where(outbox.c.id.in_(failed), _no_longer_needed()))
            later = []
            for row in self.rows:
                if row.id in failed:
                    due_at = now + timedelta(seconds=ROW_BACKOFF.delay(row.attempts + 1))
                    later.append({"row_id": row.id, "attempts": row.attempts + 1, "due_at": due_at})
            connection.execute(sa.update(outbox).where(outbox.c.id == sa.bindparam("row_id")), later)


def is_mandatory(row: sa.Row[Any]) -> bool:
    """Whether a row needs a bound queue; a dead letter always does, even if its type is an event's."""
    return not row.exchange or row.type not in NEEDS_NO_SUBSCRIBER


def _no_longer_needed() -> sa.ColumnElement[bool]:
    """Rows that are no longer needed.

    The order has left the state the event belongs to, or the compensation is confirmed.
    """
    its_order = sa.exists().where(orders.c.id == outbox.c.order_id)
    confirmed = compensations.c.confirmed_at.is_not(None)
    obsolete = sa.or_(
        sa.and_(outbox.c.type == "OrderCreated", its_order.where(orders.c.state.not_in(AWAITING_MENU))),
        sa.and_(outbox.c.type == "PaymentRequested", its_order.where(orders.c.state != State.AWAITING_PAYMENT)),
        sa.exists().where(compensations.c.id == outbox.c.message_id, confirmed),
    )
    return sa.and_(_is_event, obsolete)
