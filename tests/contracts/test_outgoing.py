"""Outgoing events are byte for byte their golden samples. To change a sample is to change the contract."""

import json
from decimal import Decimal
from pathlib import Path
from uuid import uuid5

import pytest

from order_service.contract import events
from order_service.contract.envelope import wrap
from order_service.contract.outgoing import event_data, event_id
from order_service.domain.messages import Cancel, Message, ReportPaid
from order_service.domain.order import REFUND, RELEASE, Announcement, Compensation, Effect, Order
from tests.builders import NOW, apply, menu_rejected, new_order, policy
from tests.builders import menu_reserved as reserved
from tests.builders import payment_completed as completed

HERE = Path(__file__).parent
CANCEL, OUT_OF_STOCK, POLICY, PUT_PAID = Cancel(), menu_rejected(), policy(), ReportPaid()
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
SHORT = completed("P1", Decimal("55999.5"))


def order_with_effect(event_type: str, *messages: Message) -> tuple[Order, Effect]:
    """The example order after these messages, and its effect of this type."""
    order = new_order()
    order.traceparent = TRACE
    effects = [effect for decision in apply(order, *messages) for effect in decision.effects]
    [found] = [effect for effect in [Announcement.ORDER_CREATED, *effects] if type_of(effect) == event_type]
    return order, found


def type_of(effect: Effect) -> str:
    return effect.type if isinstance(effect, Compensation) else effect.value


def sent(order: Order, effect: Effect) -> bytes:
    data = event_data(order, effect, POLICY)
    return wrap(
        data,
        event_id=event_id(order, effect),
        order_id=order.id,
        sequence=order.version,
        at=NOW,
        trace=order.traceparent,
    )


def rejected() -> bytes:
    data = events.MessageRejected(
        message_id="m-1",
        type="PaymentCompleted",
        errors=[events.FieldError(field="data.amount", problem="must be a JSON number")],
        received_at=NOW,
    )
    id = "0b2f8d3e-3c1c-4f0e-9b57-6f0f7a3f1c11"
    return wrap(data, event_id=id, order_id=7, sequence=None, at=NOW, trace=None)


SENT = {
    "OrderCreated": lambda: sent(*order_with_effect("OrderCreated")),
    "PaymentRequested": lambda: sent(*order_with_effect("PaymentRequested", reserved("R1"))),
    "OrderPaid": lambda: sent(*order_with_effect("OrderPaid", reserved("R1"), completed("P1"))),
    "OrderFailed": lambda: sent(*order_with_effect("OrderFailed", OUT_OF_STOCK)),
    "OrderCancelled": lambda: sent(*order_with_effect("OrderCancelled", CANCEL)),
    RELEASE: lambda: sent(*order_with_effect(RELEASE, reserved("R1"), SHORT)),
    REFUND: lambda: sent(*order_with_effect(REFUND, reserved("R1"), SHORT)),
    "MessageRejected": rejected,
}


def readable(body: bytes) -> str:
    """The same fields in the same order and the same numbers, one to a line."""
    return json.dumps(json.loads(body), indent=2, ensure_ascii=False) + "\n"


def test_every_outgoing_event_has_a_golden_sample() -> None:
    assert SENT.keys() == events.OUTGOING.keys()


@pytest.mark.parametrize("event_type", SENT)
def test_an_outgoing_event_is_its_golden_sample(event_type: str) -> None:
    golden = (HERE / f"{event_type}.json").read_text(encoding="utf-8")

    body = SENT[event_type]()

    assert readable(body) == golden
    assert json.dumps(json.loads(golden), ensure_ascii=False, separators=(",", ":")).encode() == body


@pytest.mark.parametrize("event_type", SENT)
def test_a_repeated_event_is_identical(event_type: str) -> None:
    assert SENT[event_type]() == SENT[event_type]()


def test_no_two_events_share_an_id() -> None:
    ids = {json.loads(build())["id"] for build in SENT.values()}

    assert len(ids) == len(SENT)


def test_an_id_is_the_uuid_of_its_name_within_the_order() -> None:
    order = new_order()

    assert order.event_id("OrderPaid") == str(uuid5(order.key, "OrderPaid"))
    for subject in map(str, range(100)):
        assert order.compensation_id(REFUND, subject) == str(uuid5(order.key, f"{REFUND} {subject}"))


def test_events_of_one_transition_share_their_sequence() -> None:
    release, refund = (json.loads(SENT[name]())["sequence"] for name in (RELEASE, REFUND))

    assert release == refund == 3


def test_a_payment_without_an_id_is_null_on_the_wire() -> None:
    paid = json.loads(sent(*order_with_effect("OrderPaid", reserved("R1"), PUT_PAID)))
    refund = json.loads(sent(*order_with_effect(REFUND, PUT_PAID, CANCEL)))

    assert paid["data"]["payment_id"] is None
    assert (refund["data"]["payment_id"], refund["data"]["amount"]) == (None, None)


def test_a_reservation_without_an_id_is_null_on_the_wire() -> None:
    release = json.loads(sent(*order_with_effect(RELEASE, reserved(None), CANCEL)))

    assert release["data"]["reservation_id"] is None


def test_reply_by_includes_the_remaining_reminders() -> None:
    created = json.loads(SENT["OrderCreated"]())

    assert created["data"]["reply_by"] == "2025-03-01T12:02:00Z"  # 30 s, and three reminders of 30 s each
