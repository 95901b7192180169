"""Events to a sibling service that is running on the broker, in the place of the Order Service, and its replies."""

import json
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from typing import Any
from uuid import uuid4

import click
from pika.adapters.blocking_connection import BlockingChannel
from pika.exceptions import UnroutableError
from pika.spec import Basic, BasicProperties

from order_service import process
from order_service.cli.broker import QueueState, by_declaring, event_properties
from order_service.contract import samples
from order_service.contract.envelope import Delivery, Rejection, Reply, read, utc_text
from order_service.contract.events import INCOMING, MAX_ID, OUTGOING
from order_service.contract.topology import EXCHANGE, declare_exchanges, published_on
from order_service.domain.messages import Message

#: The order ids of a run are the next thousand from a random one on, far above those of real orders.
FIRST_ID, IDS = 2_000_000_000, 1000
#: After this time the broker discards an event that the sibling has not consumed, in milliseconds.
EXPIRATION_MS = "120000"
#: The most messages that are shown of a rule that does not hold.
SHOWN = 8


class Broken(Exception):
    """A rule does not hold."""

    def __init__(self, *, sent: str, came: str, expected: str) -> None:
        super().__init__(expected)
        self.sent, self.came, self.expected = sent, came, expected


class NotChecked(Exception):
    """A rule cannot be checked, for the reason given."""


@dataclass(frozen=True)
class Wanted:
    """What to ask of the sibling, and what to expect."""

    #: The current price of two dishes in stock, by menu id.
    prices: Mapping[int, Decimal]
    unknown_id: int
    #: A dish that is sold out; None: order more of the second dish than there is.
    sold_out_id: int | None
    amount: Decimal
    user_id: int
    reply_seconds: float
    wait_seconds: float
    queue: str
    kill_pid: int | None


@dataclass(frozen=True)
class Received:
    """A message of the sibling about one of our orders; `problem` says why it is not valid."""

    exchange: str
    order_id: int
    delivery: Delivery
    reply: Reply | None
    problem: str = ""

    @property
    def text(self) -> str:
        return f"{self.delivery.routing_key} {_text(self.delivery.body)}{self.problem and f' ({self.problem})'}"


@dataclass(frozen=True)
class Sent:
    order_id: int
    type: str
    text: str


class Conversation:
    """Sends requests and collects the replies, on an exclusive queue that the broker deletes with the connection."""

    def __init__(self, channel: BlockingChannel, wanted: Wanted) -> None:
        self._channel, self.wanted = channel, wanted
        self._next_id = random.randrange(FIRST_ID, MAX_ID - IDS)  # noqa: S311 - not a secret
        self.first_id = self._next_id
        self.sent: list[Sent] = []
        self.received: list[Received] = []
        #: The orders of the rule that is being checked.
        self.orders: list[int] = []
        #: The orders whose requests may get any number of replies.
        self.uncounted: set[int] = set()
        #: How many were sent and received before the rule that is being checked.
        self._mark = (0, 0)
        #: The longest time from a request to its reply, in seconds, and that request.
        self.slowest: tuple[float, str] = (0, "")
        self._queue = channel.queue_declare("", exclusive=True, auto_delete=True).method.queue
        declare_exchanges(channel)
        for name, model in INCOMING.items():
            for exchange in (EXCHANGE, published_on(name)):
                channel.queue_bind(self._queue, exchange, model.routing_key)
        channel.basic_consume(self._queue, self._receive, auto_ack=True, exclusive=True)
        channel.confirm_delivery()

    def new_order(self) -> int:
        self._next_id += 1
        self.orders.append(self._next_id)
        return self._next_id

    def ask(self, event_type: str, order_id: int, expected: Message | None = None, **data: Any) -> Message:
        """Send a request, and return its reply, or the reply that is `expected`. Raises Broken if none comes."""
        began = time.monotonic()

        def found() -> list[Message]:
            messages = [reply.message for reply in self.replies_to(event_type, order_id)]
            return [each for each in messages if expected in (None, each)]

        count = len(found())
        self.send(event_type, order_id, **data)
        if not self.wait(lambda: len(found()) > count):
            raise self.broken(
                f"{' or '.join(OUTGOING[event_type].replies)} {'' if expected is None else expected}".strip()
            )
        self.slowest = max(self.slowest, (time.monotonic() - began, self.sent[-1].text))
        return found()[-1]

    def send(self, event_type: str, order_id: int, *, extra: dict[str, Any] | None = None, **data: Any) -> None:
        """Publish a request of the Order Service; `extra` are more attributes of its envelope."""
        now = process.utc_now()
        event = samples.event(event_type, id=str(uuid4()), at=utc_text(now), order_id=order_id)
        later = utc_text(now + timedelta(minutes=15))
        given = {"user_id": self.wanted.user_id, "created_at": utc_text(now), "reply_by": later, "pay_by": later}
        event["data"] |= {name: value for name, value in given.items() if name in event["data"]} | data
        body = json.dumps(event | (extra or {})).encode()
        self.sent.append(Sent(order_id, event_type, f"{event_type} {_text(body)}"))
        properties = event_properties(body, event_type)
        properties.app_id, properties.expiration = "order-service", EXPIRATION_MS
        routing_key = OUTGOING[event_type].routing_key
        try:
            self._channel.basic_publish(EXCHANGE, routing_key, body, properties, mandatory=True)
        except UnroutableError:
            raise click.ClickException(
                f"no queue is bound to {routing_key} of {EXCHANGE}: start the sibling service first"
            ) from None
        if len(self.sent) == 1:
            # For replies with a wrong key. Not before: this queue would also have received the first request.
            for exchange in {EXCHANGE, *map(published_on, INCOMING)}:
                self._channel.queue_bind(self._queue, exchange, "#")

    def wait(self, holds: Callable[[], bool], *, seconds: float | None = None) -> bool:
        """Receive until this holds; return whether it came to hold in time."""
        deadline = time.monotonic() + (seconds or self.wanted.wait_seconds)
        while not holds():
            if (left := deadline - time.monotonic()) <= 0:
                return False
            self._channel.connection.process_data_events(time_limit=left)
        return True

    def listen(self, seconds: float) -> None:
        """Receive for this long."""
        self._channel.connection.sleep(seconds)

    def replies_to(self, request: str, order_id: int) -> list[Reply]:
        """The valid replies so far to this request."""
        return self.replies(order_id, *OUTGOING[request].replies)

    def replies(self, order_id: int, *types: str) -> list[Reply]:
        """The valid replies about this order so far, of these types."""
        replies = (each.reply for each in self.received if each.order_id == order_id)
        return [reply for reply in replies if reply and reply.type in types]

    def require(self, holds: bool, expected: str) -> None:
        """Raise Broken, with what was sent and received last since `begin`, unless the rule holds."""
        if not holds:
            raise self.broken(expected)

    def begin(self) -> None:
        """Begin to check a rule."""
        self._mark, self.orders = (len(self.sent), len(self.received)), []

    def broken(self, expected: str) -> Broken:
        sent = [each.text for each in self.sent[self._mark[0] :]]
        came = [each.text for each in self.received[self._mark[1] :]]
        return Broken(sent="\n".join(sent[-SHOWN:]), came="\n".join(came[-SHOWN:]) or "nothing", expected=expected)

    def queue(self) -> QueueState:
        """The sibling's queue."""
        return by_declaring(self._channel.connection, self.wanted.queue)

    def _receive(self, _: BlockingChannel, deliver: Basic.Deliver, properties: BasicProperties, body: bytes) -> None:
        delivery = Delivery("", deliver.routing_key or "", body, vars(properties))
        reply, problem = None, ""
        try:
            reply = read(delivery)
            order_id = reply.order_id
        except Rejection as error:
            if error.type in OUTGOING:
                return
            problem, order_id = f"{error.code}: {error}", error.order_id or 0
        if self.first_id < order_id <= self._next_id:
            self.received.append(Received(deliver.exchange or "", order_id, delivery, reply, problem))


def _text(body: bytes) -> str:
    """The data of an event, for a line of output."""
    try:
        event = json.loads(body)
        return json.dumps(event["data"] if "specversion" in event else event)[:1000]
    except (ValueError, TypeError, KeyError, RecursionError):
        return repr(body[:200])
