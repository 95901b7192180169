"""Builders of what tests work with: orders, messages, replies and their events, requests, outbox rows.

Every value has a default, so that a test names only what matters to it. An order is for two of dish 1 and one of
dish 2; a request is the one that the original API specification shows, for one of each.
"""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from order_service.contract import topology
from order_service.contract.envelope import Delivery, Reply
from order_service.contract.outgoing import Outgoing
from order_service.domain.messages import (
    Item,
    MenuRejected,
    MenuReserved,
    Message,
    PaymentCompleted,
    PaymentFailed,
    PaymentRefunded,
    StockReleased,
)
from order_service.domain.order import RELEASE, Compensation, Order
from order_service.domain.saga import Decision, Policy, decide
from order_service.handlers import Placement

NOW = datetime(2025, 3, 1, 12, 0, tzinfo=UTC)
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
NASI_AYAM = Item(1, "Nasi Ayam Bakar", Decimal(18000), 14)
KWETIAU = Item(2, "Kwetiau Goreng", Decimal(20000), 6)
ES_TEH = Item(3, "Es Teh", Decimal(5000), 40)
#: The two ordered dishes, for nothing.
FREE = tuple(replace(dish, price=Decimal(0)) for dish in (NASI_AYAM, KWETIAU))
#: The total price of `new_order()` and of `order_request()`.
TOTAL, REQUEST_TOTAL = Decimal(56000), Decimal(38000)


def policy(
    *, reply_seconds: float = 30, reminders: int = 3, pay_seconds: float = 900, lifetime_seconds: float = 24 * 3600
) -> Policy:
    return Policy(
        menu_reply=timedelta(seconds=reply_seconds),
        menu_reminders=reminders,
        payment=timedelta(seconds=pay_seconds),
        lifetime=timedelta(seconds=lifetime_seconds),
        compensation_pause=timedelta(seconds=30),
        compensation_attempts=10,
    )


def new_order(*, expected_total: Decimal | None = None) -> Order:
    """An order as `place_order` records it: the menu's deadline armed, nothing else known."""
    return Order(
        id=7,
        key=UUID("6f9619ff-8b86-4d11-b42d-00c04fc964ff"),
        user_id=3,
        menu_ids=(1, 2, 1),
        created_at=NOW,
        expected_total=expected_total,
        due_at=NOW + policy().menu_reply,
        reminders_left=3,
    )


def apply(order: Order, *messages: Message) -> list[Decision]:
    return [decide(order, message, policy=policy(), now=NOW) for message in messages]


def order_after(*messages: Message, expected_total: Decimal | None = None) -> Order:
    """A new order to which these messages were applied, in this sequence."""
    order = new_order(expected_total=expected_total)
    apply(order, *messages)
    return order


def order_request(**fields: Any) -> dict[str, Any]:
    """The body of POST /orders that the original API specification shows, with these fields changed or added."""
    return {"user_id": 1, "menu_ids": [1, 2]} | fields


def placement(**fields: Any) -> Placement:
    """A checked request, as the use case takes it."""
    values: dict[str, Any] = {"user_id": 7, "menu_ids": (1, 2), "traceparent": TRACE}
    return Placement(**values | fields)


def menu_reserved(reservation_id: str | None = "R1", *items: Item) -> MenuReserved:
    return MenuReserved(items or (NASI_AYAM, KWETIAU), reservation_id)


def menu_rejected(reason: str = "out_of_stock", menu_id: int = 2) -> MenuRejected:
    return MenuRejected(reason, menu_id)


def payment_completed(payment_id: str = "P1", amount: Decimal | int = TOTAL) -> PaymentCompleted:
    return PaymentCompleted(payment_id, Decimal(amount))


def payment_failed(reason: str = "card declined") -> PaymentFailed:
    return PaymentFailed(reason)


def confirmation(request: Compensation) -> StockReleased | PaymentRefunded:
    """The sibling's confirmation of a release or a refund."""
    return StockReleased(request.id) if request.type == RELEASE else PaymentRefunded(request.id)


def compensations(*decisions: Decision) -> list[Compensation]:
    return [effect for decision in decisions for effect in decision.effects if isinstance(effect, Compensation)]


def summary(decision: Decision) -> str:
    """A decision in one line: `state: effects -> outcome`, compensations with their subject and amount."""
    effects = [_compensation(effect) if isinstance(effect, Compensation) else effect for effect in decision.effects]
    outcome = f" -> {decision.outcome}" if decision.outcome else ""
    return f"{decision.after}: {', '.join(effects) or 'nothing'}{outcome}"


def _compensation(request: Compensation) -> str:
    return f"release {request.subject}" if request.type == RELEASE else f"refund {request.subject} {request.amount}"


MESSAGE_IDS = {
    "MenuReserved": "menu-1",
    "MenuRejected": "menu-1",
    "StockReleased": "released-1",
    "PaymentCompleted": "pay-1",
    "PaymentRefunded": "refunded-1",
}


def reply(order_id: int, message: Message, *, id: str | None = None) -> Reply:
    """A message as a consumer hands it to the use case; without an id, each type of message has one fixed id."""
    type_name = type(message).__name__
    delivery = Delivery(topology.MENU.name, "", b"")
    return Reply(id or MESSAGE_IDS.get(type_name, type_name), order_id, type_name, message, delivery)


def event(reply: Reply, **attributes: Any) -> bytes:
    """The CloudEvent in which a sibling sends this reply, with these attributes changed or added."""
    envelope = {"specversion": "1.0", "id": reply.message_id, "source": "/sibling", "type": reply.type}
    return json.dumps(envelope | {"data": event_data(reply)} | attributes).encode()


def event_data(reply: Reply) -> dict[str, Any]:
    """The `data` of that event."""
    return {"order_id": reply.order_id} | _message_data(reply.message)


def _message_data(message: Message) -> dict[str, Any]:
    match message:
        case MenuReserved(items, reservation_id):
            entries = [{"id": i.id, "name": i.name, "price": float(i.price), "stock": i.stock} for i in items]
            return {"items": entries, "reservation_id": reservation_id}
        case MenuRejected(reason, menu_id):
            return {"reason": reason, "menu_id": menu_id}
        case PaymentCompleted(payment_id, amount):
            return {"payment_id": payment_id, "amount": float(amount)}
        case PaymentFailed(reason):
            return {"payment_id": "P1", "reason": reason}
        case StockReleased(release_id):
            return {"release_id": release_id}
        case PaymentRefunded(refund_id):
            return {"refund_id": refund_id}
    return {}


def outgoing(count: int, *, routing_key: str = "order.created", type: str = "OrderCreated") -> list[Outgoing]:
    """Messages to publish that belong to no order."""
    return [
        Outgoing(None, type, f"message-{number}", topology.EXCHANGE, routing_key, b'{"number":%d}' % number)
        for number in range(count)
    ]
