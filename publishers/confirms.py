"""A channel in confirm mode and its messages in flight.

https://www.rabbitmq.com/docs/confirms#publisher-confirms
"""

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from itertools import takewhile
from typing import Any

import sqlalchemy as sa
from pika import DeliveryMode
from pika.channel import Channel
from pika.exceptions import ChannelWrongStateError
from pika.frame import Method
from pika.spec import Basic, BasicProperties

from order_service import tracing
from order_service.contract.envelope import APP_ID, CONTENT_TYPE
from order_service.contract.headers import decoded
from order_service.contract.outgoing import TRACE
from order_service.contract.topology import target_exchange
from order_service.storage.claims import Claim, Outcomes, Route
from order_service.storage.outbox import is_mandatory
from order_service.tracing import Carrier
from order_service.vendor import GatheringConnection


@dataclass(eq=False)
class Batch:
    """Rows claimed together, and settled together once the outcome of each is known."""

    claim: Claim
    #: How many of its rows have no outcome yet, by route.
    waiting: Counter[Route]
    #: The start of the wait for confirms, on the monotonic clock.
    since: float = field(default_factory=time.monotonic)
    outcomes: Outcomes = field(default_factory=Outcomes)
    #: As `since`, but not moved while the broker blocks publishers.
    published_at: float = field(default_factory=time.monotonic)
    #: The open spans of its rows, by row id.
    spans: dict[int, Any] = field(default_factory=dict)


Entry = tuple[Batch, sa.Row[Any]]


class Answer(Enum):
    """What the broker does with a message."""

    ACCEPTED = "accepted"
    RETURNED = "returned: no queue is bound for it"
    NACKED = "refused by a queue"
    #: pika cannot encode it, so the broker never receives it.
    INVALID = "cannot be encoded"
    #: A row of this kind was not written by this service.
    FOREIGN = "its exchange is not one of this service's, so it is not published"


#: The answers that the broker did not give, because it never receives the message.
NOT_SENT = (Answer.INVALID, Answer.FOREIGN)


def route_of(row: sa.Row[Any]) -> Route:
    return row.exchange, row.routing_key


class ConfirmChannel:
    """Publishes rows as soon as it is open; pika calls these methods from its loop."""

    def __init__(
        self,
        connection: GatheringConnection,
        *,
        on_answers: Callable[["ConfirmChannel", list[Entry], Answer], None],
        on_close: Callable[["ConfirmChannel", list[Entry], Exception], None],
    ) -> None:
        """`on_close` receives the messages without an outcome, unless `retire` closed the channel."""
        self._connection, self._on_answers, self._on_close = connection, on_answers, on_close
        #: When the channel was requested, on the monotonic clock; None once it is open.
        self.opening_since: float | None = time.monotonic()
        self.is_retired = False
        self._queued: list[Entry] = []
        self._in_flight: dict[int, Entry] = {}
        self._returned: Counter[tuple[str | None, str | None, bytes]] = Counter()
        self._last_tag = 0
        self._channel = connection.channel(on_open_callback=self._prepare)
        self._channel.add_on_close_callback(self._note_close)

    def publish(self, entries: Iterable[Entry]) -> None:
        self._queued += entries
        if self.opening_since is None:
            self._send()

    def retire(self) -> None:
        """Close the channel once nothing is in flight; the caller publishes on another one."""
        self.is_retired = True
        if not self._in_flight and not self._queued:
            with suppress(ChannelWrongStateError):
                self._channel.close()

    def drop(self, route: Route) -> list[Entry]:
        """Forget the messages of a route, and return them; a later confirm of one is ignored."""
        dropped = {tag: entry for tag, entry in self._in_flight.items() if route_of(entry[1]) == route}
        for tag in dropped:
            del self._in_flight[tag]
        return [*dropped.values(), *self._take_queued(route)]

    def _take_queued(self, route: Route) -> list[Entry]:
        taken = [entry for entry in self._queued if route_of(entry[1]) == route]
        self._queued = [entry for entry in self._queued if route_of(entry[1]) != route]
        return taken

    def _prepare(self, channel: Channel) -> None:
        self.opening_since = None
        channel.add_on_return_callback(self._note_return)
        channel.confirm_delivery(self._note_confirm)
        self._send()

    def _send(self) -> None:
        entries, self._queued = self._queued, []
        invalid: list[Entry] = []
        foreign: list[Entry] = []
        with self._connection.gathering():
            for batch, row in entries:
                exchange = target_exchange(row.exchange, row.routing_key)
                if exchange is None:
                    foreign.append((batch, row))
                    continue
                try:
                    properties = _properties(row, _begin_span(batch, row))
                    self._channel.basic_publish(
                        exchange, row.routing_key, row.body, properties, mandatory=is_mandatory(row)
                    )
                except ChannelWrongStateError:
                    raise
                except Exception:
                    # pika encodes the whole message before it sends any of it.
                    invalid.append((batch, row))
                else:
                    self._last_tag += 1
                    self._in_flight[self._last_tag] = batch, row
        self._answer(invalid, Answer.INVALID)
        self._answer(foreign, Answer.FOREIGN)

    def _note_close(self, _: Channel, error: Exception) -> None:
        entries = [*self._in_flight.values(), *self._queued]
        self._in_flight, self._queued = {}, []
        self._on_close(self, entries, error)

    def _note_return(self, _: Channel, method: Basic.Return, properties: BasicProperties, body: bytes) -> None:
        """Record a message for which no queue is bound; the broker returns it before it confirms it."""
        self._returned[properties.message_id, method.routing_key, body] += 1

    def _note_confirm(self, frame: Method[Basic.Ack | Basic.Nack]) -> None:
        tag = frame.method.delivery_tag
        # The tags in flight are in ascending order.
        tags = list(takewhile(lambda known: known <= tag, self._in_flight)) if frame.method.multiple else [tag]
        entries = [self._in_flight.pop(each) for each in tags if each in self._in_flight]
        if isinstance(frame.method, Basic.Nack):
            self._answer(entries, Answer.NACKED)
        elif self._returned:
            accepted: list[Entry] = []
            returned: list[Entry] = []
            for entry in entries:
                (returned if self._take_return(entry[1]) else accepted).append(entry)
            self._answer(accepted, Answer.ACCEPTED)
            self._answer(returned, Answer.RETURNED)
        else:
            self._answer(entries, Answer.ACCEPTED)
        if self.is_retired:
            self.retire()

    def _take_return(self, row: sa.Row[Any]) -> bool:
        """Remove one return of this row from those noted; return whether there was one."""
        message = row.message_id, row.routing_key, row.body
        if message not in self._returned:
            return False
        # Counted, because a reminder may be in flight twice.
        self._returned -= Counter([message])
        return True

    def _answer(self, entries: Sequence[Entry], answer: Answer) -> None:
        if entries:
            self._on_answers(self, list(entries), answer)


def _begin_span(batch: Batch, row: sa.Row[Any]) -> Carrier | None:
    """The trace context for the headers of a row: of the span that begins here, or else its own, if it has one."""
    if row.traceparent is None:
        return None
    own = {name: value for name in TRACE if (value := getattr(row, name))}
    if not tracing.is_on():
        return own
    span = batch.spans[row.id] = tracing.published(row.type, row.message_id, own, row.created_at)
    return tracing.carrier_of(span)


def _properties(row: sa.Row[Any], trace: Carrier | None) -> BasicProperties:
    """The AMQP properties of an outbox row; a dead letter keeps its own, and its headers contain the reason."""
    properties = BasicProperties(
        type=row.type,
        message_id=row.message_id,
        correlation_id=None if row.order_id is None else str(row.order_id),
        timestamp=int(row.created_at.timestamp()),
        delivery_mode=DeliveryMode.Persistent,
    )
    if row.properties:
        own = json.loads(row.properties)
        own["headers"] = {name: decoded(value) for name, value in own.get("headers", {}).items()}
        for name in own.keys() - {"delivery_mode"}:
            if own[name] is not None:
                setattr(properties, name, own[name])
    else:
        properties.app_id, properties.content_type, properties.headers = APP_ID, CONTENT_TYPE, trace
    return properties
