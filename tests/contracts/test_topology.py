"""The names on the broker that sibling teams and operators rely on, and the fields of each event."""

import pytest

from order_service.contract import events, topology

ROUTING_KEYS_OUT = {
    "OrderCreated": "order.created",
    "PaymentRequested": "payment.requested",
    "OrderPaid": "order.paid",
    "OrderFailed": "order.failed",
    "OrderCancelled": "order.cancelled",
    "StockReleaseRequested": "menu.release_requested",
    "RefundRequested": "payment.refund_requested",
    "MessageRejected": "order.message_rejected",
}
ROUTING_KEYS_IN = {
    "MenuReserved": "menu.reserved",
    "MenuRejected": "menu.rejected",
    "StockReleased": "menu.released",
    "PaymentCompleted": "payment.completed",
    "PaymentFailed": "payment.failed",
    "PaymentRefunded": "payment.refunded",
}
BINDINGS = {
    "order-service.menu": {"menu.reserved", "menu.rejected", "menu.released"},
    "order-service.payment": {"payment.completed", "payment.failed", "payment.refunded"},
}
#: Dropped if no queue is bound to their routing keys; every other event is retried until one is.
NOT_MANDATORY = {"OrderPaid", "OrderFailed", "OrderCancelled", "MessageRejected"}
ACCEPTED = {
    "order-service.menu": {"MenuReserved", "MenuRejected", "StockReleased"},
    "order-service.payment": {"PaymentCompleted", "PaymentFailed", "PaymentRefunded"},
    "order-service.menu-http": {"OrderCreated", "StockReleaseRequested"},
}
#: The fields of `data`, in order; those in brackets are optional.
DATA = {
    "OrderCreated": "order_id user_id menu_ids lines created_at reply_by",
    "PaymentRequested": "order_id user_id amount pay_by",
    "OrderPaid": "order_id user_id total_price payment_id paid_at",
    "OrderFailed": "order_id user_id reason detail",
    "OrderCancelled": "order_id user_id",
    "StockReleaseRequested": "order_id release_id reservation_id lines reason",
    "RefundRequested": "order_id refund_id payment_id amount reason",
    "MessageRejected": "message_id type errors received_at",
    "MenuReserved": "order_id [reservation_id] items",
    "MenuRejected": "order_id reason menu_id",
    "StockReleased": "order_id release_id",
    "PaymentCompleted": "order_id payment_id amount",
    "PaymentFailed": "order_id [payment_id] reason",
    "PaymentRefunded": "order_id refund_id",
}


def test_there_is_one_exchange() -> None:
    assert topology.EXCHANGE == "restaurant.events"


def test_every_event_has_its_routing_key() -> None:
    assert {name: model.routing_key for name, model in events.OUTGOING.items()} == ROUTING_KEYS_OUT
    assert {name: model.routing_key for name, model in events.INCOMING.items()} == ROUTING_KEYS_IN


def test_the_events_that_need_no_subscriber_are_not_mandatory() -> None:
    assert {name for name, model in events.OUTGOING.items() if not model.mandatory} == NOT_MANDATORY


def test_the_queues_are_bound_to_the_incoming_events() -> None:
    assert {queue.name: set(queue.routing_keys) for queue in topology.QUEUES} == BINDINGS


def test_each_queue_accepts_the_events_it_is_bound_to() -> None:
    assert {queue.name: queue.accepts for queue in (*topology.QUEUES, topology.MENU_HTTP)} == ACCEPTED


def test_every_queue_has_a_dead_letter_queue() -> None:
    assert [queue.dead_letters for queue in topology.QUEUES] == ["order-service.menu.dlq", "order-service.payment.dlq"]


@pytest.mark.parametrize("queue", topology.QUEUES, ids=lambda queue: queue.name)
def test_a_queue_is_a_quorum_queue_with_dead_lettering(queue: topology.Queue) -> None:
    arguments = queue.arguments

    assert arguments["x-queue-type"] == "quorum"
    assert (arguments["x-dead-letter-exchange"], arguments["x-dead-letter-routing-key"]) == ("", queue.dead_letters)


@pytest.mark.parametrize("event_type", DATA)
def test_the_data_of_an_event_has_these_fields(event_type: str) -> None:
    fields = events.EVENTS[event_type].model_fields

    listed = " ".join(name if field.is_required() else f"[{name}]" for name, field in fields.items())

    assert listed == DATA[event_type]
