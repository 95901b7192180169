"""The names on the broker that sibling teams and operators rely on."""

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
#: Dropped if no queue is bound to their routing keys; every other event is retried until one is.
NOT_MANDATORY = {"OrderPaid", "OrderFailed", "OrderCancelled", "MessageRejected"}
ACCEPTED = {
    "order-service.menu": {"MenuReserved", "MenuRejected", "StockReleased"},
    "order-service.payment": {"PaymentCompleted", "PaymentFailed", "PaymentRefunded"},
    "order-service.menu-http": {"OrderCreated", "StockReleaseRequested"},
}


EXCHANGES = {
    "restaurant.events": "topic", "menu-service.events": "topic", "payment-service.events": "topic",
    "order-service.dead-letters": "direct",
}  # fmt: skip


def test_each_publisher_has_an_exchange_and_dead_letters_have_one() -> None:
    assert topology.EXCHANGES == EXCHANGES


def test_an_event_is_published_on_the_exchange_of_its_publisher() -> None:
    own = {name: f"{model.routing_key.split('.')[0]}-service.events" for name, model in events.INCOMING.items()}

    assert {name: topology.published_on(name) for name in events.INCOMING} == own
    assert {topology.published_on(name) for name in events.OUTGOING} == {"restaurant.events"}


def test_a_queue_takes_the_events_of_its_sibling_from_both_exchanges() -> None:
    assert {(topology.MENU.name, exchange, key) for exchange, key in topology.MENU.bindings} == {
        *(("order-service.menu", exchange, key)
          for exchange in ("restaurant.events", "menu-service.events")
          for key in ("menu.reserved", "menu.rejected", "menu.released")),
        ("order-service.menu", "order-service.dead-letters", "order-service.menu"),
    }  # fmt: skip


@pytest.mark.parametrize(("exchange", "routing_key", "target"), [
    ("restaurant.events", "order.created", "restaurant.events"),
    ("order-service.dead-letters", "order-service.menu.dlq", "order-service.dead-letters"),
    ("", "order-service.menu.dlq", "order-service.dead-letters"),
    ("", "order-service.menu", None),
    ("", "menu-service.orders", None),
    ("menu-service.events", "menu.reserved", None),
    ("amq.topic", "order.created", None),
])  # fmt: skip
def test_the_outbox_may_publish_to_the_exchanges_of_this_service(
    exchange: str, routing_key: str, target: str | None
) -> None:
    assert topology.target_exchange(exchange, routing_key) == target


def test_every_event_has_its_routing_key() -> None:
    assert {name: model.routing_key for name, model in events.OUTGOING.items()} == ROUTING_KEYS_OUT
    assert {name: model.routing_key for name, model in events.INCOMING.items()} == ROUTING_KEYS_IN


def test_the_events_that_need_no_subscriber_are_not_mandatory() -> None:
    assert {name for name, model in events.OUTGOING.items() if not model.mandatory} == NOT_MANDATORY


def test_each_queue_accepts_the_events_it_is_bound_to() -> None:
    queues = (*topology.QUEUES, topology.MENU_HTTP)

    assert {queue.name: queue.accepts for queue in queues} == ACCEPTED
    assert all(len(queue.routing_keys) == len(queue.accepts) for queue in queues)


def test_every_queue_has_a_dead_letter_queue() -> None:
    assert [queue.dead_letters for queue in topology.QUEUES] == ["order-service.menu.dlq", "order-service.payment.dlq"]


@pytest.mark.parametrize("queue", topology.QUEUES, ids=lambda queue: queue.name)
def test_a_queue_is_a_quorum_queue_with_dead_lettering(queue: topology.Queue) -> None:
    arguments = queue.arguments

    assert arguments["x-queue-type"] == "quorum"
    dead_letters = arguments["x-dead-letter-exchange"], arguments["x-dead-letter-routing-key"]
    assert dead_letters == ("order-service.dead-letters", queue.dead_letters)


@pytest.mark.parametrize("queue", [*topology.QUEUES, topology.MENU_HTTP], ids=lambda queue: queue.name)
def test_a_full_queue_refuses_further_messages_instead_of_dropping_old_ones(queue: topology.Queue) -> None:
    assert (queue.arguments["x-max-length-bytes"], queue.arguments["x-overflow"]) == (1024**3, "reject-publish")


@pytest.mark.parametrize("queue", [*topology.QUEUES, topology.MENU_HTTP], ids=lambda queue: queue.name)
def test_no_queue_uses_the_dead_letter_worker_of_the_broker(queue: topology.Queue) -> None:
    """RabbitMQ 3.10 answers 541 for all such queues if one is deleted while its worker starts."""
    assert "x-dead-letter-strategy" not in queue.arguments
