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
from order_service.contract.topology import EXCHANGE, MENU, PAYMENT, QUORUM, Queue
from order_service.storage.database import Database
from tests.integration import core
from tests.integration.core import Eventually, Start, Wire, reserved

#: The arguments of version 0.1.0.
OLD = MENU.arguments | {"x-dead-letter-strategy": "at-least-once"}
del OLD["x-max-length-bytes"]
#: What the command asks of the broker: an interruption is possible before and after each.
OPERATIONS = (
    "queue_declare", "queue_bind", "queue_unbind", "queue_delete", "exchange_declare", "exchange_delete", "basic_get",
    "basic_publish", "basic_ack",
)  # fmt: skip


#: A queue with few bindings, for a test that interrupts each step.
SHORT = Queue("order-service.short", ("menu.reserved",))


@pytest.fixture
def wire(amqp_url: str) -> Wire:
    """A broker whose menu queue has the arguments of an older version."""
    wire = Wire(amqp_url)
    wire.declare()
    with wire.channel() as channel:
        declare_old(channel, MENU)
    return wire


def declare_old(channel: BlockingChannel, queue: Queue) -> None:
    channel.queue_delete(queue.name)
    channel.queue_declare(queue.name, durable=True, arguments=OLD)
    for routing_key in queue.routing_keys:
        channel.queue_bind(queue.name, EXCHANGE, routing_key)


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
    for expected in (f"'{MENU.name}'", "'x-dead-letter-strategy'", "python -m order_service topology --recreate"):
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
        (EXCHANGE, routing_key, queue.name) for queue in topology.QUEUES for routing_key in queue.routing_keys
    }
    assert set(management.queues()) == {name for queue in topology.QUEUES for name in (queue.name, queue.dead_letters)}


def test_no_message_is_lost_that_siblings_publish_in_the_meantime(
    wire: Wire, connection: pika.BlockingConnection, eventually: Eventually
) -> None:
    confirmed: list[str] = []
    stop = threading.Event()

    def publish() -> None:
        with wire.channel() as channel:
            while not stop.is_set():
                properties = pika.BasicProperties(message_id=f"m-{len(confirmed)}", delivery_mode=2)
                channel.basic_publish(EXCHANGE, "menu.reserved", b"{}", properties, mandatory=True)
                confirmed.append(f"m-{len(confirmed)}")

    sibling = core.Running(publish, stop)
    eventually(lambda: len(confirmed) > 50, "messages before the replacement")
    recreate_queue(connection, MENU)
    during = len(confirmed)
    eventually(lambda: len(confirmed) > during + 50, "messages after the replacement")
    sibling.stop()

    assert ids(wire) == set(confirmed)


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


def test_replacement_that_is_interrupted_after_any_step_can_be_repeated(
    wire: Wire, amqp_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recreate, "SETTLE_SECONDS", 0)
    completed = False
    for step in range(1, 100):
        # given
        with wire.channel() as channel:
            declare_old(channel, SHORT)
        wire.send_raw("menu.reserved", b"{}", message_id="before")

        # when
        with monkeypatch.context() as patched, pika.BlockingConnection(pika.URLParameters(amqp_url)) as interrupted:
            interrupt_after(patched, step)
            try:
                recreate_queue(interrupted, SHORT)
                completed = True
            except Interrupted:
                pass
        with wire.channel() as channel:
            channel.basic_publish(EXCHANGE, "menu.reserved", b"", pika.BasicProperties(message_id="between"))
        with pika.BlockingConnection(pika.URLParameters(amqp_url)) as again:
            recreate_queue(again, SHORT)
            assert recreate.declare(again, [SHORT]) == [], step

        # then
        assert ids(wire, SHORT.name) == {"before", "between"}, step
        if completed:
            break
    assert completed
    assert step > 20


def test_interrupted_replacement_is_reported(wire: Wire, connection: pika.BlockingConnection, amqp_url: str) -> None:
    with wire.channel() as channel:
        channel.queue_declare(f"{PAYMENT.name}.moving", durable=True, arguments=QUORUM)

    problems = recreate.declare(connection, [PAYMENT])

    assert [f"{PAYMENT.name}.moving" in problem for problem in problems] == [True]


def test_queue_with_other_arguments_is_consumed_and_not_replaced_under_its_consumer(
    database: Database, wire: Wire, consuming: Start, connection: pika.BlockingConnection, eventually: Eventually
) -> None:
    first, second = core.place_sent(database, 2)

    with consuming():
        wire.send(reserved(first))
        eventually(lambda: core.states(database, [first]) == {"awaiting_payment"}, "the old queue to be consumed")
        with pytest.raises(click.ClickException, match=r"has consumers \(1\): stop `python -m consumers`"):
            recreate_queue(connection, MENU)
        wire.send(reserved(second))
        eventually(lambda: core.states(database, [second]) == {"awaiting_payment"}, "it to be consumed still")

    recreate_queue(connection, MENU)
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
