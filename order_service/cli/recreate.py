"""Replace a queue that exists with other arguments, and keep its messages, while siblings go on publishing.

A temporary queue takes over the bindings, so that at each moment at least one of the two is bound, and the messages
are moved to it. The old queue is deleted and declared again; then everything is moved back. Each step may be repeated,
and so an interrupted command. A message may end up in the queue twice, which the consumers recognize by its id.
"""

import struct
import sys
import time
from collections.abc import Sequence

import click
import pika
from pika.adapters.blocking_connection import BlockingChannel
from pika.exceptions import ChannelClosedByBroker, NackError, UnroutableError, UnsupportedAMQPFieldException

from order_service import vendor
from order_service.cli.broker import by_declaring
from order_service.contract import topology
from order_service.contract.topology import QUORUM, Declaration, Queue
from order_service.process import first_line

#: After this time a message that was routed before its queue was unbound has arrived, in seconds.
SETTLE_SECONDS = 1
#: How long the broker may take to remove the acked messages, in seconds.
ACK_SECONDS = 5


def declare(connection: pika.BlockingConnection, queues: Sequence[Queue]) -> list[str]:
    """Declare what is missing; return the broker's reason for each queue that only `recreate_queue` can declare.

    Such a queue is bound, so that it receives what siblings publish to their own exchanges.
    """
    problems = []
    topology.declare_exchanges(connection.channel())
    for each in (each for queue in queues for each in queue.declarations):
        try:
            topology.declare_queue(connection.channel(), each)
        except ChannelClosedByBroker as error:
            if error.reply_code != 406:
                raise
            problems.append(error.reply_text)
            topology.bind(connection.channel(), each.name, each.bindings)
        if by_declaring(connection, _temporary(each)).exists:
            problems.append(f"the queue {_temporary(each)} exists: a previous --recreate was interrupted")
    return problems


def recreate_queue(connection: pika.BlockingConnection, queue: Queue) -> None:
    """Replace the queue and its dead-letter queue where they exist with other arguments. May be repeated.

    Finishes an interrupted replacement, too.
    """
    vendor.tolerate_unusual_headers()
    # What this does not replace must raise before a queue is deleted.
    topology.declare_exchanges(connection.channel())
    for each in queue.declarations:
        _recreate(connection, each)


def _recreate(connection: pika.BlockingConnection, queue: Declaration) -> None:
    temporary, channel = _temporary(queue), connection.channel()
    if _differs(connection, queue):
        # For the time until its consumers are stopped.
        topology.bind(channel, queue.name, queue.bindings)
        _require_no_consumers(channel, queue.name)
        channel.queue_declare(temporary, durable=True, arguments=QUORUM)
        topology.bind(channel, temporary, queue.bindings)
        _empty(channel, queue, source=queue.name, target=temporary)
        channel.queue_delete(queue.name)
    topology.declare_queue(channel, queue)
    if by_declaring(connection, temporary).exists:
        _empty(channel, queue, source=temporary, target=queue.name)
        channel.queue_delete(temporary)


def _temporary(queue: Declaration) -> str:
    return f"{queue.name}.moving"


def _differs(connection: pika.BlockingConnection, queue: Declaration) -> bool:
    try:
        connection.channel().queue_declare(queue.name, durable=True, arguments=dict(queue.arguments))
    except ChannelClosedByBroker as error:
        if error.reply_code != 406:
            raise
        return True
    return False


def _require_no_consumers(channel: BlockingChannel, name: str) -> None:
    # They may hold messages that are not acked, which would be deleted with the queue.
    if count := channel.queue_declare(name, passive=True).method.consumer_count:
        raise click.ClickException(
            f"{name} has consumers ({count}): stop `python -m consumers` or what else reads it, and repeat this "
            "command.\n"
            "In the meantime orders are accepted, and sibling services may go on publishing."
        )


def _empty(channel: BlockingChannel, queue: Declaration, *, source: str, target: str) -> None:
    """Unbind `source` and move its messages to `target`, which is bound. Return once no message is in `source`.

    A quorum queue cannot be deleted with if-empty or if-unused, so it is checked here. Its number of consumers includes
    everyone who holds a message that is not acked.
    """
    for exchange, routing_key in queue.bindings:
        channel.queue_unbind(source, exchange, routing_key)
    channel.connection.sleep(SETTLE_SECONDS)
    _move(channel.connection.channel(), source, target)
    deadline = time.monotonic() + ACK_SECONDS
    while (found := channel.queue_declare(source, passive=True).method).message_count or found.consumer_count:
        if time.monotonic() > deadline:
            raise click.ClickException(f"{source} is in use: stop its consumers and repeat this command.")
        channel.connection.sleep(0.1)


def _move(channel: BlockingChannel, source: str, target: str) -> None:
    """Publish each message of `source` to `target`, and ack it after the confirm."""
    # An exchange of its own, because a message to the default exchange would lose its routing key.
    exchange = f"{target}.moved"
    channel.exchange_declare(exchange, "fanout", durable=True)
    channel.queue_bind(target, exchange)
    channel.confirm_delivery()
    count = channel.queue_declare(source, passive=True).method.message_count
    with click.progressbar(length=count, label=f"{source} -> {target}", hidden=not count, file=sys.stderr) as moving:
        while True:
            method, properties, body = channel.basic_get(source)
            if method is None or properties is None or body is None:
                break
            # The broker refuses the user id of another user, and adds this header to each message of a quorum queue.
            properties.user_id = None
            headers = properties.headers or {}
            properties.headers = {name: value for name, value in headers.items() if name != "x-delivery-count"}
            try:
                channel.basic_publish(exchange, method.routing_key or "", body, properties, mandatory=True)
            except (NackError, UnroutableError, UnsupportedAMQPFieldException, struct.error) as error:
                raise click.ClickException(
                    f"a message of {source} cannot be moved to {target}: {first_line(error)}\n"
                    "Start `python -m consumers`, stop it when its queues are empty, and repeat this command."
                ) from error
            channel.basic_ack(method.delivery_tag or 0)
            moving.update(1)
    channel.exchange_delete(exchange)
