"""Process deliveries in one transaction: apply the valid ones, and dead-letter those that can never be applied."""

from collections.abc import Sequence
from hashlib import sha256

from order_service import handlers, metrics
from order_service.contract.envelope import Delivery, Rejection, Reply, read, rejection
from order_service.contract.topology import BY_NAME
from order_service.domain.saga import Policy
from order_service.storage import inbox
from order_service.storage.database import Database
from order_service.unit_of_work import unit_of_work

#: How many times a possible poison message may end the process before it is dead-lettered.
POISON_ATTEMPTS = 3


def process_batch(database: Database, policy: Policy, deliveries: Sequence[Delivery]) -> None:
    """Process all deliveries in one transaction. If it raises, none was processed."""
    replies: list[Reply] = []
    rejections: list[Rejection] = []
    for delivery in deliveries:
        try:
            replies.append(_read(delivery))
        except Rejection as error:
            rejections.append(error)
    with unit_of_work(database, policy) as work:
        if replies:
            rejections += handlers.apply_replies(work, replies)
        for each in rejections:
            work.dead_letter(each)
    metrics.BATCH_MESSAGES.observe(len(deliveries))


def _read(delivery: Delivery) -> Reply:
    reply = read(delivery)
    if reply.type not in BY_NAME[delivery.queue].accepts:
        raise reply.rejection("unknown_type", "type", f"is not accepted by {delivery.queue}")
    return reply


def dead_letter_failed(database: Database, policy: Policy, delivery: Delivery, problem: str) -> None:
    """Dead-letter a delivery that causes an error in this program."""
    with unit_of_work(database, policy) as work:
        work.dead_letter(rejection(delivery, "internal_error", "message", f"could not be processed: {problem}"))


def retry_poison_message(database: Database, policy: Policy, delivery: Delivery) -> None:
    """Process a delivery that may end this process. Each attempt is counted in the database before it is made.

    The broker's own delivery count cannot be used: it also increases for messages prefetched together with a poison
    message.
    """
    message_id = str(delivery.properties.get("message_id"))
    key = sha256(f"{delivery.queue} {message_id} ".encode(errors="replace") + delivery.body).hexdigest()
    with database.writing() as connection:
        attempts = inbox.count_attempt(connection, key)
    try:
        if attempts > POISON_ATTEMPTS:
            dead_letter_failed(database, policy, delivery, f"it ended the consumer {POISON_ATTEMPTS} times")
        else:
            process_batch(database, policy, [delivery])
    finally:
        # Also after an exception: the process has survived the attempt.
        with database.writing() as connection:
            inbox.clear_attempts(connection, key)
