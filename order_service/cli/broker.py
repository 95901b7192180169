"""What commands ask of the broker: a connection, the state of its queues, and the AMQP properties of their events.

The state is read by the management API if that is reachable, else by passive declares.
"""

import json
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import click
import pika
from pika.adapters.blocking_connection import BlockingChannel
from pika.exceptions import AMQPError, ChannelClosedByBroker
from pika.spec import BasicProperties

from order_service.config import Settings
from order_service.contract import tls, topology
from order_service.contract.envelope import CONTENT_TYPE
from order_service.management import Management, Unavailable
from order_service.process import AccessRefused, first_line, printable, refuse

#: The queues of sibling services, as docs/siblings.md names them, where the management API does not tell.
SIBLING_QUEUES = {"menu": "menu-service.orders", "payment": "payment-service.orders"}
#: Our queues of the replies of sibling services.
REPLY_QUEUES = {"menu": topology.MENU, "payment": topology.PAYMENT}


@contextmanager
def open_channel(settings: Settings, *, role: str, remedy: str) -> Iterator[BlockingChannel]:
    """Open a channel on the broker at RABBITMQ_URL. Exits with 2 if the broker or a file for amqps:// cannot be used.

    If the broker closes the channel, raises ClickException, which also shows `remedy`.
    """
    tls.require_usable_files(settings)
    try:
        with topology.connected(settings, role=role) as (connection, _):
            yield connection.channel()
    except ChannelClosedByBroker as error:
        raise click.ClickException(f"{error.reply_text}\n{remedy}") from error
    except AccessRefused as error:
        refuse(
            f"RABBITMQ_URL: access to the broker is refused: {error}\n"
            "Check RABBITMQ_URL and the rights of its user (docs/rights.md)."
        )
    except AMQPError as error:  # without OSError, which in the block is one of the command's own files
        refuse(
            f"RABBITMQ_URL: the broker is unreachable: {first_line(error)}\n"
            "Check that it is running and that RABBITMQ_URL is right."
        )


@dataclass(frozen=True)
class QueueState:
    """The figures of a queue; what only the management API knows is None without it."""

    name: str
    exists: bool
    consumers: int = 0
    ready: int = 0
    unacked: int | None = None
    acks_per_second: float | None = None
    arguments: dict[str, Any] | None = None

    @property
    def is_held(self) -> bool:
        """Whether consumers have messages, and ack none."""
        return bool(self.unacked) and not self.acks_per_second

    @property
    def is_unread(self) -> bool:
        """Whether messages wait in it, and none is acked."""
        return bool(self.ready or self.unacked) and not self.acks_per_second

    def __str__(self) -> str:
        name = printable(self.name)  # a sibling service chooses those of its queues
        if not self.exists:
            return f"queue {name}: does not exist"
        held = f", {self.unacked} unacked" if self.unacked else ""
        return f"queue {name}: {self.consumers} consumers, {self.ready} ready{held}"


def by_declaring(connection: pika.BlockingConnection, name: str) -> QueueState:
    """The state of a queue, by a passive declare."""
    try:
        found = connection.channel().queue_declare(name, passive=True).method
    except ChannelClosedByBroker as error:
        if error.reply_code != 404:
            raise
        return QueueState(name, exists=False)
    return QueueState(name, exists=True, consumers=found.consumer_count, ready=found.message_count)


def by_management(management: Management, name: str) -> QueueState:
    """Raises Unavailable. The figures are up to 5 s old."""
    found = management.get("queues", management.vhost, name)
    if found is None:
        return QueueState(name, exists=False)
    return QueueState(
        name,
        exists=True,
        consumers=found.get("consumers", 0),
        ready=found.get("messages_ready", 0),
        unacked=found.get("messages_unacknowledged", 0),
        acks_per_second=found.get("message_stats", {}).get("ack_details", {}).get("rate", 0.0),
        arguments=found.get("arguments", {}),
    )


def observe(settings: Settings, routing_key: str, sibling: str, own: Iterable[str] = ()) -> list[QueueState]:
    """The sibling's queues for this routing key, and some of our own.

    Raises topology.UNREACHABLE or AccessRefused if neither the management API nor the broker can be asked.
    """
    is_over_http = sibling == "menu" and settings.menu_service_url
    usual = topology.MENU_HTTP.name if is_over_http else SIBLING_QUEUES[sibling]
    return _states(settings, lambda api: [*((api and api.bound(topology.EXCHANGE, routing_key)) or [usual]), *own])


def unread_replies(settings: Settings, siblings: Collection[str]) -> dict[str, QueueState]:
    """By sibling, our queue of its replies, if messages wait in it that the consumers do not ack.

    Empty if neither the management API nor the broker can be asked.
    """
    if not siblings:
        return {}
    try:
        states = _states(settings, lambda _: [REPLY_QUEUES[sibling].name for sibling in siblings])
    except (*topology.UNREACHABLE, AccessRefused):
        return {}
    return {sibling: state for sibling, state in zip(siblings, states, strict=True) if state.is_unread}


def _states(settings: Settings, names: Callable[[Management | None], Iterable[str]]) -> list[QueueState]:
    """The states of the queues that `names` returns, which gets the management API if that can be asked."""
    try:
        management = Management(settings)
        return [by_management(management, name) for name in names(management)]
    except Unavailable:
        with topology.connected(settings, role="explain") as (connection, _):
            return [by_declaring(connection, name) for name in names(None)]


def event_properties(body: bytes, event_type: str) -> BasicProperties:
    """The AMQP properties, as far as the body determines them; the management console shows them."""
    try:
        document = json.loads(body)
    except ValueError:
        document = None
    event: dict[str, Any] = document if isinstance(document, dict) else {}
    enveloped = "specversion" in event
    data = event.get("data") if enveloped else event
    order_id = data.get("order_id") if isinstance(data, dict) else None
    return BasicProperties(
        type=event_type,
        message_id=str(event.get("id") if enveloped else uuid4()),
        correlation_id=None if order_id is None else str(order_id)[:255],
        app_id="order-service events",
        timestamp=int(time.time()),
        content_type=CONTENT_TYPE if enveloped else "application/json",
        delivery_mode=2,
        headers={name: str(event[name]) for name in ("traceparent", "tracestate") if name in event} or None,
    )
