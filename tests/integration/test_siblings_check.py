"""`python -m order_service siblings check`: the sandbox's services pass, and each of their faults fails its own rule."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pika
import pika.exceptions
import pytest
from click.testing import CliRunner, Result
from pika.adapters.blocking_connection import BlockingChannel

from order_service.cli.conformance import RULES
from order_service.cli.main import main
from order_service.contract import topology
from sandbox.siblings import faults, kit, menu, payment
from sandbox.siblings.faults import Faults, FaultyService
from sandbox.siblings.kit import connect
from tests.integration.core import UNREACHABLE_BROKER, Eventually
from tests.integration.test_faults import serving

Check = Callable[..., Result]
SERVICES = {"menu": menu, "payment": payment}


@pytest.fixture
def check(amqp_url: str, monkeypatch: pytest.MonkeyPatch) -> Check:
    """Runs the command against the siblings on this test's broker."""
    monkeypatch.setenv("RABBITMQ_URL", amqp_url)
    return lambda *arguments: CliRunner().invoke(main, ["siblings", "check", *arguments])


@pytest.fixture
def sibling(check: Check, tmp_path: Path, eventually: Eventually) -> Iterator[Callable[[str], FaultyService]]:
    """`sibling("menu")` serves the sandbox's Menu Service until the end of the test."""
    running = []

    def start(name: str) -> FaultyService:
        service: FaultyService = SERVICES[name].create_service(tmp_path / f"{name}.db")
        running.append(serving(service))
        running[-1].__enter__()
        eventually(lambda: service.connected, f"{name} to consume")
        return service

    yield start
    for each in running:
        each.__exit__(None, None, None)


def outcomes(result: Result) -> dict[str, str]:
    return {each["rule"]: each["outcome"] for each in json.loads(result.stdout)["rules"]}


@pytest.mark.parametrize("name", ["menu", "payment"])
def test_service_of_the_sandbox_passes_every_rule(check: Check, sibling: Any, name: str) -> None:
    service = sibling(name)

    result = check(name)

    assert result.exit_code == 0, result.output
    lines = [line.split()[:2] for line in result.stdout.splitlines()]
    assert lines[:-1] == [["skipped" if rule.name == "kill" else "passed", rule.name] for rule in RULES[name]]
    with closing(connect(service.database)) as db:
        if name == "menu":
            assert [row["stock"] for row in db.execute("SELECT stock FROM menus")] == [15, 7]
        else:
            assert {row["status"] for row in db.execute("SELECT status FROM payments")} == {"refunded"}


def test_replies_on_the_shared_exchange_pass_with_a_note(
    check: Check, sibling: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As siblings publish that are older than the exchanges of their own."""
    monkeypatch.setenv("REPLY_EXCHANGE", "restaurant.events")
    sibling("menu")

    result = check("menu")

    assert result.exit_code == 0, result.output
    [noted] = [line for line in result.stdout.splitlines() if "restaurant.events" in line]
    assert noted.split()[:2] == ["passed", "published"]


@pytest.mark.parametrize("prefix", ["cloudEvents:", "cloudEvents_"])
@pytest.mark.parametrize("name", ["menu", "payment"])
def test_service_that_replies_in_binary_mode_passes_every_rule(
    check: Check, sibling: Any, monkeypatch: pytest.MonkeyPatch, name: str, prefix: str
) -> None:
    """The attributes are headers, the id among them, and the body is the data alone."""
    publish = BlockingChannel.basic_publish

    def publish_binary(
        channel: BlockingChannel, exchange: str, key: str, body: bytes, properties: Any, mandatory: bool
    ) -> None:
        if properties.app_id == f"{name}-service":
            event = json.loads(body)
            body = json.dumps(event.pop("data")).encode()
            properties.headers = {f"{prefix}{attribute}": value for attribute, value in event.items()}
            properties.content_type, properties.message_id, properties.type = "application/json", None, None
        publish(channel, exchange, key, body, properties, mandatory)

    monkeypatch.setattr(BlockingChannel, "basic_publish", publish_binary)
    sibling(name)

    result = check(name, "--json")

    assert set(outcomes(result).values()) == {"passed", "skipped"}, result.output
    assert result.exit_code == 0


FAULTS = [
    ("menu", {"reject": True}, "reserves"),
    ("menu", {"price": True}, "prices"),
    ("menu", {"silent": True}, "answers"),
    ("menu", {"delay": 0.02}, "in_time"),
    ("menu", {"duplicate": True}, "once"),
    ("menu", {"reorder": True}, "in_order"),
    ("payment", {"reject": True}, "charges"),
    ("payment", {"wrong_amount": True}, "amount"),
    ("payment", {"silent": True}, "answers"),
    ("payment", {"delay": 0.02}, "in_time"),
    ("payment", {"duplicate": True}, "once"),
    ("payment", {"reorder": True}, "in_order"),
]


@pytest.mark.parametrize(("name", "fault", "rule"), FAULTS)
def test_fault_of_the_sandbox_fails_exactly_its_rule(
    check: Check, sibling: Any, monkeypatch: pytest.MonkeyPatch, name: str, fault: dict[str, object], rule: str
) -> None:
    monkeypatch.setattr(faults, "REORDER_SECONDS", 0.1)
    monkeypatch.setattr(kit, "POLL_SECONDS", 0.02)
    sibling(name).faults.replace(fault)
    limits = {"in_time": ["--reply-seconds", "0.015"], "answers": ["--wait-seconds", "0.5"]}

    result = check(name, "--json", *limits.get(rule, []))

    assert result.exit_code == 1, result.output
    assert [each for each, outcome in outcomes(result).items() if outcome == "failed"] == [rule]
    [failed] = [each for each in json.loads(result.stdout)["rules"] if each["outcome"] == "failed"]
    assert all(failed[part] for part in ("sent", "came", "expected"))


def test_every_fault_of_the_sandbox_has_a_rule() -> None:
    known = {(name, fault) for name in SERVICES for fault in Faults(SERVICES[name].DECIDING).known}

    assert {(name, *fault) for name, fault, _ in FAULTS} == known


# Siblings that break one rule.


def decide_again(service: FaultyService, _: Any) -> None:
    created = service.handlers["OrderCreated"]

    def handle(db: Any, data: dict[str, Any]) -> Any:
        db.execute("DELETE FROM orders WHERE order_id = ? AND NOT released", [data["order_id"]])
        return created(db, data)

    service.handlers = {**service.handlers, "OrderCreated": handle}


def reserve_partly(service: FaultyService, _: Any) -> None:
    created = service.handlers["OrderCreated"]

    def handle(db: Any, data: dict[str, Any]) -> Any:
        reply = created(db, data)
        if reply and reply[0] == "MenuRejected" and len(data["lines"]) > 1:
            db.execute("UPDATE menus SET stock = stock - 1 WHERE id = 1")
        return reply

    service.handlers = {**service.handlers, "OrderCreated": handle}


def on_release(change: str) -> Callable[[FaultyService, Any], None]:
    """Run a statement after each release."""

    def break_rule(service: FaultyService, _: Any) -> None:
        release = service.handlers["StockReleaseRequested"]

        def handle(db: Any, data: dict[str, Any]) -> Any:
            reply = release(db, data)
            db.execute(change)
            return reply

        service.handlers = {**service.handlers, "StockReleaseRequested": handle}

    return break_rule


def confirm_known_orders_only(service: FaultyService, _: Any) -> None:
    refund = service.handlers["RefundRequested"]

    def handle(db: Any, data: dict[str, Any]) -> Any:
        known = db.execute("SELECT 1 FROM payments WHERE order_id = ?", [data["order_id"]]).fetchone()
        return refund(db, data) if known else None

    service.handlers = {**service.handlers, "RefundRequested": handle}


def charge_again(service: FaultyService, _: Any) -> None:
    service.handlers = {
        **service.handlers,
        "PaymentRequested": lambda db, data: payment.pay(db, payment.NewPayment.model_validate(data)),
    }


def use_one_id(service: FaultyService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service.faults, "copies", lambda: iter([("the same", 0.0)]))


def publish_transient(_: FaultyService, monkeypatch: pytest.MonkeyPatch) -> None:
    made = pika.BasicProperties
    monkeypatch.setattr(pika, "BasicProperties", lambda **values: made(**values | {"delivery_mode": 1}))


def use_another_key(_: FaultyService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(kit.ROUTING_KEYS, "PaymentRefunded", "payment.given_back")


def use_another_exchange(service: FaultyService, _: Any) -> None:
    service.exchange = "menu-service.events"


def leave_out_the_amount(service: FaultyService, _: Any) -> None:
    service.handlers = {
        **service.handlers,
        "PaymentRequested": lambda db, data: ("PaymentCompleted", {"order_id": data["order_id"], "payment_id": 1}),
    }


@pytest.mark.parametrize(
    ("name", "break_rule", "broken"),
    [
        ("menu", decide_again, {"repeat", "several_processes"}),
        ("menu", reserve_partly, {"all_or_nothing"}),
        ("menu", on_release("UPDATE orders SET released = 0 WHERE answer IS NOT NULL"), {"release_once"}),
        ("menu", on_release("DELETE FROM orders"), {"null_release_first", "late_order"}),
        ("payment", confirm_known_orders_only, {"refund_nothing"}),
        ("payment", charge_again, {"late_payment", "repeat", "several_processes"}),
        ("payment", use_one_id, {"ids"}),
        ("payment", publish_transient, {"published"}),
        ("payment", use_another_key, {"published"}),
        ("payment", use_another_exchange, {"published"}),
        ("payment", leave_out_the_amount, {"answers", "valid"}),
    ],
)
def test_service_that_breaks_a_rule_fails_it_and_no_other(
    check: Check, sibling: Any, monkeypatch: pytest.MonkeyPatch, name: str,
    break_rule: Callable[[FaultyService, pytest.MonkeyPatch], None], broken: set[str],
) -> None:  # fmt: skip
    service = sibling(name)
    if name == "menu":
        with closing(connect(service.database)) as db:  # these siblings use up the stock
            db.execute("UPDATE menus SET stock = 100")
    break_rule(service, monkeypatch)

    result = check(name, "--json", "--wait-seconds", "0.7")

    assert {each for each, outcome in outcomes(result).items() if outcome == "failed"} == broken, result.output


# The command.


def test_check_leaves_no_queue_binding_or_message_behind(check: Check, sibling: Any, management: Any) -> None:
    sibling("menu")
    before = management.bindings()

    assert check("menu").exit_code == 0

    assert set(management.queues()) == {"menu-service.orders"}
    assert management.bindings() == before
    assert management.depth("menu-service.orders") == 0


def test_check_that_cannot_run_exits_with_2_and_says_why(check: Check, monkeypatch: Any) -> None:
    no_sibling = check("menu")
    misused = check("menu", "--dish", "1=18000")
    unclear = check("menu", "--dish", "Nasi=18000", "--dish", "2=20000")
    monkeypatch.setenv("RABBITMQ_URL", UNREACHABLE_BROKER)
    no_broker = check("menu")

    assert [each.exit_code for each in (no_sibling, misused, unclear, no_broker)] == [2] * 4
    assert "no queue is bound to order.created" in no_sibling.stderr
    assert "give --dish twice" in misused.stderr
    assert "'Nasi=18000' is not a dish and its price" in unclear.stderr
    assert "RABBITMQ_URL" in no_broker.stderr


@pytest.mark.parametrize("queue", topology.BY_NAME.values(), ids=lambda queue: queue.name)
def test_check_refuses_a_virtual_host_with_a_queue_of_the_order_service(
    check: Check, sibling: Any, wire: Any, management: Any, queue: topology.Queue
) -> None:
    """The replies to it would stay there."""
    sibling("menu")
    with wire.channel() as channel:
        for each in topology.BY_NAME.values():
            channel.queue_delete(each.name)
        topology.declare(channel, [queue])

    result = check("menu")

    assert result.exit_code == 2, result.output
    assert result.stderr.startswith(f"{queue.name} exists on this virtual host")
    assert "rabbitmqctl add_vhost" in result.stderr
    assert management.depth(queue.name) == management.depth("menu-service.orders") == 0


def test_failed_rule_shows_what_was_sent_what_came_and_what_should_have_come(check: Check, sibling: Any) -> None:
    sibling("menu")

    result = check("menu", "--dish", "1=18000", "--dish", "2=21000")

    assert result.exit_code == 1
    [failed] = [line for line in result.stdout.splitlines() if line.startswith("failed")]
    assert failed.split()[1] == "prices"
    assert re.search(r"sent: +OrderCreated \{.*\n.*came: +menu.reserved \{.*\n.*expected: .*21000", result.stdout)


@pytest.mark.field
@pytest.mark.parametrize("name", ["menu", "payment"])
def test_killed_service_that_is_started_again_passes(
    amqp_url: str, tmp_path: Path, check: Check, eventually: Eventually, name: str
) -> None:
    # given
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = str(probe.getsockname()[1])
    own = {f"{name.upper()}_PORT": port, "SANDBOX_DIR": str(tmp_path), "RABBITMQ_URL": amqp_url}
    processes: list[subprocess.Popen[bytes]] = []

    def start() -> None:
        command = [sys.executable, "-m", f"sandbox.{name}"]
        processes.append(subprocess.Popen(command, env=os.environ | own))

    def start_again() -> None:
        processes[0].wait()
        start()

    try:
        start()
        wait_for_consumer(amqp_url, f"{name}-service.orders", eventually)
        supervisor = threading.Thread(target=start_again)
        supervisor.start()

        # when
        result = check(name, "--json", "--kill", str(processes[0].pid))

        # then
        supervisor.join()
        assert processes[0].returncode == -signal.SIGKILL
        assert result.exit_code == 0, result.output
        assert set(outcomes(result).values()) == {"passed"}
    finally:
        for process in processes:
            process.kill()
            process.wait()


def wait_for_consumer(amqp_url: str, queue: str, eventually: Eventually) -> None:
    def has_consumer() -> bool:
        with closing(pika.BlockingConnection(pika.URLParameters(amqp_url))) as connection:
            try:
                found = connection.channel().queue_declare(queue, passive=True)
            except pika.exceptions.ChannelClosedByBroker:
                return False
            return bool(found.method.consumer_count)

    eventually(has_consumer, f"a consumer of {queue}")
