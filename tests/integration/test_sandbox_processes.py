"""The sandbox's services as processes: their start, their messages at a real broker, their shutdown on SIGTERM."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx2
import pika
import pytest

from sandbox.siblings.kit import connect
from tests.integration.core import Message, Wire
from tests.integration.sandbox_service import order, refund, release, request

Eventually = Callable[..., Any]
TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
POSTED = {"order_id": 5, "user_id": 1, "amount": 38000}
CONNECTED = {"status": "ok", "broker": "connected"}


class Process:
    def __init__(self, process: subprocess.Popen[bytes], url: str, eventually: Eventually) -> None:
        self.process, self.url, self._eventually = process, url, eventually

    def health(self) -> dict[str, str] | None:
        with suppress(httpx2.TransportError):
            health: dict[str, str] = httpx2.get(f"{self.url}/healthz").json()
            return health
        return None

    def wait(self, health: dict[str, str]) -> None:
        self._eventually(lambda: self.health() == health, f"{self.url} to be {health}")

    def get(self, path: str) -> Any:
        return httpx2.get(self.url + path).raise_for_status().json()

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=5)


Start = Callable[..., Any]


@pytest.fixture
def start(tmp_path: Path, amqp_url: str, eventually: Eventually) -> Start:
    """Runs a service on a free port for the length of a block."""

    @contextmanager
    def start(name: str, **settings: str) -> Iterator[Process]:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        own = {f"{name.upper()}_PORT": str(port), "SANDBOX_DIR": str(tmp_path / "sandbox"), "RABBITMQ_URL": amqp_url}
        command = [sys.executable, "-m", f"sandbox.{name}"]
        with subprocess.Popen(command, env=os.environ | own | settings) as process:
            try:
                yield Process(process, f"http://127.0.0.1:{port}", eventually)
            finally:
                process.kill()

    return start


@pytest.fixture
def hear(wire: Wire, eventually: Eventually) -> Callable[[str], Message]:
    """Returns the next reply of a sibling."""
    keys = [f"menu.{each}" for each in ("reserved", "rejected", "released")]
    wire.listen(*keys, *(f"payment.{each}" for each in ("completed", "failed", "refunded")))

    def hear(what: str) -> Message:
        [message] = eventually(wire.take, what)
        return message

    return hear


#: Of each service: its requests, the second built from the reply to the first, and the routing keys of the replies.
MENU = ("menu", "order.created", order(5, {1: 1}), "menu.reserved", "menu.release_requested",
        lambda data: release(5, data["reservation_id"]), "menu.released", ("/menus/1", "stock", 15))  # fmt: skip
PAYMENT = ("payment", "payment.requested", request(5), "payment.completed", "payment.refund_requested",
           lambda data: refund(5, data["payment_id"]), "payment.refunded", ("/payments/1", "status", "refunded"))  # fmt: skip


@pytest.mark.parametrize(
    ("name", "request_key", "body", "reply_key", "undo_key", "undo", "undone_key", "after"),
    [MENU, PAYMENT],
    ids=lambda each: "",
)
def test_process_replies_over_the_broker_and_exits_on_sigterm(
    start: Start, wire: Wire, hear: Callable[[str], Message], name: str, request_key: str, body: bytes,
    reply_key: str, undo_key: str, undo: Callable[[dict[str, Any]], bytes], undone_key: str,
    after: tuple[str, str, object],
) -> None:  # fmt: skip
    with start(name) as sibling:
        sibling.wait(CONNECTED)

        wire.send_raw(request_key, body, headers={"traceparent": TRACE})
        reply = hear(reply_key)
        wire.send_raw(undo_key, undo(reply.event["data"]))

        properties = reply.properties
        assert reply.routing_key == reply_key
        assert (properties.type, properties.message_id) == (reply.event["type"], reply.event["id"])
        assert (properties.correlation_id, properties.app_id) == ("5", f"{name}-service")
        assert (properties.content_type, properties.delivery_mode) == ("application/cloudevents+json", 2)
        assert properties.headers == {"traceparent": TRACE}
        assert properties.timestamp
        assert hear(undone_key).routing_key == undone_key
        path, field, value = after
        assert sibling.get(path)[field] == value
        assert sibling.stop() == 0


def test_posted_payment_is_published_with_its_trace(start: Start, wire: Wire, hear: Callable[[str], Message]) -> None:
    with start("payment", PAYMENT_MODE="manual") as payment:
        payment.wait(CONNECTED)
        httpx2.post(f"{payment.url}/payments", json=POSTED, headers={"traceparent": TRACE}).raise_for_status()

        completed = hear("PaymentCompleted")

    assert completed.event["data"] == {"order_id": 5, "payment_id": 1, "amount": 38000}
    assert completed.properties.headers == {"traceparent": TRACE}


def test_unroutable_reply_is_published_once_a_queue_is_bound(
    start: Start, amqp_url: str, tmp_path: Path, eventually: Eventually
) -> None:
    wire = Wire(amqp_url)
    with start("menu") as menu:
        menu.wait(CONNECTED)
        wire.send_raw("order.created", order(5, {1: 1}))
        with closing(connect(tmp_path / "sandbox" / "menu.db")) as db:
            returned, count = "SELECT 1 FROM outbox WHERE attempts > 0", "SELECT count(*) FROM outbox"
            eventually(lambda: db.execute(returned).fetchone(), "a reply that was returned as unroutable")

            wire.listen("menu.reserved")
            eventually(wire.take, "MenuReserved")
            eventually(lambda: db.execute(count).fetchone()[0] == 0, "an empty outbox")


def test_process_declares_its_deleted_queue_again(
    start: Start, wire: Wire, hear: Callable[[str], Message], eventually: Eventually
) -> None:
    def is_routed() -> bool:
        with suppress(pika.exceptions.UnroutableError):
            wire.send_raw("order.created", order(2, {1: 1}))
            return True
        return False

    with start("menu") as menu:
        menu.wait(CONNECTED)
        with wire.channel() as channel:
            channel.queue_delete("menu-service.orders")
        eventually(is_routed, "the queue to be declared again")
        hear("the reply")


def test_process_declares_the_deleted_exchange_again_and_publishes_its_outbox(
    start: Start, wire: Wire, hear: Callable[[str], Message], eventually: Eventually
) -> None:
    def is_bound() -> bool:
        with suppress(pika.exceptions.ChannelClosedByBroker):
            wire.listen("payment.completed")
            return True
        return False

    with start("payment", PAYMENT_MODE="manual") as payment:
        payment.wait(CONNECTED)
        with wire.channel() as channel:
            channel.exchange_delete("payment-service.events")
        httpx2.post(f"{payment.url}/payments", json=POSTED).raise_for_status()

        eventually(is_bound, "the exchange to be declared again")
        hear("PaymentCompleted")


def test_thousand_orders_get_one_reply_each(start: Start, wire: Wire, eventually: Eventually) -> None:
    wire.listen("menu.reserved", "menu.rejected")
    with start("menu") as menu:
        menu.wait(CONNECTED)
        created = httpx2.post(f"{menu.url}/menus", json={"name": "Es Teh", "price": 5000, "stock": 600}).json()
        with wire.channel() as channel:
            for order_id in range(1, 1001):
                channel.basic_publish("restaurant.events", "order.created", order(order_id, {created["id"]: 1}))
        replies: list[str] = []

        def take() -> bool:
            replies.extend(message.event["type"] for message in wire.take())
            return len(replies) >= 1000

        eventually(take, "a thousand replies")
        assert sorted(replies) == ["MenuRejected"] * 400 + ["MenuReserved"] * 600
        assert menu.get(f"/menus/{created['id']}")["stock"] == 0


@pytest.mark.parametrize(
    ("name", "path", "health"),
    [("users", "/users/1", {"status": "ok"}), ("menu", "/menus/1", {"status": "ok", "broker": "absent"})],
)
def test_http_and_sigterm_work_without_a_broker(start: Start, name: str, path: str, health: dict[str, str]) -> None:
    with start(name, RABBITMQ_URL="amqp://guest:guest@127.0.0.1:1/") as sibling:
        sibling.wait(health)
        assert sibling.get(path)["id"] == 1
        assert sibling.stop() == 0


def test_process_takes_empty_variables_as_unset(start: Start) -> None:
    names = ("HOST", "LOG_LEVEL", "PAYMENT_MODE", "PAYMENT_FAULTS", "REPLY_EXCHANGE", "RABBITMQ_CA_FILE")

    with start("payment", **dict.fromkeys(names, "")) as sibling:
        sibling.wait(CONNECTED)
        assert sibling.stop() == 0


@pytest.mark.parametrize(("variable", "value"), [("PAYMENT_MODE", "sometimes"), ("PAYMENT_FAULTS", "unknown")])
def test_invalid_setting_is_reported_at_the_start(tmp_path: Path, variable: str, value: str) -> None:
    environment = os.environ | {variable: value, "SANDBOX_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "sandbox.payment"]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30, check=False)
    assert ended.returncode == 1
    assert variable in ended.stderr
