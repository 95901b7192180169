"""The relay: outbox rows become confirmed messages, each row gone only after its confirm, whatever happens."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from pika.adapters.utils.io_services_utils import _AsyncTransportBase
from pika.frame import Method
from pika.spec import Basic
from structlog.testing import CapturingLogger

from order_service import handlers
from order_service.contract import envelope, topology
from order_service.contract.envelope import Delivery
from order_service.contract.outgoing import Outgoing, dead_letter
from order_service.domain.messages import Cancel
from order_service.process import utc_now
from order_service.storage import outbox
from order_service.storage.database import Database
from order_service.storage.tables import outbox as outbox_table
from publishers import pipeline
from publishers.relay import Relay
from tests import builders
from tests.integration import core
from tests.integration.core import NOW, Eventually, Wire, completed, reserved

EVERYTHING = "#"


@pytest.fixture
def relaying(amqp_url: str, database: Database) -> Callable[..., contextlib.AbstractContextManager[core.Running]]:
    """`with relaying():` relays for the length of the block."""
    return lambda **more: core.running(
        lambda stop: Relay(core.settings(amqp_url, database.url, **more), database, stop)
    )


@pytest.fixture(autouse=True)
def log(monkeypatch: pytest.MonkeyPatch) -> CapturingLogger:
    """What the relay says."""
    log = core.recorded("publishers.pipeline", monkeypatch)
    monkeypatch.setattr("publishers.relay.log", log)
    monkeypatch.setattr("order_service.process.log", log)
    return log


def add(database: Database, messages: list[Outgoing]) -> None:
    core.add_to_outbox(database, messages)


def add_rejected(database: Database, rejected: envelope.Rejection) -> None:
    with core.unit_of_work(database) as work:
        work.dead_letter(rejected)


def is_empty(database: Database) -> bool:
    return core.count(database, outbox_table) == 0


def attempts(database: Database) -> list[int]:
    return [row.attempts for row in core.rows(database, outbox_table)]


def test_rows_become_messages_that_can_be_read_in_the_console(
    database: Database, wire: Wire, relaying: Any, eventually: Eventually
) -> None:
    wire.listen(EVERYTHING)
    [order_id] = core.place(database)
    core.apply(database, reserved(order_id), completed(order_id))

    with relaying():
        eventually(lambda: is_empty(database), "the outbox to be empty")

    created, requested, paid = wire.take()
    assert [created.routing_key, requested.routing_key, paid.routing_key] == [
        "order.created",
        "payment.requested",
        "order.paid",
    ]
    properties = created.properties
    assert properties.type == "OrderCreated"
    assert properties.message_id == created.event["id"] == core.get(database, order_id).event_id("OrderCreated")
    assert properties.correlation_id == created.event["correlationid"] == str(order_id)
    assert properties.app_id == "order-service"
    assert properties.timestamp == int(NOW.timestamp())
    assert properties.content_type == "application/cloudevents+json"
    assert properties.delivery_mode == 2
    assert properties.headers == {"traceparent": core.TRACE}
    assert (created.event["sequence"], requested.event["sequence"], paid.event["sequence"]) == (1, 2, 3)


def test_unroutable_event_that_needs_an_answer_stays_and_leaves_once_a_queue_is_bound(
    database: Database, wire: Wire, relaying: Any, eventually: Eventually
) -> None:
    core.place(database)

    with relaying():
        eventually(lambda: attempts(database) == [1], "the first attempt to be returned")
        [row] = core.rows(database, outbox_table)
        assert row.due_at > row.created_at
        wire.listen("order.created")
        eventually(lambda: is_empty(database), "the next attempt to be routed")

    assert [message.properties.type for message in wire.take()] == ["OrderCreated"]


def test_pauses_between_attempts_grow_up_to_a_limit() -> None:
    pauses = [outbox.ROW_BACKOFF.delay(failures) for failures in (1, 2, 3, 6, 7, 51)]
    assert pauses == [1, 2, 4, 32, 60, 60]


def test_unroutable_news_counts_as_sent(database: Database, wire: Wire, relaying: Any, eventually: Eventually) -> None:
    ids = core.place_sent(database, 3)
    core.apply(database, reserved(ids[0]), completed(ids[0]), core.rejected(ids[1]))
    with core.unit_of_work(database) as work:
        handlers.change_order(work, ids[2], Cancel())
    add_rejected(
        database, envelope.rejection(Delivery(topology.MENU.name, "x", b"{"), "malformed", "body", "is not JSON")
    )
    wire.listen("payment.requested")

    with relaying():
        eventually(lambda: is_empty(database), "news nobody listens to, to be gone")

    assert [message.properties.type for message in wire.take()] == ["PaymentRequested"]
    assert len(wire.take(topology.MENU.dead_letters)) == 1


def test_unroutable_event_of_an_order_that_no_longer_needs_it_goes_away(
    database: Database, wire: Wire, relaying: Any, eventually: Eventually
) -> None:
    cancelled, waiting = core.place(database, 2)

    with relaying():
        eventually(lambda: min(attempts(database)) > 0, "both to be returned")
        with core.unit_of_work(database) as work:
            handlers.change_order(work, cancelled, Cancel())
        eventually(
            lambda: [row.order_id for row in core.rows(database, outbox_table)] == [waiting],
            "the cancelled order's event to go",
        )


def test_unroutable_requests_stay_until_nothing_waits_for_their_answer(
    database: Database, wire: Wire, relaying: Any, eventually: Eventually
) -> None:
    failed, unpaid = core.place_sent(database, 2)
    core.apply(database, reserved(unpaid), core.rejected(failed), completed(failed))
    [refund] = core.given_back(database)

    with relaying():
        kept = ["PaymentRequested", "RefundRequested"]
        eventually(lambda: [row.type for row in core.rows(database, outbox_table)] == kept, "the requests to stay")
        eventually(lambda: min(attempts(database)) >= 1, "both to be returned")
        core.apply(database, core.refunded(failed, refund.id), completed(unpaid))
        eventually(lambda: is_empty(database), "the answered requests to go")


def test_dead_letter_goes_to_its_queue_as_it_came_with_its_reason(
    database: Database, wire: Wire, relaying: Any, eventually: Eventually
) -> None:
    wire.listen("order.message_rejected")
    kept = {"content_type": "text/plain", "app_id": "menu-service", "correlation_id": "abc"}
    body = b'\xff\x00 {"order_id": 5'
    delivery = Delivery(
        topology.PAYMENT.name, "payment.completed", body, kept | {"message_id": "m1", "type": "PaymentCompleted"}
    )
    add_rejected(database, envelope.rejection(delivery, "invalid", "data.amount", "must be a JSON number", order_id=5))

    with relaying():
        eventually(lambda: is_empty(database), "the dead letter to leave")

    [dead] = wire.take(topology.PAYMENT.dead_letters)
    properties = dead.properties
    assert dead.body == body
    # RabbitMQ before 4.0 adds its count to every first delivery.
    assert {name: value for name, value in properties.headers.items() if name != "x-delivery-count"} == {
        "x-error": "invalid",
        "x-error-detail": "invalid: data.amount must be a JSON number",
        "x-order-id": "5",
        "x-origin-queue": "order-service.payment",
    }
    assert (properties.type, properties.message_id, properties.delivery_mode) == ("PaymentCompleted", "m1", 2)
    assert (properties.content_type, properties.app_id, properties.correlation_id) == tuple(kept.values())
    [told] = wire.take()
    assert told.event["type"] == "MessageRejected"
    assert told.event["data"] == {
        "message_id": "m1",
        "type": "PaymentCompleted",
        "errors": [{"field": "data.amount", "problem": "must be a JSON number"}],
        "received_at": "2025-01-02T03:04:05.678900Z",
    }


@pytest.mark.parametrize("named", ["MenuReserved", "OrderPaid", "OrderCreated", "PaymentRequested", None])
def test_dead_letter_without_its_queue_waits_for_it_whatever_it_calls_itself(
    named: str | None, database: Database, wire: Wire, relaying: Any, eventually: Eventually, log: CapturingLogger
) -> None:
    [cancelled] = core.place_sent(database)
    with core.unit_of_work(database) as work:
        handlers.change_order(work, cancelled, Cancel())
    core.clear_outbox(database)
    delivery = Delivery(topology.MENU.name, "menu.reserved", b"as it came")
    rejected = envelope.rejection(delivery, "unknown_type", "type", "is not taken", type=named, order_id=cancelled)

    with relaying():
        eventually(lambda: core.said(log, "relaying"), "the relay to be at work")
        with wire.channel() as channel:
            channel.queue_delete(topology.MENU.dead_letters)
        add(database, [dead_letter(rejected)])
        eventually(lambda: attempts(database) == [1], "the dead letter to be returned")
        wire.declare()
        eventually(lambda: is_empty(database), "it to leave")

    assert [dead.body for dead in wire.take(topology.MENU.dead_letters)] == [b"as it came"]


def test_dead_letter_with_properties_at_their_limits_does_not_stop_the_relay(
    database: Database, wire: Wire, relaying: Any, eventually: Eventually
) -> None:
    wire.listen("order.created")
    # What 255 bytes that are no UTF-8 have become when they were read: more bytes than AMQP's short strings take.
    longest = b"\xff" * 255
    properties = dict.fromkeys(("content_type", "app_id", "correlation_id"), longest.decode(errors="replace"))
    delivery = Delivery(topology.MENU.name, "menu.reserved", b"{}", properties)
    rejected = envelope.rejection(delivery, "invalid", "data.name", "\N{PILE OF POO}" * 300)
    add_rejected(database, rejected)
    core.place(database)

    with relaying():
        eventually(lambda: is_empty(database), "the dead letter and the event behind it to leave")

    assert len(wire.take(topology.MENU.dead_letters)) == 1
    assert len(wire.take()) == 1


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_two_relays_at_once_publish_each_row_once(
    database: Database, wire: Wire, relaying: Any, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "WINDOW", 100)
    wire.listen("order.created")
    add(database, builders.outgoing(2000))

    with relaying(), relaying():
        eventually(lambda: is_empty(database), "2,000 rows to leave")

    taken = Counter(message.properties.message_id for message in wire.take())
    assert len(taken) == 2000
    assert set(taken.values()) == {1}


def test_one_relay_publishes_in_order(database: Database, wire: Wire, relaying: Any, eventually: Eventually) -> None:
    wire.listen("order.created")
    add(database, builders.outgoing(600))

    with relaying():
        eventually(lambda: is_empty(database), "600 rows to leave")

    assert [message.event["number"] for message in wire.take()] == list(range(600))


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_on_sqlite_a_second_relay_stands_by_until_the_first_process_ends(
    end: signal.Signals, amqp_url: str, database: Database, wire: Wire, eventually: Eventually
) -> None:
    wire.listen("order.created")
    environment = os.environ | {"DATABASE_URL": database.url, "RABBITMQ_URL": amqp_url}
    with subprocess.Popen([sys.executable, "-m", "publishers"], env=environment, stderr=subprocess.DEVNULL) as first:
        try:
            core.place(database, now=utc_now())
            eventually(lambda: is_empty(database), "the first relay to work")
            with core.opened(database.url) as another:
                assert not another.acquire_role("relay")
                with core.running(lambda stop: Relay(core.settings(amqp_url, another.url), another, stop)) as second:
                    first.send_signal(end)
                    assert first.wait(timeout=10) in (0, -end)
                    core.place(database, now=utc_now())
                    eventually(lambda: is_empty(database), "the second relay to take over")
                    assert second.is_alive
        finally:
            first.kill()
    assert len(wire.take()) == 2


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_on_sqlite_a_relay_that_stands_by_stops_when_told(amqp_url: str, database: Database, wire: Wire) -> None:
    assert database.acquire_role("relay")
    with (
        core.opened(database.url) as another,
        core.running(lambda stop: Relay(core.settings(amqp_url, another.url), another, stop)) as second,
    ):
        assert second.is_alive


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_everything_arrives_when_connections_are_cut(
    database: Database, wire: Wire, management: Any, relaying: Any, eventually: Eventually, log: CapturingLogger,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(pipeline, "WINDOW", 20)
    wire.listen("order.created")

    with relaying():
        eventually(lambda: core.said(log, "relaying"), "the relay to be at work")
        add(database, builders.outgoing(150))
        eventually(management.close_connections, "the relay's connection to be cut")
        add(database, builders.outgoing(150))
        eventually(lambda: is_empty(database), "300 rows to leave")

    assert core.said(log, "relaying") == 2
    taken = Counter(message.properties.message_id for message in wire.take())
    assert len(taken) == 150
    assert min(taken.values()) >= 2


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_second_outage_is_waited_out_like_the_first(
    database: Database, wire: Wire, management: Any, relaying: Any, eventually: Eventually, log: CapturingLogger
) -> None:
    wire.listen("order.created")

    with relaying():
        for outage in (1, 2):
            core.place(database)
            eventually(lambda: is_empty(database), "the relay to work")
            eventually(management.close_connections, "the relay's connection to be listed")
            eventually(
                lambda outage=outage: core.said(log, "the broker is unreachable, retrying") == outage,
                f"outage {outage} to be reported",
            )


def test_message_that_a_queue_refuses_is_tried_again(
    database: Database, wire: Wire, relaying: Any, eventually: Eventually
) -> None:
    wire.listen("order.created", queue="full", **{"x-max-length": 1, "x-overflow": "reject-publish"})
    add(database, builders.outgoing(2))

    with relaying():
        eventually(lambda: attempts(database) == [1], "the second message to be refused")
        [first] = wire.take("full")
        eventually(lambda: is_empty(database), "it to be taken now that there is room")

    [second] = wire.take("full")
    assert {first.properties.message_id, second.properties.message_id} == {"message-0", "message-1"}


def test_events_for_others_leave_while_one_sibling_refuses_everything(
    database: Database, wire: Wire, relaying: Any, eventually: Eventually
) -> None:
    wire.listen("order.created", queue="full", **{"x-max-length": 1, "x-overflow": "reject-publish"})
    wire.listen("order.paid")
    add(database, builders.outgoing(41))

    slowest = 0.0
    with relaying():
        eventually(lambda: len(attempts(database)) == 40 and min(attempts(database)) > 0, "40 to be refused")
        for number in range(6):
            [row] = builders.outgoing(1, routing_key="order.paid", type="OrderPaid")
            started = time.monotonic()
            add(database, [replace(row, message_id=f"paid-{number}")])
            eventually(lambda number=number: wire.take(), "news for another sibling")
            slowest = max(slowest, time.monotonic() - started)

    assert slowest < 2


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_an_event_does_not_wait_for_the_confirms_of_the_one_before(
    database: Database, wire: Wire, relaying: Any, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    wire.listen("order.created")
    monkeypatch.setattr(pipeline, "CONFIRM_SECONDS", 3)

    with monkeypatch.context() as patch:
        patch.setattr(pipeline.Pipeline, "_note_confirm", lambda *_: None)
        with relaying():
            for number in range(1, 3):
                core.place(database)
                eventually(lambda number=number: len(wire.take()) == 1, f"order {number} to be told")

    # then: what nobody has confirmed is still there, and goes out again
    assert attempts(database) == [1, 1]
    with relaying():
        eventually(lambda: is_empty(database), "both to be confirmed")
    assert len(wire.take()) == 2


def test_a_queue_that_confirms_nothing_holds_up_only_what_is_for_it(
    database: Database, wire: Wire, relaying: Any, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a quorum queue without a majority does."""
    wire.listen("order.created")
    wire.listen("payment.requested")
    monkeypatch.setattr(pipeline, "CONFIRM_SECONDS", 0.5)
    monkeypatch.setattr(pipeline, "WINDOW", pipeline.FEW)
    confirm = pipeline.Pipeline._note_confirm

    def confirm_others(session: pipeline.Pipeline, frame: Method[Basic.Ack | Basic.Nack]) -> None:
        tag = frame.method.delivery_tag
        tags = [each for each in session._in_flight if each <= tag] if frame.method.multiple else [tag]
        for each in tags:
            if session._in_flight[each][1].routing_key != "order.created":
                confirm(session, Method(1, Basic.Ack(each)))

    monkeypatch.setattr(pipeline.Pipeline, "_note_confirm", confirm_others)
    add(database, builders.outgoing(pipeline.FEW))
    add(database, builders.outgoing(1, routing_key="payment.requested"))

    with relaying():
        eventually(lambda: core.count(database, outbox_table) == pipeline.FEW, "the other event to leave")

    assert min(attempts(database)) >= 1


def test_a_batch_of_events_leaves_in_few_system_calls(
    database: Database, wire: Wire, relaying: Any, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    wire.listen("order.created")
    add(database, builders.outgoing(200))
    sends: list[int] = []
    send = _AsyncTransportBase._sigint_safe_send
    counted = staticmethod(lambda socket, data: sends.append(len(data)) or send(socket, data))
    monkeypatch.setattr(_AsyncTransportBase, "_sigint_safe_send", counted)

    with relaying():
        eventually(lambda: is_empty(database), "all to be confirmed")

    assert len(sends) < 50, sends
    assert len(wire.take()) == 200


def test_stop_settles_what_is_in_flight(database: Database, wire: Wire, relaying: Any, eventually: Eventually) -> None:
    wire.listen("order.created")
    add(database, builders.outgoing(1500))

    with relaying() as running:
        eventually(lambda: core.count(database, outbox_table) < 1500, "the relay to be in the middle of it")
        running.stop()

    taken = [message.properties.message_id for message in wire.take()]
    left = [row.message_id for row in core.rows(database, outbox_table)]
    assert sorted(taken + left) == sorted(f"message-{number}" for number in range(1500))


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_on_postgresql_a_commit_wakes_the_relay(
    database: Database, wire: Wire, relaying: Any, eventually: Eventually
) -> None:
    wire.listen("order.created")

    with relaying():
        core.place(database)
        eventually(lambda: is_empty(database), "the relay to be at work")
        waits = []
        for _ in range(7):
            started = time.monotonic()
            core.place(database)
            while not is_empty(database):
                assert time.monotonic() - started < 5
            waits.append(time.monotonic() - started)

    # Looking by itself it would take 250 ms on average.
    assert sorted(waits)[3] < 0.15, waits


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_on_postgresql_the_relay_comes_back_when_its_connections_are_ended(
    database: Database, wire: Wire, relaying: Any, eventually: Eventually
) -> None:
    wire.listen("order.created")

    with relaying():
        for _ in range(2):
            core.place(database)
            eventually(lambda: is_empty(database), "the relay to work")
            core.end_connections(database.url)
        core.place(database)
        eventually(lambda: is_empty(database), "the relay to work again")

    assert len(wire.take()) == 3


def test_relay_waits_while_the_database_is_away(
    database: Database, wire: Wire, relaying: Any, eventually: Eventually, log: CapturingLogger, monkeypatch: Any
) -> None:
    wire.listen("order.created")
    core.be_impatient(monkeypatch)
    with core.opened(database.url) as patient:
        core.place(patient)

        with core.database_away(database.url), relaying():
            complaint = "sent rows could not be deleted, they are published again"
            if not database.is_sqlite:
                complaint = "the outbox cannot be read, retrying"
            eventually(lambda: core.said(log, complaint), "the relay to notice")
        with relaying():
            eventually(lambda: is_empty(patient), "the relay to go on")

    assert {message.properties.type for message in wire.take()} == {"OrderCreated"}


def test_relay_refuses_a_broker_without_topology_naming_the_command(
    database: Database, amqp_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    undeclared = Relay(core.settings(amqp_url, database.url), database, threading.Event())

    with pytest.raises(SystemExit) as refused:
        undeclared.run()

    assert refused.value.code == 2
    assert "python -m order_service topology" in capsys.readouterr().err


def test_relay_starts_before_the_broker_and_stops_when_told(database: Database) -> None:
    nowhere = core.settings("amqp://guest:guest@127.0.0.1:1/", database.url)
    core.place(database)

    with core.running(lambda stop: Relay(nowhere, database, stop)) as running:
        assert running.is_alive

    assert attempts(database) == [0]


def test_order_can_be_changed_while_its_event_is_in_flight(database: Database) -> None:
    [order_id] = core.place(database)
    claim = outbox.Claim(database, 100, NOW)
    done = threading.Event()

    def pass_deadlines() -> None:
        with core.unit_of_work(database, now=core.LATER) as work, contextlib.suppress(sa.exc.OperationalError):
            handlers.pass_deadlines(work, limit=10)
        done.set()

    thread = threading.Thread(target=pass_deadlines)
    thread.start()
    in_time = done.wait(3)
    claim.settle(sent=[], failed=[], now=NOW)
    thread.join(10)

    assert in_time, "deadlines hold the order's lock for as long as the broker takes to confirm"
    assert core.get(database, order_id).due_at > core.LATER


def notified(connection: psycopg.Connection[Any]) -> bool:
    return bool(list(connection.notifies(timeout=5, stop_after=1)))


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_listener_hears_of_every_moments_commits(database: Database) -> None:
    with contextlib.closing(database.listen()) as listener:
        core.place(database)
        assert notified(listener)
        core.place(database)
        assert notified(listener)
