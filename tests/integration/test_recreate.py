"""`topology --recreate`: a queue gets its new arguments and keeps its messages."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import click
import pika
import pytest
from pika.adapters.blocking_connection import BlockingChannel

from order_service.cli import recreate
from order_service.cli.recreate import recreate_queue
from order_service.contract import topology
from order_service.contract.topology import DEAD_LETTER_EXCHANGE, EXCHANGE, MENU, MENU_EXCHANGE, PAYMENT, QUORUM, Queue
from order_service.storage.database import Database
from order_service.storage.tables import outbox
from tests import builders
from tests.e2e.deployment import MOSTLY_ON_POSTGRESQL
from tests.integration import core
from tests.integration.core import Eventually, Start, Wire, reserved

#: What the command asks of the broker: an interruption is possible before and after each.
OPERATIONS = (
    "queue_declare", "queue_bind", "queue_unbind", "queue_delete", "exchange_declare", "exchange_delete", "basic_get",
    "basic_publish", "basic_ack",
)  # fmt: skip


#: A queue with few bindings, for a test that interrupts each step.
SHORT = Queue("order-service.short", ("menu.reserved",), MENU_EXCHANGE)


@pytest.fixture
def wire(amqp_url: str) -> Wire:
    """A broker with the topology before publishers and dead letters had exchanges of their own."""
    wire = Wire(amqp_url)
    with wire.channel() as channel:
        for queue in topology.QUEUES:
            declare_old(channel, queue)
    return wire


def declare_old(channel: BlockingChannel, queue: Queue) -> None:
    channel.exchange_declare(EXCHANGE, "topic", durable=True)
    channel.queue_declare(queue.dead_letters, durable=True, arguments=QUORUM)
    channel.queue_delete(queue.name)
    channel.queue_declare(queue.name, durable=True, arguments=queue.arguments | {"x-dead-letter-exchange": ""})
    for routing_key in queue.routing_keys:
        channel.queue_bind(queue.name, EXCHANGE, routing_key)


def declare_drifted_dead_letters(channel: BlockingChannel, queue: Queue) -> None:
    topology.declare_exchanges(channel)
    channel.queue_delete(queue.dead_letters)
    channel.queue_declare(queue.dead_letters, durable=True, arguments=QUORUM | {"x-max-length": 100_000})
    channel.queue_bind(queue.dead_letters, DEAD_LETTER_EXCHANGE)


@pytest.fixture(autouse=True)
def settles_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recreate, "SETTLE_SECONDS", 0.1)


@pytest.fixture
def connection(amqp_url: str) -> Iterator[pika.BlockingConnection]:
    with pika.BlockingConnection(pika.URLParameters(amqp_url)) as connection:
        yield connection


def run_topology(amqp_url: str, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "order_service", "topology", *options]
    return subprocess.run(command, env=os.environ | {"RABBITMQ_URL": amqp_url}, capture_output=True, text=True)


def ids(wire: Wire, queue: str = MENU.name) -> set[str | None]:
    return {message.properties.message_id for message in wire.take(queue)}


def test_other_arguments_are_named_with_the_command_that_replaces_the_queue(wire: Wire, amqp_url: str) -> None:
    wire.send_raw("menu.reserved", b"{}", message_id="before")

    refused, replaced, repeated = (run_topology(amqp_url, *options) for options in ([], ["--recreate"], ["--recreate"]))

    assert refused.returncode == 2
    for expected in (f"'{MENU.name}'", "'x-dead-letter-exchange'", "python -m order_service topology --recreate"):
        assert expected in refused.stderr
    assert (replaced.returncode, repeated.returncode) == (0, 0), replaced.stderr
    assert ids(wire) == {"before"}
    wire.declare()


def test_messages_keep_their_routing_keys_properties_and_headers(
    wire: Wire, connection: pika.BlockingConnection, management: Any
) -> None:
    headers = {"traceparent": "00-1-2-03", "cloudEvents:id": "7", "nested": {"list": [1, None, True]}}
    sent = {"message_id": "m-1", "type": "MenuReserved", "app_id": "menu", "priority": 3, "timestamp": 7,
            "content_type": "application/json", "correlation_id": "1", "reply_to": "here", "user_id": "guest"}  # fmt: skip
    wire.send_raw("menu.reserved", b"first", headers=headers, **sent)
    wire.send_raw("menu.released", b"second", message_id="m-2")

    recreate_queue(connection, MENU)

    first, second = wire.take(MENU.name)
    assert (first.routing_key, first.body) == ("menu.reserved", b"first")
    assert {name: first.properties.headers[name] for name in headers} == headers
    assert {name: getattr(first.properties, name) for name in sent} == sent | {"user_id": None}
    assert (second.routing_key, second.body, second.properties.message_id) == ("menu.released", b"second", "m-2")
    assert management.bindings() == {
        *((exchange, routing_key, MENU.name) for exchange, routing_key in MENU.bindings),
        *((EXCHANGE, routing_key, PAYMENT.name) for routing_key in PAYMENT.routing_keys),
        (DEAD_LETTER_EXCHANGE, MENU.dead_letters, MENU.dead_letters),
    }
    assert set(management.queues()) == {name for queue in topology.QUEUES for name in (queue.name, queue.dead_letters)}


class Publisher:
    """Publishes messages that must be routed, one after the other, in a thread; `confirmed` has their ids."""

    def __init__(self, wire: Wire, exchange: str, routing_key: str) -> None:
        self.confirmed: list[str] = []
        self._wire, self._exchange, self._routing_key = wire, exchange, routing_key
        self._stop = threading.Event()
        self._running = core.Running(self._publish, self._stop)

    def _publish(self) -> None:
        with self._wire.channel() as channel:
            while not self._stop.is_set():
                message_id = f"{self._exchange}-{len(self.confirmed)}"
                properties = pika.BasicProperties(message_id=message_id, delivery_mode=2)
                channel.basic_publish(self._exchange, self._routing_key, b"{}", properties, mandatory=True)
                self.confirmed.append(message_id)
                self._stop.wait(0.02)

    def stop(self) -> None:
        self._running.stop()


@MOSTLY_ON_POSTGRESQL
def test_the_way_from_the_former_topology_loses_no_message(
    database: Database, wire: Wire, amqp_url: str, relaying: Start, eventually: Eventually
) -> None:
    # given: the former consumers and relay, a sibling, and a dead letter in the outbox
    wire.send_raw("menu.reserved", b"{}", message_id="before")
    [letter] = builders.outgoing(1, routing_key=PAYMENT.dead_letters)
    core.add_to_outbox(database, [letter._replace(exchange="", message_id="waiting")])
    sibling, relay = Publisher(wire, EXCHANGE, "menu.reserved"), Publisher(wire, "", MENU.dead_letters)
    publishers = [sibling, relay]

    def more_is_published(what: str) -> None:
        counts = [len(each.confirmed) for each in publishers]
        eventually(lambda: all(len(p.confirmed) > c + 20 for p, c in zip(publishers, counts, strict=True)), what)

    more_is_published("messages with the former topology")
    with pika.BlockingConnection(pika.URLParameters(amqp_url)) as former:
        former.channel().basic_consume(MENU.name, lambda *_: None)

        # when: the new topology, while they run
        declared, refused = run_topology(amqp_url), run_topology(amqp_url, "--recreate")

    # then: siblings may publish to their own exchanges from now on
    assert (declared.returncode, refused.returncode) == (2, 1), refused.stderr
    assert f"{MENU.name} has consumers (1)" in refused.stderr
    publishers += [Publisher(wire, MENU_EXCHANGE, "menu.reserved")]
    more_is_published("messages before the replacement")

    # when: the former consumers have stopped
    replaced = run_topology(amqp_url, "--recreate")

    # then: it shows its progress, and the new relay takes over
    assert replaced.returncode == 0, replaced.stderr
    assert f"{MENU.name} -> {MENU.name}.moving" in replaced.stderr
    more_is_published("messages after the replacement")
    with relaying():
        eventually(lambda: core.count(database, outbox) == 0, "the dead letter of the outbox to be published")
    for each in publishers:
        each.stop()
    from_siblings = {id for each in publishers if each is not relay for id in each.confirmed}
    assert ids(wire) == {"before", *from_siblings}
    assert ids(wire, MENU.dead_letters) == set(relay.confirmed)
    assert ids(wire, PAYMENT.dead_letters) == {"waiting"}
    wire.declare()


class Interrupted(Exception):
    """The command has ended."""


def interrupt_after(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Raise after this many operations of the broker, the last of which takes effect."""
    done = 0

    def limited(operation: Callable[..., Any]) -> Callable[..., Any]:
        def run(*given: Any, **named: Any) -> Any:
            nonlocal done
            result = operation(*given, **named)
            done += 1
            if done == count:
                raise Interrupted
            return result

        return run

    for name in OPERATIONS:
        monkeypatch.setattr(BlockingChannel, name, limited(getattr(BlockingChannel, name)))


@pytest.mark.parametrize(
    ("declare", "exchange", "routing_key", "queue"),
    [
        pytest.param(declare_old, EXCHANGE, "menu.reserved", SHORT.name, id="queue"),
        pytest.param(
            declare_drifted_dead_letters,
            DEAD_LETTER_EXCHANGE,
            SHORT.dead_letters,
            SHORT.dead_letters,
            id="dead letters",
        ),
    ],
)
def test_replacement_that_is_interrupted_after_any_step_can_be_repeated(
    wire: Wire,
    amqp_url: str,
    monkeypatch: pytest.MonkeyPatch,
    declare: Callable[[BlockingChannel, Queue], None],
    exchange: str,
    routing_key: str,
    queue: str,
) -> None:
    monkeypatch.setattr(recreate, "SETTLE_SECONDS", 0)
    completed = False
    for step in range(1, 100):
        # given
        with wire.channel() as channel:
            declare(channel, SHORT)
            channel.basic_publish(exchange, routing_key, b"{}", pika.BasicProperties(message_id="before"))

        # when
        with monkeypatch.context() as patched, pika.BlockingConnection(pika.URLParameters(amqp_url)) as interrupted:
            interrupt_after(patched, step)
            try:
                recreate_queue(interrupted, SHORT)
                completed = True
            except Interrupted:
                pass
        with wire.channel() as channel:
            channel.basic_publish(exchange, routing_key, b"", pika.BasicProperties(message_id="between"))
        with pika.BlockingConnection(pika.URLParameters(amqp_url)) as again:
            recreate_queue(again, SHORT)
            assert recreate.declare(again, [SHORT]) == [], step

        # then
        assert ids(wire, queue) == {"before", "between"}, step
        if completed:
            break
    assert completed
    assert step > 20


@MOSTLY_ON_POSTGRESQL
def test_dead_letter_queue_gets_its_arguments_and_keeps_its_messages_while_all_run(
    database: Database, wire: Wire, amqp_url: str, consuming: Start, connection: pika.BlockingConnection
) -> None:
    # given: a dead-letter queue with other arguments that holds a dead letter, while the services and a relay run
    for queue in topology.QUEUES:
        recreate_queue(connection, queue)
    headers = {"x-error": "invalid", "x-origin-routing-key": "menu.reserved"}
    with wire.channel() as channel:
        declare_drifted_dead_letters(channel, MENU)
        properties = pika.BasicProperties(message_id="before", app_id="menu-service", headers=headers)
        channel.basic_publish(DEAD_LETTER_EXCHANGE, MENU.dead_letters, b"{", properties, mandatory=True)
    refused = run_topology(amqp_url)
    relay = Publisher(wire, DEAD_LETTER_EXCHANGE, MENU.dead_letters)

    # when
    with consuming():
        replaced = run_topology(amqp_url, "--recreate")
        relay.stop()

    # then
    assert (refused.returncode, replaced.returncode) == (2, 0), replaced.stderr
    assert f"'{MENU.dead_letters}'" in refused.stderr
    assert "topology --recreate" in refused.stderr
    moved = {message.properties.message_id: message for message in wire.take(MENU.dead_letters)}
    assert moved.keys() == {"before", *relay.confirmed}
    assert moved["before"].properties.app_id == "menu-service"
    assert headers.items() <= moved["before"].properties.headers.items()
    wire.declare()


def test_interrupted_replacement_is_reported(wire: Wire, connection: pika.BlockingConnection, amqp_url: str) -> None:
    with wire.channel() as channel:
        channel.queue_declare(f"{PAYMENT.name}.moving", durable=True, arguments=QUORUM)

    problems = recreate.declare(connection, [PAYMENT])

    assert [f"{PAYMENT.name}.moving" in problem for problem in problems] == [False, True]


def test_queue_with_other_arguments_is_consumed_and_not_replaced_under_its_consumer(
    database: Database, wire: Wire, consuming: Start, connection: pika.BlockingConnection, eventually: Eventually
) -> None:
    first, second = core.place_sent(database, 2)
    assert len(recreate.declare(connection, topology.QUEUES)) == 2

    with consuming():
        wire.send(reserved(first))
        eventually(lambda: core.states(database, [first]) == {"awaiting_payment"}, "the old queue to be consumed")
        with pytest.raises(click.ClickException, match=r"has consumers \(1\): stop `python -m consumers`"):
            recreate_queue(connection, MENU)
        wire.send(reserved(second))
        eventually(lambda: core.states(database, [second]) == {"awaiting_payment"}, "it to be consumed still")

    for queue in topology.QUEUES:
        recreate_queue(connection, queue)
    wire.declare()


def test_message_that_somebody_holds_unacked_is_not_deleted_with_its_queue(
    wire: Wire, connection: pika.BlockingConnection, amqp_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recreate, "ACK_SECONDS", 0.5)
    wire.send_raw("menu.reserved", b"{}", message_id="held")
    with pika.BlockingConnection(pika.URLParameters(amqp_url)) as other:
        other.channel().basic_get(MENU.name)

        with pytest.raises(click.ClickException, match=MENU.name):
            recreate_queue(connection, MENU)

    recreate_queue(connection, MENU)
    assert ids(wire) == {"held"}
