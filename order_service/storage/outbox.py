"""The outbox: messages written in the transaction that causes them. The relay claims and deletes them: claims.py."""

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import sqlalchemy as sa

from order_service.contract.events import OUTGOING
from order_service.contract.outgoing import Outgoing
from order_service.contract.topology import EXCHANGE
from order_service.storage import bulk
from order_service.storage.tables import is_time, outbox

#: Published without the mandatory flag: they need no subscriber. Every other message waits until a queue is bound.
NEEDS_NO_SUBSCRIBER = {name for name, model in OUTGOING.items() if not model.mandatory}
#: The most body bytes in one statement. PostgreSQL limits a parameter to 1 GiB; a body has two digits per byte.
MAX_STATEMENT_BYTES = 16 * 1024 * 1024


def inserts(messages: Sequence[Outgoing], now: datetime) -> Iterator[bulk.Insert]:
    """The rows to insert, for `bulk.write`: in one part, unless dead letters are too large for one statement."""
    rows: list[Mapping[str, Any]] = []
    size = 0
    for message in messages:
        if rows and size + len(message.body) > MAX_STATEMENT_BYTES:
            yield bulk.Insert(outbox, rows)
            rows, size = [], 0
        rows.append(_row(message, now))
        size += len(message.body) + len(rows[-1]["properties"] or "")
    yield bulk.Insert(outbox, rows)


def _row(message: Outgoing, now: datetime) -> Mapping[str, Any]:
    properties = None if message.properties is None else json.dumps(message.properties)
    return message._asdict() | {"properties": properties, "created_at": now, "attempts": 0, "due_at": now}


class Unsent(NamedTuple):
    """An event's row, and how many times the broker returned or refused it."""

    id: int
    attempts: int


def unsent(connection: sa.Connection, ids: Sequence[str]) -> dict[str, list[Unsent]]:
    """The rows of those events that are still in the outbox, by event id.

    Scans the outbox, so pass many ids at once. An index would slow down every insert, and only deadlines and
    compensations would use it.
    """
    # Not dead letters, whose ids may equal an event's.
    wanted = sa.select(outbox.c.message_id, outbox.c.id, outbox.c.attempts).where(
        bulk.among(connection, outbox.c.message_id, ids), outbox.c.exchange == EXCHANGE
    )
    found: dict[str, list[Unsent]] = {}
    for message_id, row_id, attempts in connection.execute(wanted):
        found.setdefault(message_id, []).append(Unsent(row_id, attempts))
    return found


def lock_bodies(connection: sa.Connection, row_ids: Sequence[int]) -> Sequence[tuple[int, bytes]]:
    """Lock those of these rows that no relay holds, and return their ids and bodies.

    Waiting for a held row would keep its order locked.
    """
    unclaimed = sa.select(outbox.c.id, outbox.c.body).where(outbox.c.id.in_(row_ids))
    return [(row.id, row.body) for row in connection.execute(unclaimed.with_for_update(skip_locked=True))]


def drop_unsent(connection: sa.Connection, row_ids: Sequence[int]) -> None:
    """Delete those of these rows that no relay holds, and that reached no queue.

    That is a row that was returned or refused, or was never published: the relay postpones the others.
    """
    if row_ids:
        unheld = [row_id for row_id, _ in lock_bodies(connection, row_ids)]
        is_unsent = sa.or_(outbox.c.attempts > 0, outbox.c.due_at == outbox.c.created_at)
        connection.execute(sa.delete(outbox).where(outbox.c.id.in_(unheld), is_unsent))


def replace_body(connection: sa.Connection, row_id: int, body: bytes) -> None:
    connection.execute(sa.update(outbox).where(outbox.c.id == row_id).values(body=body))


def is_mandatory(row: sa.Row[Any]) -> bool:
    """Whether a row needs a bound queue; a dead letter always does, even if its type is an event's."""
    return row.exchange != EXCHANGE or row.type not in NEEDS_NO_SUBSCRIBER


def summary(connection: sa.Connection) -> Sequence[sa.Row[Any]]:
    """The waiting messages by type and routing key, the oldest first."""
    columns, count, oldest = outbox.c, sa.func.count(), sa.func.min(outbox.c.created_at)
    key = columns.type, columns.exchange, columns.routing_key
    failed = sa.func.count(sa.case((columns.attempts > 0, 1)))
    attempts, next_at = sa.func.max(columns.attempts), sa.func.min(columns.due_at)
    values = (count.label("rows"), failed.label("failed"), attempts.label("attempts"), oldest.label("oldest"))
    wanted = sa.select(*key, *values, next_at.label("next_at")).where(
        is_time(columns.created_at), is_time(columns.due_at)
    )
    return connection.execute(wanted.group_by(*key).order_by(oldest)).all()


def retry(connection: sa.Connection, now: datetime) -> int:
    """Make due the messages that wait for another attempt, without those that a relay holds; return their number."""
    later = sa.select(outbox.c.id).where(outbox.c.due_at > now).order_by(outbox.c.id).with_for_update(skip_locked=True)
    ids = connection.execute(later).scalars().all()
    if ids:
        connection.execute(sa.update(outbox).where(bulk.among(connection, outbox.c.id, ids)).values(due_at=now))
    return len(ids)
