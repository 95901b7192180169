"""Hold dead letters: the selection of those that a command concerns, and their way back to their queues."""

import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from itertools import chain, count, islice
from typing import Any

import click
import pika
from pika.adapters.blocking_connection import BlockingChannel
from pika.exceptions import NackError, UnroutableError
from pika.spec import BasicProperties

from order_service import vendor
from order_service.cli.broker import open_channel
from order_service.cli.reporting import ORDER_ID, Report
from order_service.config import Settings
from order_service.contract import topology
from order_service.contract.dead_letters import DeadLetter
from order_service.contract.headers import properties_of

#: The most dead letters that one subscription holds: the broker sends no more until some are acked.
PREFETCH = 10_000
#: After this time without a message a queue is empty, or another command holds its messages, in seconds.
QUIET_SECONDS = 1
#: How long the broker may take to put back what was held, in seconds.
RETURN_SECONDS = 10
REMEDY = "Run `python -m order_service topology` first; it declares the queues."


Matches = Callable[[DeadLetter], bool]


def selection(ids: Sequence[str] = (), *, everything: bool = False, **wanted: Any) -> Matches:
    """Which dead letters a command concerns: those with these ids and `wanted` attributes; None matches all.

    Raises UsageError if nothing is given.
    """
    if everything == bool(ids or any(wanted.values())):
        raise click.UsageError("name dead letters by ID, --reason, --type or --order, or all of them by --all")
    return lambda letter: (
        (not ids or letter.id in ids) and all(value in (None, getattr(letter, name)) for name, value in wanted.items())
    )


def selected(command: Callable[..., Report]) -> Callable[..., Report]:
    """Add the options that select dead letters; the command receives them as the arguments of `selection`."""
    for option in (
        click.option("--all", "everything", is_flag=True, help="All."),
        click.option("--order", "order_id", type=ORDER_ID, help="Those that concern this order."),
        click.option("--type", help="Those of this event type."),
        click.option("--reason", help="Those with this reason, such as invalid."),
        click.argument("ids", metavar="[ID]...", nargs=-1),
    ):
        command = option(command)
    return command


@contextmanager
def holding(
    settings: Settings, matches: Matches, *, progress: str = ""
) -> Iterator[tuple[BlockingChannel, Iterator[DeadLetter]]]:
    """Hold each dead letter once, and iterate over those that match. At the end the others return to their places."""
    vendor.tolerate_unusual_headers()
    queues = topology.declared_queues(menu_over_http=bool(settings.menu_service_url))
    with open_channel(settings, role="dlq", remedy=REMEDY) as channel:
        found = {queue: channel.queue_declare(queue.dead_letters, passive=True).method for queue in queues}
        counts = {queue: method.message_count for queue, method in found.items()}
        channel.basic_qos(prefetch_count=PREFETCH)
        # No more than there were: one that is rejected again comes back to the end of the queue.
        all_held = chain.from_iterable(islice(_consumed(channel, queue), number) for queue, number in counts.items())
        length = sum(counts.values())
        with click.progressbar(all_held, length, label=progress, hidden=not progress, file=sys.stderr) as advancing:
            yield channel, filter(matches, advancing)
        channel.close()
        _wait_until_returned(channel.connection, {q.dead_letters: method.consumer_count for q, method in found.items()})


def _wait_until_returned(connection: pika.BlockingConnection, consumers: Mapping[str, int]) -> None:
    """Wait for the broker to put back what a closed channel held: the next command would not see it.

    The number of consumers of a quorum queue includes everyone who holds a message that is not acked.
    """
    channel, deadline = connection.channel(), time.monotonic() + RETURN_SECONDS
    for name, before in consumers.items():
        while channel.queue_declare(name, passive=True).method.consumer_count > before and time.monotonic() < deadline:
            connection.sleep(0.02)


def _consumed(channel: BlockingChannel, queue: topology.Queue) -> Iterator[DeadLetter]:
    """The dead letters of a queue, until none is left.

    By subscriptions, whose messages a quorum queue takes back in their order: those of basic.get are taken back in any
    order. They end with the channel, because pika rejects some messages when it cancels one. As soon as one may hold as
    many as it can, another one receives what follows; up to 32 end in the order of their tags.
    """
    arrived: deque[tuple[Any, ...]] = deque()
    for received in count():
        if received % PREFETCH == 0:
            tag = f"{queue.name} {received:010}"
            channel.basic_consume(queue.dead_letters, lambda *delivery: arrived.append(delivery[1:]), consumer_tag=tag)
        if not arrived:
            channel.connection.process_data_events(QUIET_SECONDS)
        if not arrived:
            return
        deliver, properties, body = arrived.popleft()
        yield DeadLetter(queue, properties_of(properties), body, deliver.delivery_tag)


def publish(channel: BlockingChannel, letter: DeadLetter, body: bytes, now: datetime) -> None:
    """Publish a dead letter to its queue, with this body, and delete it after the confirm. Raises ClickException."""
    properties = BasicProperties(**letter.replayed(body, now))
    try:
        channel.basic_publish(topology.DEAD_LETTER_EXCHANGE, letter.queue.name, body, properties, mandatory=True)
    except UnroutableError:
        raise click.ClickException(f"{letter.queue.name} is not bound; nothing is lost. {REMEDY}") from None
    except NackError:
        raise click.ClickException(f"the broker refuses messages for {letter.queue.name}; is it full?") from None
    channel.basic_ack(letter.tag)
