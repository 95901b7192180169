"""Build the messages to publish, from effects of the domain and from rejected messages.

An event can be rebuilt from its order, under the same id; one with a deadline only while that deadline is armed.
"""

from collections.abc import Mapping
from datetime import datetime
from hashlib import sha256
from typing import Any, NamedTuple
from uuid import UUID, uuid5

from order_service.contract import envelope, events
from order_service.contract.dead_letters import (
    DEAD_LETTERED_AT,
    NOT_KEPT,
    OF_REJECTION,
    ORIGIN_ROUTING_KEY,
    storable_properties,
)
from order_service.contract.envelope import Rejection, storable
from order_service.contract.headers import copied
from order_service.contract.topology import BY_NAME, DEAD_LETTER_EXCHANGE, EXCHANGE
from order_service.domain.order import RELEASE, Announcement, Compensation, Effect, Order
from order_service.domain.saga import Policy, expires_at

#: The namespace of the ids of MessageRejected.
_REJECTED = UUID("8f1c3f0e-7d0b-4c57-9d53-5a0f0b7d2c11")


#: The columns that are also headers.
TRACE = ("traceparent", "tracestate")


class Outgoing(NamedTuple):
    """A message to publish, with the outbox's columns as fields; only dead letters set their `properties`."""

    order_id: int | None
    type: str | None
    message_id: str | None
    exchange: str
    routing_key: str
    body: bytes
    traceparent: str | None = None
    tracestate: str | None = None
    properties: Mapping[str, Any] | None = None


def event_id(order: Order, effect: Effect) -> str:
    """The id under which this effect is published, the same each time."""
    return effect.id if isinstance(effect, Compensation) else order.event_id(effect.value)


def trace_of(order: Order) -> dict[str, str]:
    """The trace context of an order, as headers."""
    return {name: value for name in TRACE if (value := getattr(order, name))}


def event(
    order: Order,
    effect: Effect,
    *,
    sequence: int,
    policy: Policy,
    now: datetime,
    trace: Mapping[str, str] | None = None,
) -> Outgoing:
    """Build the event of an effect, with the order's trace context unless another one is given."""
    id, data = event_id(order, effect), event_data(order, effect, policy)
    parent, state = order.traceparent, order.tracestate
    if trace:
        parent, state = trace.get("traceparent"), trace.get("tracestate")
    body = envelope.wrap(
        data, event_id=id, order_id=order.id, sequence=sequence, at=now, trace=parent, tracestate=state
    )
    return Outgoing(order.id, type(data).__name__, id, EXCHANGE, data.routing_key, body, parent, state)


def event_data(order: Order, effect: Effect, policy: Policy) -> events.EventData:
    if isinstance(effect, Compensation):
        return _compensation_data(order, effect)
    ids = {"order_id": order.id, "user_id": order.user_id}
    match effect:
        case Announcement.ORDER_CREATED:
            reply_by, menu_ids, lines = expires_at(order, policy=policy), list(order.menu_ids), _lines(order)
            return events.OrderCreated(
                **ids, menu_ids=menu_ids, lines=lines, created_at=order.created_at, reply_by=reply_by
            )
        case Announcement.PAYMENT_REQUESTED:
            return events.PaymentRequested(**ids, amount=order.total_price, pay_by=expires_at(order, policy=policy))
        case Announcement.ORDER_PAID:
            payment_id = order.payments[0].id
            return events.OrderPaid(**ids, total_price=order.total_price, payment_id=payment_id, paid_at=order.paid_at)
        case Announcement.ORDER_FAILED:
            return events.OrderFailed(**ids, reason=order.reason, detail=order.detail)
        case Announcement.ORDER_CANCELLED:
            return events.OrderCancelled(**ids)


def _compensation_data(order: Order, requested: Compensation) -> events.EventData:
    about = {"order_id": order.id, "reason": requested.reason}
    if requested.type == RELEASE:
        return events.StockReleaseRequested(
            **about, release_id=requested.id, reservation_id=requested.subject, lines=_lines(order)
        )
    return events.RefundRequested(
        **about, refund_id=requested.id, payment_id=requested.subject, amount=requested.amount
    )


def _lines(order: Order) -> list[events.Line]:
    return [events.Line(menu_id=menu_id, quantity=quantity) for menu_id, quantity in order.lines.items()]


def dead_letter(rejection: Rejection, now: datetime) -> Outgoing:
    """The rejected message, addressed to its queue's dead-letter queue, with the reason in its headers.

    It keeps its headers and its properties, NOT_KEPT as headers. Its body is unchanged, unless it is oversized: then
    the headers contain its size and hash.
    """
    delivery = rejection.delivery
    properties = {name: value for name, value in delivery.properties.items() if name not in NOT_KEPT}
    headers, left_out = copied(properties.pop("headers", {}))
    headers = {name: value for name, value in headers.items() if name not in OF_REJECTION} | {
        "x-error": rejection.code,
        "x-error-detail": str(rejection)[:1000],
        DEAD_LETTERED_AT: envelope.utc_text(now),
        "x-origin-queue": delivery.queue,
        ORIGIN_ROUTING_KEY: storable(delivery.routing_key) or "",
    }
    headers |= {
        f"x-original-{name}": storable(delivery.properties.get(name)) for name in NOT_KEPT & delivery.properties.keys()
    }
    if left_out:
        headers["x-headers-left-out"] = ", ".join(left_out)[:1000]
    if rejection.order_id is not None:
        headers["x-order-id"] = str(rejection.order_id)[:100]
    if delivery.oversized:
        headers |= {"x-body-bytes": delivery.oversized.body_bytes, "x-body-sha256": delivery.oversized.sha256}
    kept = storable_properties(properties)
    return Outgoing(
        _possible_order_id(rejection),
        kept.pop("type", None) or rejection.type,
        kept.pop("message_id", None) or rejection.message_id,
        exchange=DEAD_LETTER_EXCHANGE,
        routing_key=BY_NAME[delivery.queue].dead_letters,
        body=delivery.body,
        properties=kept | {"headers": headers},
    )


def message_rejected(rejection: Rejection, now: datetime) -> Outgoing:
    """The MessageRejected event, which reports to the sender why its message was dead-lettered.

    Its id is derived from the message, so that a redelivered message is reported under the same id.
    """
    data = events.MessageRejected(
        message_id=rejection.message_id, type=rejection.type, errors=list(rejection.errors), received_at=now
    )
    delivery, order_id = rejection.delivery, _possible_order_id(rejection)
    content = delivery.oversized.sha256 if delivery.oversized else sha256(delivery.body).hexdigest()
    id = str(uuid5(_REJECTED, " ".join([delivery.queue, rejection.code, rejection.message_id or "", content])))
    body = envelope.wrap(data, event_id=id, order_id=order_id, sequence=None, at=now, trace=None)
    return Outgoing(order_id, type(data).__name__, id, EXCHANGE, data.routing_key, body)


def _possible_order_id(rejection: Rejection) -> int | None:
    """The order id in the message, or None if no order can have it."""
    return rejection.order_id if rejection.order_id and 0 < rejection.order_id <= events.MAX_ID else None
