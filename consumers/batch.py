"""A batch of deliveries in one transaction; a message that cannot be used leaves as a dead letter, the rest goes on."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from hashlib import sha256

import sqlalchemy as sa
import structlog

from order_service import handlers
from order_service.config import Settings
from order_service.contract.envelope import Delivery, Reply, Unreadable, read, unreadable
from order_service.domain.order import OrderError, UnknownOrder
from order_service.domain.saga import Clock
from order_service.process import utc_now
from order_service.storage import history, outbox
from order_service.storage.database import Database

log = structlog.get_logger(__name__)
#: How often a message may end the process before it is given up.
SUSPECT_ATTEMPTS = 3


def is_databases_fault(error: Exception) -> bool:
    """True where the message is innocent and waiting helps; refused data and broken rules are the message's."""
    if isinstance(error, sa.exc.DataError | sa.exc.IntegrityError):
        return False
    return isinstance(error, sa.exc.DBAPIError | sa.exc.TimeoutError | MemoryError | OSError)


def apply_batch(database: Database, settings: Settings, deliveries: Sequence[tuple[Delivery, frozenset[str]]]) -> None:
    """Apply all of these, or raise and have applied none. Each comes with the types its queue accepts."""
    clock = Clock(utc_now(), settings.reply_within, settings.pay_within)
    replies: dict[int, tuple[Delivery, Reply]] = {}
    dead: list[tuple[Delivery, Unreadable]] = []
    for delivery, accepted in deliveries:
        try:
            reply = read(delivery)
            if reply.type not in accepted:
                raise _named(unreadable("unknown_type", "type", f"is not taken from {delivery.queue}"), reply)
        except Unreadable as error:
            dead.append((delivery, error))
        else:
            replies[id(reply)] = delivery, reply
    changes = handlers.Changes(clock, timedelta(seconds=settings.compensation_seconds))
    with database.writing() as connection:
        if replies:
            batch = [reply for _, reply in replies.values()]
            refused = handlers.apply_replies(connection, batch, changes)
            dead += [(replies[id(reply)][0], _refusal(reply, why)) for reply, why in refused]
        bury(connection, dead, clock.now)


def bury_one(database: Database, delivery: Delivery, problem: str) -> None:
    """Give up on one message for an error of ours that it alone brings about."""
    why = unreadable("internal_error", "message", f"could not be processed: {problem}")
    with database.writing() as connection:
        bury(connection, [(delivery, why)], utc_now())


def try_suspect(database: Database, settings: Settings, delivery: Delivery, accepted: frozenset[str]) -> None:
    """Take a message that may kill this process. Every attempt is counted before it is made, in the database.

    The broker's own count will not do: it also rises for the innocent messages that waited beside the guilty one.
    """
    message_id = str(delivery.properties.get("message_id"))
    key = sha256(f"{delivery.queue} {message_id} ".encode(errors="replace") + delivery.body).hexdigest()
    with database.writing() as connection:
        attempts = history.count_attempt(connection, key)
    try:
        if attempts > SUSPECT_ATTEMPTS:
            bury_one(database, delivery, f"the consumer died of it {SUSPECT_ATTEMPTS} times")
        else:
            apply_batch(database, settings, [(delivery, accepted)])
    finally:
        # Whatever came of it, this process outlived it.
        with database.writing() as connection:
            history.clear_suspect(connection, key)


def bury(connection: sa.Connection, dead: Sequence[tuple[Delivery, Unreadable]], at: datetime) -> None:
    """Dead-letter through the outbox, in the transaction that gives up: nothing is lost in between."""
    rows = []
    for delivery, why in dead:
        log.warning(
            "message dead-lettered",
            queue=delivery.queue,
            message_id=why.message_id,
            order_id=why.order_id,
            reason=str(why)[:500],
        )
        rows += outbox.dead_letter_rows(delivery, why, at)
    outbox.add(connection, rows)


def _refusal(reply: Reply, error: OrderError) -> Unreadable:
    code = "unknown_order" if isinstance(error, UnknownOrder) else "invalid"
    return _named(unreadable(code, error.field_name or "data", str(error), order_id=reply.order_id), reply)


def _named(why: Unreadable, reply: Reply) -> Unreadable:
    why.message_id, why.type, why.order_id = reply.message_id, reply.type, reply.order_id
    return why
