"""The broker topology as values: one exchange, two queues with their dead-letter queues, and how to connect.

A third queue, MENU_HTTP, is declared only if MENU_SERVICE_URL is set.
"""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property

import pika
from pika.adapters.blocking_connection import BlockingChannel
from pika.adapters.utils.connection_workflow import AMQPConnectorException
from pika.exceptions import AMQPConnectionError, AMQPError, ChannelClosedByBroker, ConnectionClosedByBroker

from order_service import vendor
from order_service.config import Settings, masked
from order_service.contract import tls
from order_service.contract.events import EVENTS
from order_service.process import AccessRefused, client_name, first_line, refuse

EXCHANGE = "restaurant.events"
#: Each side detects a dead peer within twice this time; a transaction takes much less.
HEARTBEAT_SECONDS = 30
#: Effectively unlimited, because the consumers count attempts themselves. Past the broker's limit (20 by default in
#: RabbitMQ 4, none in 3.x) a message is dropped or dead-lettered, even one that was only prefetched together with a
#: poison message, and each view of a dead letter in the management console counts as a delivery.
#: https://www.rabbitmq.com/docs/quorum-queues#poison-message-handling
DELIVERY_LIMIT = 1_000_000
QUORUM: dict[str, str | int] = {"x-queue-type": "quorum", "x-delivery-limit": DELIVERY_LIMIT}

#: The most message bytes in a queue; further publishes are refused with a nack. At 1 KiB a reply, that is a million
#: replies, hours of the consumers being stopped, and three such queues fit on the disk of a small broker.
#: https://www.rabbitmq.com/docs/maxlength
MAX_QUEUE_BYTES = 1024**3

#: What pika raises while the broker is unreachable, does not respond or closes the connection.
UNREACHABLE = (AMQPError, AMQPConnectorException, OSError)
#: How the broker's replies start for a wrong login or a missing right (403), and for a vhost (530).
REFUSALS = ("ACCESS_REFUSED", "NOT_ALLOWED")


class BrokerUnreachable(AMQPError):
    """No node of the broker accepts a connection; the text says why, for each."""


@dataclass(frozen=True)
class Queue:
    """A durable quorum queue of this service, with the routing keys it is bound to."""

    name: str
    routing_keys: tuple[str, ...]

    @property
    def dead_letters(self) -> str:
        return f"{self.name}.dlq"

    @cached_property
    def accepts(self) -> frozenset[str]:
        """The event types of its routing keys; a message of any other type is dead-lettered."""
        return frozenset(name for name, model in EVENTS.items() if model.routing_key in self.routing_keys)

    @property
    def arguments(self) -> dict[str, str | int]:
        """Its arguments for queue.declare; a queue that exists with others must be replaced (cli/recreate.py)."""
        return QUORUM | {
            "x-dead-letter-exchange": "",
            "x-dead-letter-routing-key": self.dead_letters,
            "x-max-length-bytes": MAX_QUEUE_BYTES,
            "x-overflow": "reject-publish",
        }


MENU = Queue("order-service.menu", ("menu.reserved", "menu.rejected", "menu.released"))
PAYMENT = Queue("order-service.payment", ("payment.completed", "payment.failed", "payment.refunded"))
QUEUES = (MENU, PAYMENT)
#: The requests to a Menu Service that is called over HTTP; see consumers/menu_http/consumer.py.
MENU_HTTP = Queue("order-service.menu-http", ("order.created", "menu.release_requested"))
BY_NAME = {queue.name: queue for queue in (*QUEUES, MENU_HTTP)}


def declare(channel: BlockingChannel, queues: Sequence[Queue] = QUEUES) -> None:
    """Declare the exchange and the queues; may be repeated. Raises ChannelClosedByBroker where arguments differ."""
    channel.exchange_declare(EXCHANGE, exchange_type="topic", durable=True)
    for queue in queues:
        channel.queue_declare(queue.dead_letters, durable=True, arguments=QUORUM)
        channel.queue_declare(queue.name, durable=True, arguments=queue.arguments)
        for routing_key in queue.routing_keys:
            channel.queue_bind(queue.name, EXCHANGE, routing_key)


def require(channel: BlockingChannel, queues: Sequence[Queue] = QUEUES) -> None:
    """Exit with 2 unless the exchange and the queues exist. Needs no permission to configure.

    Only `python -m order_service topology` declares: a queue that a service declares on a node cut off from its
    cluster disappears with its messages. The broker closes the channel if something is missing.
    """
    try:
        channel.exchange_declare(EXCHANGE, passive=True)
        for queue in queues:
            channel.queue_declare(queue.dead_letters, passive=True)
            channel.queue_declare(queue.name, passive=True)
    except ChannelClosedByBroker as error:
        if error.reply_code != 404:
            raise
        refuse(f"{error.reply_text}: run `python -m order_service topology` first")


@contextmanager
def connected(settings: Settings, *, role: str) -> Iterator[tuple[pika.BlockingConnection, pika.URLParameters]]:
    """A connection to one of the nodes of RABBITMQ_URL, with its parameters; closed after the block.

    Raises BrokerUnreachable, or AccessRefused if a node refuses the login or the vhost, if a certificate is refused or
    cannot be read, or if the broker closes a channel or the connection during the block because a right is missing.
    """
    url, node, connection = _connect(settings, role)
    try:
        yield connection, node
    except (ChannelClosedByBroker, ConnectionClosedByBroker) as error:
        if not error.reply_text.startswith(REFUSALS):
            raise
        raise AccessRefused(f"{url}: {error.reply_text}") from error
    finally:
        with suppress(*UNREACHABLE):
            connection.close()


def _connect(settings: Settings, role: str) -> tuple[str, pika.URLParameters, pika.BlockingConnection]:
    """Try the nodes in random order, so that clients are spread over a cluster."""
    problems, urls, is_refused = [], settings.rabbitmq_url.split(","), False
    for url in random.sample(urls, len(urls)):
        address, node = masked(url.strip()), pika.URLParameters(url.strip())
        node.heartbeat = HEARTBEAT_SECONDS
        # Without a limit a publisher blocks for as long as the broker's memory or disk alarm lasts.
        node.blocked_connection_timeout = 30
        node.socket_timeout = node.stack_timeout = 5
        node.client_properties = {"connection_name": client_name(role)}
        if node.ssl_options:
            node.ssl_options = pika.SSLOptions(tls.context(settings), node.host)
        try:
            with vendor.early_reset_as_lost_connection():
                return address, node, pika.BlockingConnection(node)
        except UNREACHABLE as error:
            problem = _cause(error)
            if node.ssl_options:
                problem = tls.with_alert(problem, node.ssl_options.context, node.host, node.port)
            meaning = tls.meaning(problem)
            is_refused |= meaning is not None or any(refusal in problem for refusal in REFUSALS)
            problems.append(f"{address}: {meaning or problem}")
    text = ", ".join(sorted(problems))
    raise AccessRefused(text) if is_refused else BrokerUnreachable(text)


def _cause(error: BaseException) -> str:
    """The text of the innermost error, because pika wraps it in errors without any."""
    inner = getattr(error, "exception", None) or next(iter(error.args), None)
    if isinstance(inner, BaseException):
        return _cause(inner)
    return str(inner) if isinstance(error, AMQPConnectionError) and inner else first_line(error)
