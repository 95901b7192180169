"""The broker's side of the contract, as values: one exchange, two queues and their dead-letter queues.

A third queue is there where the Menu Service only speaks HTTP; see consumers/menu_http/consumer.py.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import pika
from pika.adapters.blocking_connection import BlockingChannel
from pika.adapters.utils.connection_workflow import AMQPConnectorException
from pika.exceptions import AMQPError, ChannelClosedByBroker

from order_service.contract.events import INCOMING, OUTGOING, OrderCreated, StockReleaseRequested

EXCHANGE = "restaurant.events"
#: Both sides notice a dead peer within twice this; a transaction stays well below it.
HEARTBEAT_SECONDS = 30

#: RabbitMQ 4 gives a quorum queue a delivery limit of 20 unless told otherwise, 3.x none; past it a message is
#: dropped or dead-lettered, innocents of a crashing consumer included, and a dead letter looked at in the console
#: counts as delivered. We count attempts ourselves, so the broker's limit is set out of reach.
#: https://www.rabbitmq.com/docs/quorum-queues#poison-message-handling
DELIVERY_LIMIT = 1_000_000

#: What pika raises while the broker is absent, hangs or goes away.
UNREACHABLE = (AMQPError, AMQPConnectorException, OSError)


@dataclass(frozen=True)
class Queue:
    """One durable quorum queue of ours, what it is bound to, and where its dead letters go."""

    name: str
    routing_keys: tuple[str, ...]

    @property
    def dead_letters(self) -> str:
        return f"{self.name}.dlq"

    @cached_property
    def accepts(self) -> frozenset[str]:
        """The event types whose routing keys the queue is bound to; a message of another type is dead-lettered."""
        return frozenset(name for name, model in _EVENTS.items() if model.routing_key in self.routing_keys)


_EVENTS = OUTGOING | INCOMING
_KEYS = [model.routing_key for model in INCOMING.values()]
MENU = Queue("order-service.menu", tuple(key for key in _KEYS if key.startswith("menu.")))
PAYMENT = Queue("order-service.payment", tuple(key for key in _KEYS if key.startswith("payment.")))
QUEUES = (MENU, PAYMENT)
#: Only with MENU_SERVICE_URL: what a Menu Service would hear, for the consumer that calls it over HTTP.
MENU_HTTP = Queue("order-service.menu-http", (OrderCreated.routing_key, StockReleaseRequested.routing_key))
BY_NAME = {queue.name: queue for queue in (*QUEUES, MENU_HTTP)}


class NotDeclared(Exception):
    """The broker answers, but lacks something of ours, or has it with other arguments."""


def arguments(queue: Queue) -> dict[str, str | int]:
    """The declare arguments of a queue; should the broker ever give a message up, it moves it safely.

    At-least-once dead-lettering needs reject-publish.
    https://www.rabbitmq.com/docs/quorum-queues#dead-lettering
    """
    return {
        "x-queue-type": "quorum",
        "x-delivery-limit": DELIVERY_LIMIT,
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": queue.dead_letters,
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
    }


def declare(channel: BlockingChannel, queues: Sequence[Queue] = QUEUES) -> None:
    """Declare the exchange and these; may be repeated. Raises pika's ChannelClosedByBroker where arguments differ."""
    channel.exchange_declare(EXCHANGE, exchange_type="topic", durable=True)
    for queue in queues:
        dead_letters = {"x-queue-type": "quorum", "x-delivery-limit": DELIVERY_LIMIT}
        channel.queue_declare(queue.dead_letters, durable=True, arguments=dead_letters)
        channel.queue_declare(queue.name, durable=True, arguments=arguments(queue))
        for routing_key in queue.routing_keys:
            channel.queue_bind(queue.name, EXCHANGE, routing_key)


def check(channel: BlockingChannel, queues: Sequence[Queue] = QUEUES) -> None:
    """Raise NotDeclared unless all of these are there; needs no right to configure, and closes the channel if not.

    Services do not declare: a queue declared on a node that is cut off from its cluster vanishes with its messages.
    """
    try:
        channel.exchange_declare(EXCHANGE, passive=True)
        for queue in queues:
            channel.queue_declare(queue.dead_letters, passive=True)
            channel.queue_declare(queue.name, passive=True)
    except ChannelClosedByBroker as error:
        if error.reply_code != 404:
            raise
        raise NotDeclared(error.reply_text) from error


def connection_parameters(urls: str, *, name: str) -> list[pika.URLParameters]:
    """How to reach the broker, one entry a node, in random order so that clients spread over a cluster."""
    nodes = []
    for url in urls.split(","):
        node = pika.URLParameters(url.strip())
        node.heartbeat = HEARTBEAT_SECONDS
        # Without it a publisher hangs for as long as the broker's memory or disk alarm lasts.
        node.blocked_connection_timeout = 30
        node.socket_timeout = node.stack_timeout = 5
        node.client_properties = {"connection_name": name}
        nodes.append(node)
    random.shuffle(nodes)
    return nodes
