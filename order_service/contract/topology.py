"""The broker topology as values: an exchange for each publisher, two queues with dead-letter queues; how to connect.

A third queue, MENU_HTTP, is declared only if MENU_SERVICE_URL is set.
"""

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import pika
from pika.adapters.blocking_connection import BlockingChannel
from pika.adapters.utils.connection_workflow import AMQPConnectorException
from pika.exceptions import AMQPConnectionError, AMQPError, ChannelClosedByBroker, ConnectionClosedByBroker

from order_service import vendor
from order_service.config import Settings
from order_service.contract import tls
from order_service.contract.events import EVENTS
from order_service.credentials import masked
from order_service.process import AccessRefused, client_name, first_line, refuse

#: This service's events, and the replies of siblings on a broker without rights.
EXCHANGE = "restaurant.events"
#: The replies of each sibling. With one exchange for each publisher, rights keep a sender from publishing another one's
#: events; topic permissions alone do not: `CC` headers and the dead-letter exchange of an own queue circumvent them.
MENU_EXCHANGE, PAYMENT_EXCHANGE = "menu-service.events", "payment-service.events"
#: Routes each message to the queue that its routing key names: a dead-letter queue, or for a replayed message its own.
#: Publishing to the default exchange would need the right to write to every queue.
DEAD_LETTER_EXCHANGE = "order-service.dead-letters"
#: The type of each exchange; all are durable.
EXCHANGES: Mapping[str, str] = {
    EXCHANGE: "topic", MENU_EXCHANGE: "topic", PAYMENT_EXCHANGE: "topic", DEAD_LETTER_EXCHANGE: "direct",
}  # fmt: skip
#: The exchanges to which this service publishes.
OWN_EXCHANGES = (EXCHANGE, DEAD_LETTER_EXCHANGE)
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


class Declaration(NamedTuple):
    """What a queue is declared with, and its bindings: exchanges and routing keys."""

    name: str
    arguments: Mapping[str, str | int]
    bindings: Sequence[tuple[str, str]]


class BrokerUnreachable(AMQPError):
    """No node of the broker accepts a connection; the text says why, for each."""


@dataclass(frozen=True)
class Queue:
    """A durable quorum queue of this service, with the routing keys by which it is bound to EXCHANGE.

    `publisher` is the exchange of the sibling whose replies it takes: it is bound to that by the same keys.
    """

    name: str
    routing_keys: tuple[str, ...]
    publisher: str = EXCHANGE

    @property
    def dead_letters(self) -> str:
        return f"{self.name}.dlq"

    @cached_property
    def accepts(self) -> frozenset[str]:
        """The event types of its routing keys; a message of any other type is dead-lettered."""
        return frozenset(name for name, model in EVENTS.items() if model.routing_key in self.routing_keys)

    @property
    def exchanges(self) -> tuple[str, ...]:
        """The exchanges from which it takes events."""
        return tuple(dict.fromkeys((self.publisher, EXCHANGE)))

    @property
    def bindings(self) -> list[tuple[str, str]]:
        """Exchanges and routing keys; a replayed dead letter has the queue's name as its routing key."""
        events = [(exchange, key) for exchange in self.exchanges for key in self.routing_keys]
        return [*events, (DEAD_LETTER_EXCHANGE, self.name)]

    @property
    def arguments(self) -> dict[str, str | int]:
        """Its arguments for queue.declare; a queue that exists with others must be replaced (cli/recreate.py)."""
        return QUORUM | {
            "x-dead-letter-exchange": DEAD_LETTER_EXCHANGE,
            "x-dead-letter-routing-key": self.dead_letters,
            "x-max-length-bytes": MAX_QUEUE_BYTES,
            "x-overflow": "reject-publish",
        }

    @property
    def declarations(self) -> tuple[Declaration, Declaration]:
        """Its dead-letter queue, and itself."""
        dead_letters = Declaration(self.dead_letters, QUORUM, [(DEAD_LETTER_EXCHANGE, self.dead_letters)])
        return dead_letters, Declaration(self.name, self.arguments, self.bindings)


MENU = Queue("order-service.menu", ("menu.reserved", "menu.rejected", "menu.released"), MENU_EXCHANGE)
PAYMENT = Queue("order-service.payment", ("payment.completed", "payment.failed", "payment.refunded"), PAYMENT_EXCHANGE)
QUEUES = (MENU, PAYMENT)
#: The requests to a Menu Service that is called over HTTP; see consumers/menu_http/consumer.py.
MENU_HTTP = Queue("order-service.menu-http", ("order.created", "menu.release_requested"))
BY_NAME = {queue.name: queue for queue in (*QUEUES, MENU_HTTP)}


def declared_queues(*, menu_over_http: bool) -> tuple[Queue, ...]:
    """The queues of an installation."""
    return (*QUEUES, MENU_HTTP) if menu_over_http else QUEUES


def published_on(event_type: str) -> str:
    """The exchange of the service that publishes this event."""
    return next((queue.publisher for queue in QUEUES if event_type in queue.accepts), EXCHANGE)


def target_exchange(exchange: str, routing_key: str) -> str | None:
    """The exchange to which a message of the outbox is published; None if that is not one of this service's.

    Until 0.1.0 dead letters had the default exchange, and may still be waiting.
    """
    if not exchange and routing_key in {queue.dead_letters for queue in BY_NAME.values()}:
        return DEAD_LETTER_EXCHANGE
    return exchange if exchange in OWN_EXCHANGES else None


def declare(channel: BlockingChannel, queues: Sequence[Queue] = QUEUES) -> None:
    """Declare the exchanges and the queues; may be repeated. Raises ChannelClosedByBroker where arguments differ."""
    declare_exchanges(channel)
    for declaration in (each for queue in queues for each in queue.declarations):
        declare_queue(channel, declaration)


def declare_exchanges(channel: BlockingChannel) -> None:
    for exchange, exchange_type in EXCHANGES.items():
        channel.exchange_declare(exchange, exchange_type=exchange_type, durable=True)


def declare_queue(channel: BlockingChannel, queue: Declaration) -> None:
    channel.queue_declare(queue.name, durable=True, arguments=dict(queue.arguments))
    bind(channel, queue.name, queue.bindings)


def bind(channel: BlockingChannel, queue: str, bindings: Iterable[tuple[str, str]]) -> None:
    """Bind an existing queue to these exchanges and routing keys; may be repeated."""
    for exchange, routing_key in bindings:
        channel.queue_bind(queue, exchange, routing_key)


def require(channel: BlockingChannel, queues: Sequence[Queue] = QUEUES) -> None:
    """Exit with 2 unless this service's exchanges and the queues exist. Needs no permission to configure.

    Only `python -m order_service topology` declares: a queue that a service declares on a node cut off from its
    cluster disappears with its messages. The broker closes the channel if something is missing.
    """
    try:
        for exchange in OWN_EXCHANGES:
            channel.exchange_declare(exchange, passive=True)
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
