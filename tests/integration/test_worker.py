"""The consumer: replies become transitions, messages that can never be applied become dead letters, each once."""

import json
import struct
import threading
from datetime import UTC, datetime
from decimal import Decimal
from hashlib import sha256
from typing import Any

import pika
import pytest
import sqlalchemy as sa

from consumers import worker
from order_service.contract import topology
from order_service.contract.envelope import KEPT_BODY_BYTES, MAX_BODY_BYTES
from order_service.storage.database import Database
from order_service.storage.tables import order_history, orders, outbox
from tests import builders
from tests.integration import core
from tests.integration.core import Eventually, Start, Wire, completed, reserved

PAYMENT = topology.PAYMENT


def dead_letters(database: Database) -> list[dict[str, Any]]:
    """The dead letters in the outbox, with their headers."""
    return [
        {"queue": row.routing_key, "body": row.body, "type": row.type, "id": row.message_id}
        | json.loads(row.properties)["headers"]
        for row in core.rows(database, outbox, outbox.c.exchange == topology.DEAD_LETTER_EXCHANGE)
    ]


def test_dead_letter_names_its_order_and_message_rejected_lists_every_error(
    database: Database, wire: Wire, consuming: Start, eventually: Eventually
) -> None:
    body = builders.event(completed(77), data={"order_id": 77, "payment_id": "", "amount": "much"})
    wire.send_raw("payment.completed", body, message_id="amqp-id", correlation_id="77", app_id="payment-service")

    with consuming():
        eventually(lambda: dead_letters(database), "the dead letter")

    [letter] = dead_letters(database)
    assert (letter["type"], letter["id"], letter["x-order-id"]) == ("PaymentCompleted", "amqp-id", "77")
    assert (letter["x-error"], letter["x-origin-queue"]) == ("invalid", PAYMENT.name)
    assert (letter["queue"], letter["body"]) == (PAYMENT.dead_letters, body)
    [row] = core.rows(database, outbox, outbox.c.exchange == topology.DEAD_LETTER_EXCHANGE)
    assert json.loads(row.properties)["app_id"] == "payment-service"
    [rejection] = core.unsent_events(database, "MessageRejected")
    assert (rejection["correlationid"], rejection["data"]["message_id"]) == ("77", "pay-1")
    assert {error["field"] for error in rejection["data"]["errors"]} == {"data.payment_id", "data.amount"}
    assert datetime.fromisoformat(rejection["data"]["received_at"])


#: A value of every AMQP type, as pika reads it.
HEADERS: dict[str, Any] = {
    "text": "é\0\N{PILE OF POO}", "bytes": b"\xff\0", "yes": True, "no": None, "small": -1, "large": 2**62, "fraction": 1.5,
    "decimal": Decimal("-12.5"), "time": datetime(2025, 3, 1, 12, tzinfo=UTC), "list": [1, None, [b"x", {"a": "b"}]],
    "table": {"bytes": "no bytes", "table": {"time": datetime(1970, 1, 1, tzinfo=UTC)}, "empty": {}},
    "x-death": [{"count": 2, "queue": "q", "time": datetime(2025, 3, 1, tzinfo=UTC), "routing-keys": ["a", "b"]}],
    "": "no name",
}  # fmt: skip
PROPERTIES: dict[str, Any] = {
    "content_type": "text/plain", "content_encoding": "gzip", "priority": 7, "correlation_id": "c", "reply_to": "answers",
    "message_id": "m-1", "timestamp": 2**63, "type": "PaymentDone", "app_id": "payment-service", "cluster_id": "x",
}  # fmt: skip


def test_dead_letter_keeps_its_properties_and_headers(
    database: Database, amqp_url: str, wire: Wire, consuming: Start, relaying: Start, eventually: Eventually
) -> None:
    # given
    wire.listen("order.copied", queue="copies")
    user = pika.URLParameters(amqp_url).credentials.username
    routing = {"CC": ["order.copied"], "x-error": "an older one"}
    sent = PROPERTIES | {"user_id": user, "expiration": "600000"}
    wire.send_raw("payment.completed", b"body", headers=HEADERS | routing, **sent)
    assert len(wire.take("copies")) == 1

    # when
    with consuming(), relaying():
        [letter] = eventually(lambda: wire.take(PAYMENT.dead_letters), "the dead letter")

    # then
    headers = letter.properties.headers or {}
    assert {name: getattr(letter.properties, name) for name in PROPERTIES} == PROPERTIES
    assert {name: headers.get(name) for name in HEADERS} == HEADERS
    assert (headers["x-error"], headers["x-origin-queue"]) == ("malformed", PAYMENT.name)
    assert headers["x-origin-routing-key"] == "payment.completed"
    assert (headers["x-original-cc"], headers["x-original-user_id"]) == (["order.copied"], user)
    assert (letter.properties.expiration, headers["x-original-expiration"]) == (None, "600000")
    assert wire.take("copies") == []


@core.SQLITE_ONLY
@pytest.mark.usefixtures("raw_headers")
def test_headers_that_do_not_fit_are_left_out_and_named(
    database: Database, wire: Wire, consuming: Start, relaying: Start, eventually: Eventually
) -> None:
    # given: pika writes a number of one byte in five, and the whole must fit into a frame again
    numbers = core.RawHeader(b"A" + struct.pack(">I", 100_000) + b"b\1" * 50_000)
    deep = b"V"
    for _ in range(100):
        deep = b"A" + struct.pack(">I", len(deep)) + deep
    headers = {"x-numbers": numbers, "x-kept": "kept", "x-deep": core.RawHeader(deep), "x-last": 1}
    wire.send_raw("payment.completed", b"body", headers=headers)
    wire.send_raw("payment.completed", b"body", headers={"x-controls": "\1" * 120_000})

    # when
    with consuming(), relaying():
        letters: list[core.Message] = []
        eventually(lambda: letters.extend(wire.take(PAYMENT.dead_letters)) or len(letters) == 2, "the dead letters")

    # then
    kept = [letter.properties.headers or {} for letter in letters]
    assert [each["x-headers-left-out"] for each in kept] == ["x-numbers, x-deep", "x-controls"]
    assert (kept[0]["x-kept"], kept[0]["x-last"]) == ("kept", 1)
    assert kept[0].keys().isdisjoint({"x-numbers", "x-deep"})


def test_message_in_binary_mode_is_applied_by_the_type_in_its_headers(
    database: Database, wire: Wire, consuming: Start, eventually: Eventually
) -> None:
    [order_id] = core.place_sent(database)
    data = json.dumps(builders.event_data(reserved(order_id))).encode()
    for event_type in ("com.example.StockCounted", "MenuReserved"):
        headers = {"cloudEvents:specversion": "1.0", "cloudEvents:type": event_type, "cloudEvents:id": event_type}
        wire.send_raw("menu.reserved", data, content_type="application/json", headers=headers)

    with consuming():
        eventually(lambda: core.states(database, [order_id]) == {"awaiting_payment"}, "the order to be reserved")

    [letter] = dead_letters(database)
    assert (letter["x-error"], letter["type"]) == ("unknown_type", "com.example.StockCounted")
    assert core.history_of(database, order_id)[-1] == ("MenuReserved", "MenuReserved")


def test_redelivered_message_is_reported_under_the_same_id(
    database: Database, wire: Wire, consuming: Start, eventually: Eventually
) -> None:
    for body in (b"first", b"second", b"first"):
        wire.send_raw("menu.reserved", body)

    with consuming():
        eventually(lambda: len(dead_letters(database)) == 3, "the dead letters")

    first, second, again = [event["id"] for event in core.unsent_events(database, "MessageRejected")]
    assert first == again != second


def test_oversized_message_is_dead_lettered_with_its_beginning_and_its_hash(
    database: Database, wire: Wire, consuming: Start, eventually: Eventually
) -> None:
    body = b'{"order_id": 1}'.ljust(10 * MAX_BODY_BYTES)
    wire.send_raw("menu.reserved", body, message_id="large-1")

    with consuming():
        eventually(lambda: dead_letters(database), "the dead letter")

    [letter] = dead_letters(database)
    assert (letter["x-error"], letter["id"], letter["body"]) == ("oversized", "large-1", body[:KEPT_BODY_BYTES])
    assert (letter["x-body-bytes"], letter["x-body-sha256"]) == (len(body), sha256(body).hexdigest())
    assert f"at most {MAX_BODY_BYTES} are read: publish a smaller one" in letter["x-error-detail"]
    [rejection] = core.unsent_events(database, "MessageRejected")
    assert rejection["data"]["errors"][0]["field"] == "body"


@core.SQLITE_ONLY
def test_delivery_count_set_by_the_sender_does_not_split_the_batch(
    database: Database, wire: Wire, consuming: Start, eventually: Eventually
) -> None:
    ids = core.place_sent(database, 40)
    with wire.channel() as channel:
        for order_id in ids:
            properties = pika.BasicProperties(delivery_mode=2, headers={"x-delivery-count": 50})
            channel.basic_publish(topology.EXCHANGE, "menu.reserved", builders.event(reserved(order_id)), properties)

    with consuming():
        eventually(lambda: core.states(database, ids) == {"awaiting_payment"}, "all to be applied")

    # Each transaction has one moment, which all of its history entries carry.
    assert len({row.at for row in core.rows(database, order_history)}) < len(ids) / 2


def test_message_that_fails_its_batch_is_dead_lettered_alone(
    database: Database, wire: Wire, consuming: Start, eventually: Eventually
) -> None:
    # given: an order that this program cannot read
    ids = core.place_sent(database, 20)
    unreadable, others = ids[7], [*ids[:7], *ids[8:]]
    with database.writing() as connection:
        connection.execute(sa.update(orders).where(orders.c.id == unreadable).values(ledger="{"))
    wire.send(*[reserved(id) for id in ids])

    # when
    with consuming():
        eventually(lambda: core.states(database, others) == {"awaiting_payment"}, "the others to be applied")
        eventually(lambda: dead_letters(database), "the dead letter")

    # then
    [letter] = dead_letters(database)
    assert (letter["x-error"], letter["body"]) == ("internal_error", builders.event(reserved(unreadable)))
    assert "UnreadableOrder" in letter["x-error-detail"]
    assert wire.depth() == 0


def test_two_consumers_at_once_apply_each_reply_once(
    database: Database, wire: Wire, consuming: Start, eventually: Eventually
) -> None:
    ids = core.place_sent(database, 250)
    wire.send(*[reserved(id) for id in ids], *[completed(id) for id in ids])
    wire.send(*[completed(id, "P2", id="pay-2") for id in ids], *[reserved(id) for id in ids])

    with consuming(batch_size=50), consuming(batch_size=50):
        eventually(lambda: core.count(database, order_history) == 3 * len(ids), "750 replies")
        eventually(lambda: core.states(database, ids) == {"paid"}, "orders to be paid")

    assert wire.depth() == 0
    assert dead_letters(database) == []
    refunds = core.compensation_rows(database)
    assert len(refunds) == len(ids) == len({row.order_id for row in refunds})
    assert len(core.unsent_events(database, "OrderPaid")) == len(ids)


def test_stop_finishes_the_current_batch_and_leaves_the_rest(
    database: Database, wire: Wire, consuming: Start, eventually: Eventually
) -> None:
    ids = core.place_sent(database, 240)
    wire.send(*[reserved(id) for id in ids])

    with consuming(batch_size=10) as process:
        eventually(lambda: core.count(database, order_history) > 0, "the first batch")
        process.stop()

    applied = core.count(database, order_history)
    eventually(lambda: wire.depth() == len(ids) - applied, "exactly the messages not applied to be in the queue")


def test_message_redelivered_often_is_still_applied(
    database: Database, amqp_url: str, wire: Wire, consuming: Start, eventually: Eventually
) -> None:
    # given
    ids = core.place_sent(database, 3)
    wire.send(reserved(ids[0]))
    for _ in range(5):
        eventually(lambda: wire.depth() == 1, "the message to be back")
        connection = pika.BlockingConnection(pika.URLParameters(amqp_url))
        assert connection.channel().basic_get(topology.MENU.name)[0] is not None
        connection.close()
    wire.send(*[reserved(id) for id in ids[1:]])

    # when
    with consuming():
        eventually(lambda: core.states(database, ids) == {"awaiting_payment"}, "all to be applied")

    # then
    assert dead_letters(database) == []


class Killed(BaseException):
    """The process has ended."""


def kill_when_locking(database: Database, order_id: int) -> None:
    """End the process that uses this database when it locks the order; it then writes nothing more."""
    dead = False

    @sa.event.listens_for(database.engine, "before_cursor_execute")
    def kill(connection: Any, cursor: Any, statement: str, given: Any, *_: Any) -> None:
        nonlocal dead
        ids = next(iter(given.values()), ()) if isinstance(given, dict) else given
        if dead or ("FROM orders" in statement and order_id in ids):
            dead = True
            raise Killed


def test_message_that_repeatedly_ends_the_process_is_dead_lettered_alone(
    database: Database, amqp_url: str, wire: Wire, eventually: Eventually
) -> None:
    # given
    ids = core.place_sent(database, 3)
    wire.send(*[reserved(id) for id in ids])

    def run_until_killed() -> bool:
        """Return whether a process was killed; otherwise it has dead-lettered the message."""
        with core.opened(database.url) as used:
            kill_when_locking(used, ids[0])
            process = core.started(core.worker(core.settings(amqp_url, database.url), used))
            eventually(lambda: dead_letters(database) or not process.is_alive, "the process or its message to end")
            if process.is_alive:
                process.stop()
                return False
            assert isinstance(process.error, Killed)
            return True

    # when
    for _ in range(20):
        if not run_until_killed():
            break

    # then
    assert [letter["body"] for letter in dead_letters(database)] == [builders.event(reserved(ids[0]))]
    assert "ended the consumer" in dead_letters(database)[0]["x-error-detail"]
    assert core.states(database, ids[1:]) == {"awaiting_payment"}


def test_consumer_that_fails_in_its_first_batch_does_not_reset_the_delay(
    database: Database, amqp_url: str, wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given: neither the batch nor its dead letters can be processed
    [order_id] = core.place_sent(database)
    wire.send(reserved(order_id))
    working: list[str] = []

    def fail(*_: object) -> None:
        raise ZeroDivisionError

    def attempt_once(attempt: Any, *_: object, **__: object) -> None:
        attempt(lambda: working.append("working"))

    for name, replacement in [("process_batch", fail), ("dead_letter_failed", fail), ("supervise", attempt_once)]:
        monkeypatch.setattr(worker, name, replacement)

    # when
    with pytest.raises(ZeroDivisionError):
        core.worker(core.settings(amqp_url, database.url), database)(threading.Event()).run()

    # then
    assert working == []
