"""The consumer: replies become transitions, bad messages dead letters, and trouble of others is waited out."""

import contextlib
import json
import threading
from collections import Counter
from collections.abc import Callable
from datetime import datetime
from typing import Any

import pika
import pytest
import sqlalchemy as sa
from structlog.testing import CapturingLogger

from consumers import __main__ as consumers_main
from consumers.worker import Worker
from order_service import handlers, history, order, order_rows, schema, topology
from order_service.db import Database
from order_service.decisions import decide
from order_service.envelope import MAX_BODY_BYTES
from order_service.order import State
from order_service.tables import order_history, outbox
from sandbox.servers.broker import Broker
from sandbox.servers.management import Management
from tests.integration import core
from tests.integration.core import Eventually, Wire, completed, rejected, reserved

MENU, PAYMENT = topology.MENU, topology.PAYMENT


@pytest.fixture
def consuming(amqp_url: str, database: Database) -> Callable[..., contextlib.AbstractContextManager[core.Running]]:
    """`with consuming():` consumes for the length of the block."""
    return lambda **more: core.running(core.worker(core.settings(amqp_url, database.url, **more), database))


@pytest.fixture(autouse=True)
def log(monkeypatch: pytest.MonkeyPatch) -> CapturingLogger:
    """What the consumer says."""
    return core.recorded("consumers.worker", monkeypatch)


def dead(database: Database) -> list[dict[str, Any]]:
    """The dead letters in the outbox, with what they will carry."""
    found = []
    for row in core.rows(database, outbox, outbox.c.exchange == ""):
        headers = json.loads(row.properties)["headers"]
        found.append({"queue": row.routing_key, "body": row.body, "type": row.type, "id": row.message_id} | headers)
    return found


def remaining(wire: Wire) -> int:
    """Messages in our queues that were never acked, once no consumer holds them any more."""
    with wire.channel() as channel:
        queues = [channel.queue_declare(queue.name, passive=True) for queue in topology.QUEUES]
        return sum(queue.method.message_count for queue in queues)


def test_replies_move_orders(database: Database, wire: Wire, consuming: Any, eventually: Eventually) -> None:
    ids = core.place_sent(database, 30)
    paid, unserved, unpaid = ids[:10], ids[10:20], ids[20:]
    wire.send(*[reserved(id) for id in paid + unpaid], *[rejected(id) for id in unserved])
    wire.send(*[completed(id) for id in paid])

    with consuming():
        eventually(lambda: core.states(database, paid) == {"paid"}, "orders to be paid")
        eventually(lambda: core.states(database, unserved) == {"failed"}, "orders to fail")
        eventually(lambda: core.states(database, unpaid) == {"awaiting_payment"}, "orders to wait for their payment")

    assert remaining(wire) == 0
    assert dead(database) == []


def enveloped(order_id: int, **attributes: Any) -> bytes:
    return core.event(reserved(order_id), **attributes)


def bare(**content: Any) -> bytes:
    return json.dumps(content).encode()


#: Name -> routing key, body (9 stands for an order that is there), AMQP properties, the reason it is dead for.
HOPELESS: dict[str, tuple[str, bytes, dict[str, Any], str]] = {
    "empty": ("menu.reserved", b"", {}, "malformed"),
    "not JSON": ("menu.reserved", b"{", {}, "malformed"),
    "not UTF-8": ("menu.reserved", b'{"order_id": 9, "reason": "\xff"}', {}, "malformed"),
    "an array": ("menu.reserved", b"[]", {}, "malformed"),
    "nested deeply": ("menu.reserved", b"[" * 100_000, {}, "malformed"),
    "a number of thousands of digits": ("menu.reserved", b'{"order_id": ' + b"9" * 5000 + b"}", {}, "malformed"),
    "oversized": ("menu.reserved", b" " * (MAX_BODY_BYTES + 1), {}, "oversized"),
    "unknown type": ("menu.reserved", enveloped(9, type="MenuEaten"), {}, "unknown_type"),
    "one of our own": ("menu.reserved", enveloped(9, type="OrderPaid"), {}, "unknown_type"),
    "type of the other queue": ("menu.reserved", core.event(completed(9)), {}, "unknown_type"),
    "newer schema": (
        "menu.reserved",
        enveloped(9, dataschema="urn:restaurant:schema:MenuReserved:2"),
        {},
        "newer_version",
    ),
    "newer CloudEvents": ("menu.reserved", enveloped(9, specversion="2.0"), {}, "newer_version"),
    "no data": ("menu.reserved", bare(specversion="1.0", type="MenuReserved", id="1"), {}, "invalid"),
    "price as text": (
        "menu.reserved",
        bare(order_id=9, items=[{"id": 1, "name": "Soto", "price": "18000", "stock": 1}]),
        {},
        "invalid",
    ),
    "items not as ordered": (
        "menu.reserved",
        bare(order_id=9, items=[{"id": 1, "name": "Soto", "price": 18000, "stock": 1}]),
        {},
        "invalid",
    ),
    "NUL in a text": ("payment.failed", bare(order_id=9, reason="a\0b"), {}, "invalid"),
    "half a surrogate": ("payment.failed", b'{"order_id": 9, "reason": "\\ud800"}', {}, "invalid"),
    "order id too large": ("payment.failed", bare(order_id=2**70, reason="x"), {}, "invalid"),
    "order id negative": ("payment.failed", bare(order_id=-1, reason="x"), {}, "invalid"),
    "order id as text": ("payment.failed", bare(order_id="9", reason="x"), {}, "invalid"),
    "unknown order": ("payment.failed", bare(order_id=2**31 - 1, reason="x"), {}, "unknown_order"),
    "release nobody asked for": ("menu.released", bare(order_id=9, release_id="mine"), {}, "invalid"),
    "id that is no text": ("menu.reserved", enveloped(9, id=7), {}, "invalid"),
    "id too long": ("menu.reserved", enveloped(9, id="é" * 200), {}, "invalid"),
    "properties that are not UTF-8": (
        "menu.reserved",
        b"{",
        {
            "type": b"\xff" * 255,
            "message_id": b"\xff\x00" * 127,
            "correlation_id": b"\xff" * 255,
            "app_id": b"\xff" * 255,
            "content_type": b"\xff" * 255,
        },
        "malformed",
    ),
    "properties with NUL": (
        "menu.reserved",
        b"{",
        dict.fromkeys(("type", "message_id", "correlation_id", "app_id", "content_type"), "a\0b"),
        "malformed",
    ),
    "only NUL in the message id": ("payment.failed", bare(order_id=9, reason="x"), {"message_id": "\0"}, "invalid"),
}


def test_hopeless_messages_are_dead_lettered_at_once_with_their_reason_while_the_rest_goes_on(
    database: Database, wire: Wire, consuming: Any, eventually: Eventually
) -> None:
    ids = core.place_sent(database, 9)
    wire.send(reserved(ids[0]))
    for routing_key, body, properties, _ in HOPELESS.values():
        wire.send_raw(routing_key, body, **properties)
    wire.send(completed(ids[0]))

    with consuming():
        eventually(lambda: len(dead(database)) == len(HOPELESS), "the dead letters")
        eventually(lambda: core.states(database, ids[:1]) == {"paid"}, "the good messages to be applied")

    by_body = {(letter["body"], letter["x-error"]): letter for letter in dead(database)}
    for name, (routing_key, body, _, error) in HOPELESS.items():
        assert (body, error) in by_body, name
        queue = MENU if routing_key in MENU.routing_keys else PAYMENT
        letter = by_body[body, error]
        assert (letter["queue"], letter["x-origin-queue"]) == (queue.dead_letters, queue.name), name
        assert letter["x-error-detail"].startswith(f"{error}: "), name
    assert len(core.leaving(database, "MessageRejected")) == len(HOPELESS)
    assert remaining(wire) == 0
    assert core.states(database, ids[1:]) == {"awaiting_menu"}


def test_dead_letter_names_the_order_and_the_sender_hears_of_every_error(
    database: Database, wire: Wire, consuming: Any, eventually: Eventually
) -> None:
    body = core.event(completed(77), data={"order_id": 77, "payment_id": "", "amount": "much"})
    wire.send_raw("payment.completed", body, message_id="amqp-id", correlation_id="77", app_id="payment-service")

    with consuming():
        eventually(lambda: dead(database), "the dead letter")

    [letter] = dead(database)
    assert (letter["type"], letter["id"], letter["x-order-id"]) == ("PaymentCompleted", "pay-1", "77")
    [row] = core.rows(database, outbox, outbox.c.exchange == "")
    assert json.loads(row.properties)["app_id"] == "payment-service"
    [told] = core.leaving(database, "MessageRejected")
    assert (told["correlationid"], told["data"]["message_id"]) == ("77", "pay-1")
    assert {error["field"] for error in told["data"]["errors"]} == {"data.payment_id", "data.amount"}
    assert datetime.fromisoformat(told["data"]["received_at"])


def test_dead_letter_arrives_as_it_came(
    amqp_url: str, database: Database, wire: Wire, consuming: Any, eventually: Eventually
) -> None:
    from publishers.relay import Relay

    wire.send_raw("menu.reserved", b"\x00 as it came \xff", correlation_id=b"\xff" * 255)

    settings = core.settings(amqp_url, database.url)
    with consuming(), core.running(lambda stop: Relay(settings, database, stop)):
        [letter] = eventually(lambda: wire.take(MENU.dead_letters), "the dead letter")

    assert letter.body == b"\x00 as it came \xff"
    assert letter.properties.headers["x-error"] == "malformed"


class Header:
    """A header field's value as bytes of AMQP, which clients in other languages may send."""

    def __init__(self, encoded: bytes) -> None:
        self.encoded = encoded


@pytest.fixture
def odd_headers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the tests' client send them."""
    from pika import data

    encode = data.encode_value

    def encode_odd(pieces: list[bytes], value: Any) -> int:
        if isinstance(value, Header):
            pieces.append(value.encoded)
            return len(value.encoded)
        return int(encode(pieces, value))

    monkeypatch.setattr(data, "encode_value", encode_odd)


@pytest.mark.usefixtures("odd_headers")
@pytest.mark.parametrize(
    "header",
    [
        pytest.param(b"s\x00\x07", id="short"),
        pytest.param(b"T" + (1_767_225_600_000).to_bytes(8, "big"), id="time in milliseconds"),
        pytest.param(b"S\x00\x00\x00\x02\xff\xfe", id="not UTF-8"),
        pytest.param(b"x\x00\x00\x00\x02\xff\xfe", id="bytes"),
    ],
)
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_header_of_any_type_does_not_stall_the_queue(
    header: bytes, database: Database, wire: Wire, consuming: Any, eventually: Eventually
) -> None:
    first, second = core.place_sent(database, 2)
    wire.send_raw("menu.reserved", core.event(reserved(first)), headers={"x-odd": Header(header)})
    wire.send(reserved(second))

    with consuming():
        eventually(lambda: core.states(database, [second]) == {"awaiting_payment"}, "the message behind it")

    assert remaining(wire) == 0


def test_properties_that_are_not_utf8_do_not_keep_a_message_from_being_applied(
    database: Database, wire: Wire, consuming: Any, eventually: Eventually
) -> None:
    first, second = core.place_sent(database, 2)
    odd = dict.fromkeys(("correlation_id", "app_id", "content_type"), b"\xff\xfe")
    wire.send_raw("menu.reserved", core.event(reserved(first)), **odd)
    content = json.dumps(core.data(reserved(second))).encode()
    wire.send_raw("menu.reserved", content, message_id=b"\xff\xfe", app_id="a\0b", content_type="a\0b")

    with consuming():
        eventually(lambda: core.states(database, [first, second]) == {"awaiting_payment"}, "both to be applied")

    assert dead(database) == []


def test_bare_message_without_an_id_counts_once(
    database: Database, wire: Wire, consuming: Any, eventually: Eventually
) -> None:
    [order_id] = core.place_sent(database)
    wire.send(reserved(order_id, None))
    body, respaced = (
        json.dumps(core.data(reserved(order_id, "r2")), separators=separators).encode()
        for separators in ((",", ":"), (", ", ": "))
    )
    wire.send_raw("menu.reserved", body)
    wire.send_raw("menu.reserved", respaced)
    wire.send(completed(order_id))

    with consuming():
        eventually(lambda: core.states(database, [order_id]) == {"paid"}, "the order to be paid")

    with database.reading() as connection:
        types = [
            entry.type
            for entry in history.of_order(connection, order_rows.read_orders(connection, [order_id])[order_id])
        ]
    assert Counter(types) == {"OrderPlaced": 1, "MenuReserved": 2, "PaymentCompleted": 1}


def broken_for(order_id: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def decide_or_break(order: order.Order, *arguments: Any) -> Any:
        if order.id == order_id:
            raise ZeroDivisionError("a rule of ours is broken")
        return decide(order, *arguments)

    monkeypatch.setattr(handlers, "decide", decide_or_break)


def test_message_that_breaks_its_batch_is_given_up_alone(
    database: Database, wire: Wire, consuming: Any, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = core.place_sent(database, 20)
    broken_for(ids[7], monkeypatch)
    wire.send(*[reserved(id) for id in ids])

    with consuming():
        rest = [id for id in ids if id != ids[7]]
        eventually(lambda: core.states(database, rest) == {"awaiting_payment"}, "the rest to be applied")
        eventually(lambda: dead(database), "the broken one to be given up")

    [letter] = dead(database)
    assert (letter["x-error"], letter["body"]) == ("internal_error", core.event(reserved(ids[7])))
    assert "ZeroDivisionError" in letter["x-error-detail"]
    assert core.get(database, ids[7]).state is State.AWAITING_MENU
    assert remaining(wire) == 0


def test_nothing_is_acked_or_given_up_while_the_database_is_away(
    database_url: str,
    amqp_url: str,
    wire: Wire,
    eventually: Eventually,
    monkeypatch: pytest.MonkeyPatch,
    log: CapturingLogger,
) -> None:
    core.be_impatient(monkeypatch)
    with core.opened(database_url) as database:
        ids = core.place_sent(database, 20)
        settings = core.settings(amqp_url, database_url)

        with core.running(core.worker(settings, database)):
            eventually(lambda: core.said(log, "consuming"), "the consumer to be at work")
            with core.database_away(database_url):
                wire.send(*[reserved(id) for id in ids])
                eventually(lambda: core.said(log, "the transaction failed, trying again"), "the trouble to be noticed")
            eventually(lambda: core.states(database, ids) == {"awaiting_payment"}, "them to be applied")

        assert dead(database) == []
        assert remaining(wire) == 0
        assert core.count(database, order_history) == len(ids)


def test_consumer_that_is_stopped_while_the_database_is_away_leaves_its_messages_to_the_next(
    database_url: str,
    amqp_url: str,
    wire: Wire,
    eventually: Eventually,
    monkeypatch: pytest.MonkeyPatch,
    log: CapturingLogger,
) -> None:
    core.be_impatient(monkeypatch)
    with core.opened(database_url) as database:
        ids = core.place_sent(database, 5)
        wire.send(*[reserved(id) for id in ids])

        settings = core.settings(amqp_url, database_url)
        with core.database_away(database_url), core.running(core.worker(settings, database)):
            eventually(lambda: core.said(log, "the transaction failed, trying again"), "the trouble to be noticed")

        eventually(lambda: remaining(wire) == len(ids), "the messages to be in the queue again")


@pytest.mark.parametrize("table", ["orders", "order_history", "outbox"])
def test_table_that_is_away_for_a_while_is_not_the_messages_fault(
    table: str, database: Database, wire: Wire, consuming: Any, eventually: Eventually, log: CapturingLogger
) -> None:
    ids = core.place_sent(database, 3)
    with database.writing() as connection:
        connection.execute(sa.text(f"alter table {table} rename to away"))
    wire.send(*[reserved(id) for id in ids])

    with consuming():
        eventually(lambda: core.said(log, "the transaction failed, trying again") > 1, "the trouble to be noticed")
        with database.writing() as connection:
            connection.execute(sa.text(f"alter table away rename to {table}"))
        eventually(lambda: core.states(database, ids) == {"awaiting_payment"}, "them to be applied")

    assert dead(database) == []


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_on_postgresql_cut_connections_cost_nothing(
    database: Database, wire: Wire, consuming: Any, eventually: Eventually
) -> None:
    ids = core.place_sent(database, 150)
    wire.send(*[reserved(id) for id in ids])

    with consuming(batch_size=10):
        for _ in range(3):
            core.end_connections(database.url)
        eventually(lambda: core.states(database, ids) == {"awaiting_payment"}, "them to be applied")

    assert core.count(database, order_history) == len(ids)
    assert dead(database) == []


def test_queue_deleted_and_declared_again_is_consumed_again(
    database: Database, wire: Wire, consuming: Any, eventually: Eventually, log: CapturingLogger, broker: Broker
) -> None:
    assert broker.management_url is not None
    if Management(broker.management_url).call("GET", "overview")["rabbitmq_version"].startswith("3."):
        pytest.skip("RabbitMQ 3 neither cancels the consumer nor counts it as gone, so nobody can notice")
    first, second = core.place_sent(database, 2)

    with consuming():
        eventually(lambda: core.said(log, "consuming"), "the consumer to be at work")
        # While it waits for this transaction it cannot notice that the queue is gone for a moment.
        with database.writing() as connection:
            handlers.apply_replies(connection, [reserved(first, id="ours")], core.changes())
            wire.send(reserved(first, id="theirs"))
            eventually(lambda: remaining(wire) == 0, "the consumer to have it")
            with wire.channel() as channel:
                channel.queue_delete(MENU.name)
                topology.declare(channel)
        eventually(lambda: core.said(log, "consuming") == 2, "the consumer to be at work again")
        wire.send(reserved(second))
        eventually(lambda: core.states(database, [second]) == {"awaiting_payment"}, "the new queue to be consumed")


def test_queue_that_stays_away_ends_the_consumer_naming_the_command(
    database: Database,
    amqp_url: str,
    wire: Wire,
    eventually: Eventually,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    log: CapturingLogger,
) -> None:
    stop = threading.Event()
    process = core.Running(core.worker(core.settings(amqp_url, database.url), database)(stop), stop)
    eventually(lambda: core.said(log, "consuming"), "the consumer to be at work")

    with wire.channel() as channel:
        channel.queue_delete(PAYMENT.name)

    ended = eventually(process.ended, "the consumer to end")
    assert isinstance(ended, SystemExit)
    assert ended.code == 2
    assert "python -m order_service topology" in capsys.readouterr().err


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_everything_is_applied_once_when_connections_are_cut(
    database: Database, wire: Wire, management: Any, consuming: Any, eventually: Eventually, log: CapturingLogger
) -> None:
    ids = core.place_sent(database, 150)

    with consuming(batch_size=20):
        eventually(management.close_connections, "the consumer's connection to be cut")
        wire.send(*[reserved(id) for id in ids])
        eventually(lambda: core.states(database, ids) == {"awaiting_payment"}, "them to be applied")

    assert core.said(log, "consuming") == 2
    assert core.count(database, order_history) == len(ids)


def test_two_consumers_at_once_apply_each_reply_once(
    database_url: str, amqp_url: str, wire: Wire, eventually: Eventually
) -> None:
    with core.opened(database_url) as one, core.opened(database_url) as two:
        ids = core.place_sent(one, 250)
        wire.send(*[reserved(id) for id in ids], *[completed(id) for id in ids])
        wire.send(*[completed(id, "p2", id="pay-2") for id in ids], *[reserved(id) for id in ids])

        settings = core.settings(amqp_url, database_url, batch_size=50)
        with core.running(core.worker(settings, one)), core.running(core.worker(settings, two)):
            eventually(lambda: core.count(one, order_history) == 3 * len(ids), "750 replies")
            eventually(lambda: core.states(one, ids) == {"paid"}, "orders to be paid")

        assert remaining(wire) == 0
        assert dead(one) == []
        refunds = core.given_back(one)
        assert len(refunds) == len(ids) == len({row.order_id for row in refunds})
        assert len(core.leaving(one, "OrderPaid")) == len(ids)


def test_stop_finishes_the_batch_in_hand_and_leaves_the_rest(
    database: Database, wire: Wire, consuming: Any, eventually: Eventually
) -> None:
    ids = core.place_sent(database, 240)
    wire.send(*[reserved(id) for id in ids])

    with consuming(batch_size=10) as process:
        eventually(lambda: core.count(database, order_history) > 0, "the consumer to be in the middle of it")
        process.stop()

    applied = core.count(database, order_history)
    eventually(lambda: remaining(wire) == len(ids) - applied, "exactly the messages not applied to be in the queue")


def test_consumer_refuses_a_broker_without_topology_naming_the_command(
    database: Database, amqp_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    consumer = core.worker(core.settings(amqp_url, database.url), database)(threading.Event())

    with pytest.raises(SystemExit) as refused:
        consumer.run()

    assert refused.value.code == 2
    assert "python -m order_service topology" in capsys.readouterr().err


def test_consumers_refuse_a_database_that_is_not_migrated_naming_the_command(
    database: Database, amqp_url: str, wire: Wire, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    schema.downgrade(database.url)
    monkeypatch.setattr(consumers_main, "Database", lambda *_, **__: database)
    monkeypatch.setattr(consumers_main.startup, "begin", lambda: core.settings(amqp_url, database.url))
    monkeypatch.setattr(consumers_main.startup, "stop_on_signal", threading.Event)

    with pytest.raises(SystemExit) as refused:
        consumers_main.main()

    assert refused.value.code == 2
    assert "python -m order_service migrate" in capsys.readouterr().err


def test_consumer_starts_before_the_broker_and_stops_when_told(database: Database) -> None:
    nowhere = core.settings("amqp://guest:guest@127.0.0.1:1/", database.url)

    with core.running(core.worker(nowhere, database)) as process:
        assert process.is_alive


def kill_while_holding(amqp_url: str, queue: str) -> None:
    """A consumer that dies with the message in hand."""
    connection = pika.BlockingConnection(pika.URLParameters(amqp_url))
    assert connection.channel().basic_get(queue)[0] is not None
    connection.close()


def test_message_that_came_back_often_is_still_applied(
    database: Database, amqp_url: str, wire: Wire, consuming: Any, eventually: Eventually
) -> None:
    ids = core.place_sent(database, 3)
    wire.send(reserved(ids[0]))
    for _ in range(5):
        eventually(lambda: remaining(wire) == 1, "the message to be back")
        kill_while_holding(amqp_url, MENU.name)
    wire.send(*[reserved(id) for id in ids[1:]])

    with consuming():
        eventually(lambda: core.states(database, ids) == {"awaiting_payment"}, "all to be applied")

    assert dead(database) == []


class Killed(BaseException):
    """Stands for the end of the process."""


def test_message_that_ends_the_process_again_and_again_is_given_up_alone(
    database: Database, amqp_url: str, wire: Wire, consuming: Any, eventually: Eventually, monkeypatch: Any
) -> None:
    ids = core.place_sent(database, 3)

    def decide_or_die(found: order.Order, *arguments: Any) -> Any:
        if found.id == ids[0]:
            raise Killed
        return decide(found, *arguments)

    monkeypatch.setattr(handlers, "decide", decide_or_die)
    # The process would not live to take its count back.
    monkeypatch.setattr(history, "clear_suspect", lambda *_: None)
    wire.send(*[reserved(id) for id in ids])
    settings = core.settings(amqp_url, database.url)

    for _ in range(20):
        stop = threading.Event()
        process = core.Running(Worker(settings, database, core.SUBSCRIPTIONS, stop), stop)
        eventually(lambda process=process: dead(database) or not process.is_alive, "an end of one kind")
        if process.is_alive:
            process.stop()
            break
        assert isinstance(process.error, Killed)

    assert [letter["body"] for letter in dead(database)] == [core.event(reserved(ids[0]))]
    assert "died" in dead(database)[0]["x-error-detail"]
    assert core.states(database, ids[1:]) == {"awaiting_payment"}
