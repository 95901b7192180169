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
from order_service.domain.order import REFUND, RELEASE, Announcement, Compensation, Effect
from tests.builders import NOW, TRACE, apply, menu_rejected, menu_reserved, new_order, payment_completed, policy

HERE = Path(__file__).parent
R1, P1, P1_SHORT = menu_reserved("R1"), payment_completed("P1"), payment_completed("P1", Decimal("55999.5"))


def sent(event_type: str, *messages: Message) -> bytes:
    """The event of this type that the example order has sent after these messages."""
    order = new_order()
    order.traceparent = TRACE
    effects = [effect for decision in apply(order, *messages) for effect in decision.effects]
    [effect] = [effect for effect in [Announcement.ORDER_CREATED, *effects] if type_of(effect) == event_type]
    return wrap(
        event_data(order, effect, policy()),
        event_id=event_id(order, effect),
        order_id=order.id,
        sequence=order.version,
        at=NOW,
        trace=order.traceparent,
    )


def type_of(effect: Effect) -> str:
    return effect.type if isinstance(effect, Compensation) else effect.value


def rejected() -> bytes:
    data = events.MessageRejected(
        message_id="m-1",
        type="PaymentCompleted",
        errors=[events.FieldError(field="data.amount", problem="must be a JSON number")],
        received_at=NOW,
    )
    id = "0b2f8d3e-3c1c-4f0e-9b57-6f0f7a3f1c11"
    return wrap(data, event_id=id, order_id=7, sequence=None, at=NOW, trace=None)


#: The body of each event. The release and the refund are requested at once, and share their sequence.
SENT = {
    "OrderCreated": sent("OrderCreated"),
    "PaymentRequested": sent("PaymentRequested", R1),
    "OrderPaid": sent("OrderPaid", R1, P1),
    "OrderFailed": sent("OrderFailed", menu_rejected()),
    "OrderCancelled": sent("OrderCancelled", Cancel()),
    RELEASE: sent(RELEASE, R1, P1_SHORT),
    REFUND: sent(REFUND, R1, P1_SHORT),
    "MessageRejected": rejected(),
}


def test_every_outgoing_event_has_a_golden_sample() -> None:
    assert SENT.keys() == events.OUTGOING.keys()


@pytest.mark.parametrize("event_type", SENT)
def test_an_outgoing_event_is_its_golden_sample(event_type: str) -> None:
    golden = (HERE / f"{event_type}.json").read_text(encoding="utf-8")

    body = SENT[event_type]

    # First one field to a line, which shows a difference.
    assert json.dumps(json.loads(body), indent=2, ensure_ascii=False) + "\n" == golden
    assert json.dumps(json.loads(golden), ensure_ascii=False, separators=(",", ":")).encode() == body


def test_an_id_is_the_uuid_of_its_name_within_the_order() -> None:
    order = new_order()

    assert order.event_id("OrderPaid") == str(uuid5(order.key, "OrderPaid"))
    for subject in map(str, range(100)):
        assert order.compensation_id(REFUND, subject) == str(uuid5(order.key, f"{REFUND} {subject}"))


@pytest.mark.parametrize(
    ("body", "names"),
    [
        (sent("OrderPaid", R1, ReportPaid()), ["payment_id"]),
        (sent(REFUND, ReportPaid(), Cancel()), ["payment_id", "amount"]),
        (sent(RELEASE, menu_reserved(None), Cancel()), ["reservation_id"]),
    ],
    ids=["OrderPaid", REFUND, RELEASE],
)
def test_a_payment_or_reservation_without_an_id_is_null_on_the_wire(body: bytes, names: list[str]) -> None:
    data = json.loads(body)["data"]

    assert [data[name] for name in names] == [None] * len(names)
