"""Everything that leaves: written as rows in the transaction that decided it, handed out to the relay, then gone."""

import json
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from operator import attrgetter
from typing import Any
from uuid import uuid4

import sqlalchemy as sa

from order_service.contract import envelope, events
from order_service.contract.envelope import Delivery, Unreadable, storable
from order_service.contract.outgoing import data_of, event_id
from order_service.contract.topology import EXCHANGE, MENU_HTTP, QUEUES
from order_service.domain.order import AWAITING_MENU, Effect, Order, State
from order_service.domain.saga import Clock
from order_service.storage import bulk
from order_service.storage.database import Database
from order_service.storage.tables import compensations, orders, outbox

Row = dict[str, Any]
#: Published without the mandatory flag. Every other message is retried until a queue is bound to its routing key.
NEEDS_NO_SUBSCRIBER = {name for name, model in events.OUTGOING.items() if not model.mandatory}
#: The pause before a returned or refused row is tried again doubles from one to the other.
FIRST_BACKOFF, LONGEST_BACKOFF = timedelta(seconds=1), timedelta(seconds=60)
#: PostgreSQL takes a gigabyte in one parameter, where a body needs two bytes for each of its own.
MAX_STATEMENT_BYTES = 16 * 1024 * 1024
#: A dead letter may call itself what it likes, and have one of our ids.
_is_event = outbox.c.exchange == EXCHANGE
_DEAD_LETTERS = {queue.name: queue.dead_letters for queue in (*QUEUES, MENU_HTTP)}


def event_row(order: Order, effect: Effect, *, sequence: int, clock: Clock) -> Row:
    """One announcement or compensation of an order, ready to be added."""
    id, data = event_id(order, effect), data_of(order, effect, clock)
    body = envelope.wrap(data, event_id=id, order_id=order.id, sequence=sequence, at=clock.now, trace=order.traceparent)
    return _row(data, id, body, order_id=order.id, at=clock.now) | {"traceparent": order.traceparent}


def dead_letter_rows(delivery: Delivery, why: Unreadable, at: datetime) -> list[Row]:
    """A message given up on: its dead letter as it came, with the reason, and word of it to whoever sent it."""
    order_id = why.order_id if why.order_id and 0 < why.order_id < 2**31 else None
    headers = {"x-error": why.code, "x-error-detail": str(why)[:1000], "x-origin-queue": delivery.queue}
    if why.order_id is not None:
        headers["x-order-id"] = str(why.order_id)[:100]
    # Bytes that are no text came as replacement characters, which may be too many for a short string now.
    kept = {name: storable(delivery.properties.get(name)) for name in ("content_type", "app_id", "correlation_id")}
    rejected = events.MessageRejected(message_id=why.message_id, type=why.type, errors=why.errors, received_at=at)
    id = str(uuid4())
    body = envelope.wrap(rejected, event_id=id, order_id=order_id, sequence=None, at=at, trace=None)
    row = _row(rejected, id, body, order_id=order_id, at=at)
    dead_letter = row | {
        "type": why.type,
        "message_id": why.message_id,
        "exchange": "",
        "routing_key": _DEAD_LETTERS[delivery.queue],
        "body": delivery.body,
        "properties": json.dumps(kept | {"headers": headers}),
    }
    return [dead_letter, row]


def _row(data: events.EventData, id: str, body: bytes, *, order_id: int | None, at: datetime) -> Row:
    return {
        "order_id": order_id,
        "type": type(data).__name__,
        "message_id": id,
        "exchange": EXCHANGE,
        "routing_key": data.routing_key,
        "body": body,
        "traceparent": None,
        "properties": None,
        "created_at": at,
        "attempts": 0,
        "due_at": at,
    }


def leaving(rows: Sequence[Row]) -> bulk.Insert:
    """Lets these leave once the transaction is committed."""
    return bulk.Insert(outbox, rows)


def add(connection: sa.Connection, rows: Sequence[Row]) -> None:
    """Write them at once, however large they are."""
    for part in _parts(rows):
        bulk.write(connection, leaving(part))


def _parts(rows: Sequence[Row]) -> Iterator[Sequence[Row]]:
    """All at once, unless dead letters are so large that one statement could not carry them."""
    start = part_bytes = 0
    for end, row in enumerate(rows):
        if part_bytes and part_bytes + len(row["body"]) > MAX_STATEMENT_BYTES:
            yield rows[start:end]
            start, part_bytes = end, 0
        part_bytes += len(row["body"])
    yield rows[start:]


def waiting(connection: sa.Connection, ids: Sequence[str]) -> dict[str, list[int]]:
    """Those of these events that have not left yet, each with its rows. Reads all of the outbox: ask for many at once.

    An index would cost every event something, for the sake of deadlines that pass.
    """
    wanted = sa.select(outbox.c.message_id, outbox.c.id).where(
        bulk.among(connection, outbox.c.message_id, ids), _is_event
    )
    found: dict[str, list[int]] = {}
    for message_id, row_id in connection.execute(wanted):
        found.setdefault(message_id, []).append(row_id)
    return found


def renew(connection: sa.Connection, row_ids: Sequence[int], order: Order, effect: Effect, clock: Clock) -> None:
    """Build an event that has not left yet anew, because its deadline moved; its sequence stays.

    One that a relay holds just now is left alone: to wait for it would hold up everybody who needs the order.
    """
    same = sa.select(outbox.c.id, outbox.c.body).where(outbox.c.id.in_(row_ids))
    for row in connection.execute(same.with_for_update(skip_locked=True)).all():
        renewed = event_row(order, effect, sequence=json.loads(row.body)["sequence"], clock=clock)
        connection.execute(sa.update(outbox).where(outbox.c.id == row.id).values(body=renewed["body"]))


_DUE = (
    sa.select(outbox).where(outbox.c.due_at <= sa.bindparam("now")).order_by(outbox.c.id).limit(sa.bindparam("limit"))
)
_DUE_IDS = _DUE.with_only_columns(outbox.c.id).with_for_update(skip_locked=True).scalar_subquery()
#: The ids as an array, so that the rows are looked for once, whatever the planner thinks of the limit.
_TAKEN = sa.delete(outbox).where(outbox.c.id == sa.any_(sa.func.array(_DUE_IDS))).returning(outbox)


class Claim:
    """Rows that this relay alone may send until it settles them.

    On PostgreSQL they are gone in an open transaction, which ends with a killed relay's connection and so brings them
    back. On SQLite only one relay works at a time (`Database.sole`), so reading the rows is claiming them.
    """

    def __init__(self, database: Database, limit: int, now: datetime) -> None:
        """Claim the oldest rows that are due. Raises SQLAlchemyError while the database is away."""
        self._database = database
        claim = _DUE if database.is_sqlite else _TAKEN
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
        """Remove what was sent; put off what was returned or refused; free the rest.

        Raises SQLAlchemyError when the database is away: then the rows stay, and go out again under their ids.
        """
        if self._database.is_sqlite:
            with self._database.writing() as connection:
                if sent:
                    connection.execute(sa.delete(outbox).where(outbox.c.id.in_(sent)))
                self._put_off(connection, failed, now)
            return
        try:
            if len(sent) < len(self.rows):
                kept = [dict(row._mapping) for row in self.rows if row.id not in sent]
                self._connection.execute(sa.insert(outbox), kept)
            self._put_off(self._connection, failed, now)
            self._connection.commit()
        finally:
            self._connection.close()

    def _put_off(self, connection: sa.Connection, failed: Sequence[int], now: datetime) -> None:
        if failed:
            connection.execute(sa.delete(outbox).where(outbox.c.id.in_(failed), _no_longer_needed()))
            later = [
                {"row_id": row.id, "attempts": row.attempts + 1, "due_at": now + backoff(row.attempts)}
                for row in self.rows
                if row.id in failed
            ]
            connection.execute(sa.update(outbox).where(outbox.c.id == sa.bindparam("row_id")), later)


def is_mandatory(row: sa.Row[Any]) -> bool:
    """Whether a row needs a bound queue; a dead letter always does, whatever type it names."""
    return not row.exchange or row.type not in NEEDS_NO_SUBSCRIBER


def backoff(attempts: int) -> timedelta:
    """How long a row that could not be delivered rests before its next attempt."""
    return min(FIRST_BACKOFF * (1 << min(attempts, 10)), LONGEST_BACKOFF)


def _no_longer_needed() -> sa.ColumnElement[bool]:
    """An unroutable request that its order has meanwhile outlived."""
    its_order = sa.exists().where(orders.c.id == outbox.c.order_id)
    confirmed = compensations.c.confirmed_at.is_not(None)
    outlived = sa.or_(
        sa.and_(outbox.c.type == "OrderCreated", its_order.where(orders.c.state.not_in(AWAITING_MENU))),
        sa.and_(outbox.c.type == "PaymentRequested", its_order.where(orders.c.state != State.AWAITING_PAYMENT)),
        sa.exists().where(compensations.c.id == outbox.c.message_id, confirmed),
    )
    return sa.and_(_is_event, outlived)
