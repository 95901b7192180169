"""The relay: outbox rows become confirmed messages, and a row is deleted only after its confirm."""

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from pika.channel import Channel
from pika.frame import Method
from pika.spec import Basic

from order_service.contract import outgoing, topology
from order_service.contract.envelope import Delivery, rejection
from order_service.storage import claims
from order_service.storage.database import Database
from order_service.storage.tables import outbox as outbox_table
from publishers import pipeline
from tests import builders
from tests.builders import NOW
from tests.integration import core
from tests.integration.core import Eventually, Log, Start, Wire, completed, reserved

MENU, PAYMENT = topology.MENU, topology.PAYMENT


def is_empty(database: Database) -> bool:
    return core.count(database, outbox_table) == 0


def attempts(database: Database) -> list[int]:
    return [row.attempts for row in core.rows(database, outbox_table)]


def test_trace_context_is_in_the_headers_of_a_message(
    database: Database, wire: Wire, relaying: Start, eventually: Eventually
) -> None:
    wire.listen("order.created")
    core.place(database, traceparent=None)
    core.place(database, traceparent=builders.TRACE, tracestate="vendor=1")

    with relaying():
        eventually(lambda: is_empty(database), "the outbox to be empty")

    headers = [message.properties.headers or {} for message in wire.take()]
    assert [each.get("traceparent") for each in headers] == [None, builders.TRACE]
    assert [each.get("tracestate") for each in headers] == [None, "vendor=1"]


def test_rows_become_messages_in_sequence(
    database: Database, wire: Wire, relaying: Start, eventually: Eventually
) -> None:
    wire.listen("#")
    [order_id] = core.place(database)
    core.apply(database, reserved(order_id), completed(order_id))

    with relaying():
        eventually(lambda: is_empty(database), "the outbox to be empty")

    created, *_ = messages = wire.take()
    assert [message.routing_key for message in messages] == ["order.created", "payment.requested", "order.paid"]
    assert created.properties.message_id == core.get(database, order_id).event_id("OrderCreated")
    assert created.properties.timestamp == int(NOW.timestamp())
    assert [message.event["sequence"] for message in messages] == ["0000000001", "0000000002", "0000000003"]


# Messages without a queue.


def test_unroutable_request_stays_and_is_published_once_a_queue_is_bound(
    database: Database, wire: Wire, relaying: Start, eventually: Eventually
) -> None:
    core.place(database)

    with relaying():
        eventually(lambda: attempts(database) == [1], "the first attempt to be returned")
        [row] = core.rows(database, outbox_table)
        assert row.due_at > row.created_at
        wire.listen("order.created")
        eventually(lambda: is_empty(database), "the next attempt to be routed")

    assert [message.properties.type for message in wire.take()] == ["OrderCreated"]


def test_events_that_need_no_subscriber_are_sent_without_a_queue(
    database: Database, wire: Wire, relaying: Start, eventually: Eventually
) -> None:
    # given
    paid, failed, cancelled = core.place_sent(database, 3)
    core.apply(database, reserved(paid), completed(paid), core.rejected(failed))
    core.cancel(database, cancelled)
    with core.unit_of_work(database) as work:
        work.dead_letter(rejection(Delivery(MENU.name, "x", b"{"), "malformed", "body", "is not JSON"))
    wire.listen("payment.requested")

    # when
    with relaying():
        eventually(lambda: is_empty(database), "the outbox to be empty")

    # then
    assert [message.properties.type for message in wire.take()] == ["PaymentRequested"]
    assert len(wire.take(MENU.dead_letters)) == 1


def test_unroutable_requests_are_deleted_once_their_answer_is_not_needed(
    database: Database, wire: Wire, relaying: Start, eventually: Eventually
) -> None:
    # given
    cancelled, waiting = core.place(database, 2)
    failed, unpaid = core.place(database, 2)
    core.apply(database, reserved(unpaid), core.rejected(failed), completed(failed))
    [refund] = core.compensation_rows(database)

    def left() -> list[tuple[str, int]]:
        return [(row.type, row.order_id) for row in core.rows(database, outbox_table)]

    # when
    with relaying():
        # then
        kept = [("OrderCreated", cancelled), ("OrderCreated", waiting), ("PaymentRequested", unpaid)]
        eventually(lambda: left() == [*kept, ("RefundRequested", failed)], "the needed requests to stay")
        eventually(lambda: min(attempts(database)) >= 1, "all to be returned")
        core.cancel(database, cancelled)
        core.apply(database, core.refunded(failed, refund.id), completed(unpaid))
        eventually(lambda: left() == [("OrderCreated", waiting)], "the other requests to be deleted")


# Dead letters.


def test_dead_letter_reaches_its_queue_unchanged_and_with_its_reason(
    database: Database, wire: Wire, relaying: Start, eventually: Eventually
) -> None:
    # given
    wire.listen("order.message_rejected")
    kept = {"content_type": "text/plain", "app_id": "menu-service", "correlation_id": "abc"}
    body = b'\xff\x00 {"order_id": 5'
    named = {"message_id": "m1", "type": "PaymentCompleted"}
    delivery = Delivery(PAYMENT.name, "payment.completed", body, kept | named)
    with core.unit_of_work(database) as work:
        work.dead_letter(rejection(delivery, "invalid", "data.amount", "must be a JSON number", order_id=5))

    # when
    with relaying():
        eventually(lambda: is_empty(database), "the dead letter to be published")

    # then
    [dead] = wire.take(PAYMENT.dead_letters)
    properties = dead.properties
    assert dead.body == body
    # RabbitMQ before 4.0 adds its count to every first delivery.
    assert {name: value for name, value in (properties.headers or {}).items() if name != "x-delivery-count"} == {
        "x-error": "invalid",
        "x-error-detail": "invalid: data.amount must be a JSON number",
        "x-order-id": "5",
        "x-dead-lettered-at": "2025-03-01T12:00:00Z",
        "x-origin-queue": "order-service.payment",
        "x-origin-routing-key": "payment.completed",
    }
    assert (properties.type, properties.message_id, properties.delivery_mode) == ("PaymentCompleted", "m1", 2)
    assert (properties.content_type, properties.app_id, properties.correlation_id) == tuple(kept.values())
    [rejected] = wire.take()
    assert rejected.event["type"] == "MessageRejected"
    assert rejected.event["data"] == {
        "message_id": "m1",
        "type": "PaymentCompleted",
        "errors": [{"field": "data.amount", "problem": "must be a JSON number"}],
        "received_at": "2025-03-01T12:00:00Z",
    }


@pytest.mark.parametrize("named", ["MenuReserved", "OrderPaid", "OrderCreated", "PaymentRequested", None])
def test_dead_letter_of_any_type_waits_for_its_queue(
    named: str | None, database: Database, wire: Wire, relaying: Start, eventually: Eventually, log: Log
) -> None:
    # given: an order whose own events would not be needed any more
    [cancelled] = core.place_sent(database)
    core.cancel(database, cancelled)
    core.clear_outbox(database)
    delivery = Delivery(MENU.name, "menu.reserved", b"body")
    rejected = rejection(delivery, "unknown_type", "type", "is not accepted", type=named, order_id=cancelled)

    with relaying():
        eventually(lambda: log.count("relaying"), "the relay to start")
        with wire.channel() as channel:
            channel.queue_delete(MENU.dead_letters)
        # when
        core.add_to_outbox(database, [outgoing.dead_letter(rejected, NOW)])
        # then
        eventually(lambda: attempts(database) == [1], "the dead letter to be returned")
        wire.declare()
        eventually(lambda: is_empty(database), "the dead letter to be published")

    assert [dead.body for dead in wire.take(MENU.dead_letters)] == [b"body"]


#: 255 bytes that are not UTF-8 are read as replacement characters, which take more bytes than a short string may have.
LONGEST = (b"\xff" * 255).decode(errors="replace")


@pytest.mark.parametrize("value", [LONGEST, "\0" * 255], ids=["not UTF-8", "NUL"])
def test_dead_letter_with_unusual_properties_does_not_stop_the_relay(
    value: str, database: Database, wire: Wire, relaying: Start, eventually: Eventually
) -> None:
    wire.listen("order.created")
    properties = dict.fromkeys(("content_type", "app_id", "correlation_id", "type", "message_id"), value)
    delivery = Delivery(MENU.name, "menu.reserved", b"{}", properties)
    with core.unit_of_work(database) as work:
        work.dead_letter(rejection(delivery, "invalid", "data.name", "\N{PILE OF POO}" * 300))
    core.place(database)

    with relaying():
        eventually(lambda: is_empty(database), "the dead letter and the event behind it to be published")

    assert len(wire.take(MENU.dead_letters)) == 1
    assert len(wire.take()) == 1


# Confirms.


def test_message_refused_by_a_queue_is_published_again(
    database: Database, wire: Wire, relaying: Start, eventually: Eventually
) -> None:
    wire.listen("order.created", queue="full", **{"x-max-length": 1, "x-overflow": "reject-publish"})
    core.add_to_outbox(database, builders.outgoing(2))

    with relaying():
        eventually(lambda: attempts(database) == [1], "the second message to be refused")
        [first] = wire.take("full")
        eventually(lambda: is_empty(database), "it to be accepted now that there is room")

    [second] = wire.take("full")
    assert {first.properties.message_id, second.properties.message_id} == {"message-0", "message-1"}


def test_queue_that_refuses_everything_does_not_delay_other_events(
    database: Database, wire: Wire, relaying: Start, eventually: Eventually
) -> None:
    # given
    wire.listen("order.created", queue="full", **{"x-max-length": 1, "x-overflow": "reject-publish"})
    wire.listen("order.paid")
    core.add_to_outbox(database, builders.outgoing(41))
    [event] = builders.outgoing(1, routing_key="order.paid", type="OrderPaid")

    slowest = 0.0
    with relaying():
        eventually(lambda: len(attempts(database)) == 40 and min(attempts(database)) > 0, "40 to be refused")
        # when
        for number in range(6):
            start = time.monotonic()
            core.add_to_outbox(database, [event._replace(message_id=f"paid-{number}")])
            eventually(wire.take, "the event for the other queue")
            slowest = max(slowest, time.monotonic() - start)

    # then
    assert slowest < 2


@pytest.fixture
def withhold_confirms(monkeypatch: pytest.MonkeyPatch) -> Callable[..., contextlib.AbstractContextManager[None]]:
    """`with withhold_confirms(*keys):` no confirm of a message with one of these routing keys arrives.

    A quorum queue without a majority confirms nothing either, but needs a cluster.
    """
    publish, enable = Channel.basic_publish, Channel.confirm_delivery

    @contextlib.contextmanager
    def withhold(*withheld: str) -> Any:
        keys: dict[Channel, list[str]] = {}

        def basic_publish(channel: Channel, exchange: str, routing_key: str, *more: Any, **named: Any) -> None:
            keys.setdefault(channel, []).append(routing_key)
            publish(channel, exchange, routing_key, *more, **named)

        def confirm_delivery(channel: Channel, ack_nack_callback: Callable[[Any], None], callback: Any = None) -> None:
            def confirm_others(frame: Any) -> None:
                tag = frame.method.delivery_tag
                for each in range(1 if frame.method.multiple else tag, tag + 1):
                    if keys[channel][each - 1] not in withheld:
                        ack_nack_callback(Method(1, Basic.Ack(each)))

            enable(channel, confirm_others, callback)

        with monkeypatch.context() as patch:
            patch.setattr(Channel, "basic_publish", basic_publish)
            patch.setattr(Channel, "confirm_delivery", confirm_delivery)
            yield

    return withhold


@core.POSTGRESQL_ONLY
def test_event_does_not_wait_for_the_confirm_of_the_one_before(
    database: Database, wire: Wire, relaying: Start, eventually: Eventually, monkeypatch: pytest.MonkeyPatch,
    withhold_confirms: Any,
) -> None:  # fmt: skip
    wire.listen("order.created")
    monkeypatch.setattr(pipeline, "CONFIRM_SECONDS", 3)

    with withhold_confirms("order.created"), relaying():
        for number in (1, 2):
            core.place(database)
            eventually(lambda: len(wire.take()) == 1, f"event {number} to be published")

    # An event without a confirm stays, and is published again; the broker has not refused it.
    assert attempts(database) == [0, 0]
    with relaying():
        eventually(lambda: is_empty(database), "both to be confirmed")
    assert len(wire.take()) == 2


def test_queue_that_confirms_nothing_delays_only_its_own_messages(
    database: Database, wire: Wire, relaying: Start, eventually: Eventually, monkeypatch: pytest.MonkeyPatch,
    withhold_confirms: Any,
) -> None:  # fmt: skip
    wire.listen("order.created")
    wire.listen("payment.requested")
    monkeypatch.setattr(pipeline, "WINDOW", pipeline.FEW)
    core.add_to_outbox(database, builders.outgoing(10 * pipeline.FEW))
    [event] = builders.outgoing(1, routing_key="payment.requested")

    slowest = 0.0
    with withhold_confirms("order.created"), relaying():
        for number in range(20):
            start = time.monotonic()
            core.add_to_outbox(database, [event._replace(message_id=f"payment-{number}")])
            eventually(lambda: core.count(database, outbox_table) == 10 * pipeline.FEW, "the other event to leave")
            slowest = max(slowest, time.monotonic() - start)

    assert slowest < 2
    assert set(attempts(database)) == {0}


def test_routes_that_stop_confirming_one_after_the_other_do_not_end_the_connection(
    database: Database, wire: Wire, relaying: Start, eventually: Eventually, monkeypatch: pytest.MonkeyPatch,
    withhold_confirms: Any, log: Log,
) -> None:  # fmt: skip
    wire.listen("#")
    monkeypatch.setattr(pipeline, "CONFIRM_SECONDS", 1)
    silent = ["payment.requested", "order.created"]

    with withhold_confirms(*silent), relaying():
        for routing_key in silent:
            core.add_to_outbox(database, builders.outgoing(1, routing_key=routing_key))
            eventually(wire.take, "the first message of the route")
            # Another claim replaces the channel that was given up.
            core.add_to_outbox(database, builders.outgoing(1, routing_key="order.paid"))
        eventually(lambda: log.count("message not delivered, retrying") >= 4, "both routes to be given up twice")

    assert log.count("relaying") == 1
    assert not log.errors()


def test_order_can_be_changed_while_its_event_is_in_flight(database: Database) -> None:
    # given
    [order_id] = core.place(database)
    claim = claims.Claim(database, 100)
    done = threading.Event()

    def pass_deadlines() -> None:
        with contextlib.suppress(sa.exc.OperationalError):
            core.pass_deadlines(database)
        done.set()

    # when
    thread = core.Running(pass_deadlines, threading.Event())
    in_time = done.wait(3)
    claim.settle(claims.Outcomes())
    thread.stop()

    # then
    assert in_time, "passing deadlines waits for the confirm, with the order locked"
    due_at = core.get(database, order_id).due_at
    assert due_at is not None
    assert due_at > core.LATER


# Several relays, and the start and end of one.


@core.POSTGRESQL_ONLY
def test_two_relays_at_once_publish_each_row_once(
    database: Database, wire: Wire, relaying: Start, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "WINDOW", 100)
    wire.listen("order.created")
    core.add_to_outbox(database, builders.outgoing(2000))

    with relaying(), relaying():
        eventually(lambda: is_empty(database), "2,000 rows to be published")

    counts = Counter(message.properties.message_id for message in wire.take())
    assert len(counts) == 2000
    assert set(counts.values()) == {1}


def test_rows_are_published_in_order_and_those_in_flight_are_settled_on_stop(
    database: Database, wire: Wire, relaying: Start, eventually: Eventually
) -> None:
    wire.listen("order.created")
    core.add_to_outbox(database, builders.outgoing(1500))

    with relaying() as process:
        eventually(lambda: core.count(database, outbox_table) < 1500, "the first rows to be deleted")
        process.stop()

    published = [message.properties.message_id for message in wire.take()]
    left = [row.message_id for row in core.rows(database, outbox_table)]
    assert [*published, *left] == [f"message-{number}" for number in range(1500)]


# Notifications on PostgreSQL.


@core.POSTGRESQL_ONLY
def test_commit_starts_the_relay_at_once(
    database: Database, wire: Wire, relaying: Start, eventually: Eventually
) -> None:
    wire.listen("order.created")

    with relaying():
        core.place(database)
        eventually(lambda: is_empty(database), "the relay to start")
        waits = []
        for _ in range(7):
            start = time.monotonic()
            core.place(database)
            while not is_empty(database):
                assert time.monotonic() - start < 5
            waits.append(time.monotonic() - start)

    # Polling alone takes 250 ms on average.
    assert sorted(waits)[3] < 0.15, waits
