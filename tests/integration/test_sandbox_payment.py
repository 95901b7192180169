"""The sandbox's Payment Service: what it pays and gives back, its REST, and the process at a real broker."""

import json
import os
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx2
import pika
import pytest
from flask.testing import FlaskClient
from pika.adapters.blocking_connection import BlockingChannel

from sandbox.siblings.consumer import Delivery, answer
from sandbox.siblings.payment import SCHEMA, create_app, service
from sandbox.siblings.store import connect, create, transaction

Eventually = Callable[..., Any]
Heard = tuple[str, pika.BasicProperties, dict[str, Any]]
TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


class Payment:
    """The service without a broker: messages in, outbox messages out."""

    def __init__(self, database: Path, mode: str) -> None:
        self.service = service(database, mode)
        self.db = connect(database)

    def tell(self, *messages: bytes) -> list[dict[str, Any]]:
        """Deliver the messages as one batch. Returns the answers, as they would go out."""
        deliveries = [Delivery(tag, pika.BasicProperties(), body) for tag, body in enumerate(messages, 1)]
        answer(self.db, self.service, deliveries)
        return self.outbox()

    def outbox(self) -> list[dict[str, Any]]:
        with transaction(self.db):
            rows = self.db.execute("DELETE FROM outbox RETURNING seq, body").fetchall()
        return [json.loads(row["body"]) for row in sorted(rows, key=lambda row: int(row["seq"]))]

    def states(self) -> list[tuple[int, str]]:
        """Of every payment: its order and whether it stands."""
        rows = self.db.execute("SELECT order_id, status FROM payments ORDER BY id")
        return [(row["order_id"], row["status"]) for row in rows]


@pytest.fixture
def database(tmp_path: Path) -> Path:
    create(tmp_path / "payment.db", SCHEMA)
    return tmp_path / "payment.db"


@pytest.fixture
def payment(database: Path) -> Iterator[Payment]:
    payment = Payment(database, "auto")
    with closing(payment.db):
        yield payment


@pytest.fixture
def manual(database: Path) -> Iterator[Payment]:
    manual = Payment(database, "manual")
    with closing(manual.db):
        yield manual


@pytest.fixture
def client(database: Path) -> FlaskClient:
    return create_app(database).test_client()


def event(type: str, data: dict[str, Any]) -> bytes:
    return json.dumps({"specversion": "1.0", "id": str(uuid.uuid4()), "type": type, "data": data}).encode()


def request(order_id: int, amount: object = 38000) -> bytes:
    return event("PaymentRequested", {"order_id": order_id, "user_id": 1, "amount": amount, "pay_by": "soon"})


def refund(order_id: int, payment_id: object, refund_id: object = "refund-1") -> bytes:
    data = {"order_id": order_id, "refund_id": refund_id, "payment_id": payment_id, "amount": None}
    return event("RefundRequested", data)


def types(answers: list[dict[str, Any]]) -> list[str]:
    return [each["type"] for each in answers]


def test_requested_payment_is_made_and_announced(payment: Payment) -> None:
    [completed] = payment.tell(request(5))

    assert completed["type"] == "PaymentCompleted"
    assert completed["source"] == "/payment-service"
    assert completed["data"] == {"order_id": 5, "payment_id": 1, "amount": 38000}


def test_repeated_request_announces_the_same_payment(payment: Payment) -> None:
    [first, again] = payment.tell(request(5), request(5))

    assert again["data"] == first["data"]
    assert again["id"] != first["id"]
    assert payment.states() == [(5, "paid")]


def test_fractional_amount_stays_exact(payment: Payment) -> None:
    body = request(5).replace(b"38000", b"9999999999999.90")
    [completed] = payment.tell(body)
    assert json.dumps(completed["data"]["amount"]) == "9999999999999.9"


def test_manual_mode_waits_for_somebody_to_pay(manual: Payment, client: FlaskClient) -> None:
    assert manual.tell(request(5)) == []
    assert manual.states() == []

    client.post("/payments", json={"order_id": 5, "user_id": 1, "amount": 38000})
    assert types(manual.outbox()) == ["PaymentCompleted"]
    [again] = manual.tell(request(5))
    assert again["data"] == {"order_id": 5, "payment_id": 1, "amount": 38000}


@pytest.mark.parametrize("payment_id", [1, "1", None])
def test_payment_is_given_back_once_and_every_request_confirmed(payment: Payment, payment_id: object) -> None:
    payment.tell(request(5), request(6))

    refunds = [refund(5, payment_id, "refund-1"), refund(5, payment_id, "refund-1"), refund(5, 1, 2)]
    answers = payment.tell(*refunds)

    assert types(answers) == ["PaymentRefunded"] * 3
    assert [each["data"]["refund_id"] for each in answers] == ["refund-1", "refund-1", 2]
    assert payment.states() == [(5, "refunded"), (6, "paid")]


def test_refunded_order_is_not_paid_again(payment: Payment) -> None:
    payment.tell(request(5), refund(5, 1))
    assert payment.tell(request(5)) == []
    assert payment.states() == [(5, "refunded")]


def test_refund_of_everything_before_the_request_keeps_it_from_being_paid(payment: Payment) -> None:
    answers = payment.tell(refund(5, None), request(5), refund(5, None, "refund-2"))
    assert [each["data"].get("refund_id") for each in answers] == ["refund-1", "refund-2"]
    assert payment.states() == []


def test_refund_of_everything_gives_back_all_payments(payment: Payment, client: FlaskClient) -> None:
    for _ in range(2):
        client.post("/payments", json={"order_id": 5, "user_id": 1, "amount": 38000})
    payment.tell(refund(5, 1))
    payment.tell(refund(5, None))
    assert payment.states() == [(5, "refunded"), (5, "refunded")]


def test_second_payment_of_an_order_is_given_back_alone(payment: Payment, client: FlaskClient) -> None:
    for _ in range(2):
        client.post("/payments", json={"order_id": 5, "user_id": 1, "amount": 38000})
    payment.outbox()

    [_, again] = payment.tell(refund(5, 2), request(5))

    assert payment.states() == [(5, "paid"), (5, "refunded")]
    assert again["data"]["payment_id"] == 1


@pytest.mark.parametrize("payment_id", [2, 99, "01", "somebody else's", 10**30])
def test_refund_of_a_payment_not_of_this_order_is_confirmed_and_changes_nothing(
    payment: Payment, payment_id: object
) -> None:
    payment.tell(request(5), request(6))
    assert types(payment.tell(refund(5, payment_id))) == ["PaymentRefunded"]
    assert payment.states() == [(5, "paid"), (6, "paid")]


@pytest.mark.parametrize(
    "unreadable",
    [
        b"{",
        event("OrderPaid", {"order_id": 5}),
        request(0),
        request(5, -1),
        request(5, "much"),
        request(5, 1234567890123456),
        request(5).replace(b"38000", b"NaN"),
        event("RefundRequested", {"order_id": 5, "refund_id": "1"}),
    ],
)
def test_unreadable_message_is_left_behind_alone(payment: Payment, unreadable: bytes) -> None:
    answers = payment.tell(request(1), unreadable, request(2))
    assert [each["data"]["order_id"] for each in answers] == [1, 2]


def test_posted_payment_is_recorded_and_announced(client: FlaskClient, payment: Payment) -> None:
    answer = client.post("/payments", data=b'{"order_id": 5, "user_id": 1, "amount": 38000.0}')

    assert (answer.status_code, answer.json) == (201, {"message": "Pembayaran diproses", "payment_id": 1})
    [completed] = payment.outbox()
    assert completed["data"] == {"order_id": 5, "payment_id": 1, "amount": 38000}


def test_payments_are_found_by_id_and_by_order(client: FlaskClient, payment: Payment) -> None:
    payment.tell(request(5), request(6), refund(6, None))

    first = {"id": 1, "order_id": 5, "user_id": 1, "amount": 38000, "status": "paid"}
    second = first | {"id": 2, "order_id": 6, "status": "refunded"}
    assert client.get("/payments/1").json == first
    assert client.get("/payments").json == [first, second]
    assert client.get("/payments?order_id=6").json == [second]
    assert client.get("/payments?order_id=7").json == []


@pytest.mark.parametrize("query", ["order_id=x", "order_id=", f"order_id={10**30}"])
def test_search_for_no_order_id_is_400(client: FlaskClient, query: str) -> None:
    assert client.get(f"/payments?{query}").status_code == 400


def test_unknown_payment_is_404(client: FlaskClient) -> None:
    answer = client.get("/payments/9")
    assert (answer.status_code, answer.json) == (404, {"message": "Pembayaran tidak ditemukan."})


@pytest.mark.parametrize(
    "body", [b"", b'{"order_id": 5}', b'{"order_id": 5, "user_id": 1, "amount": -1}', b'{"order_id": "5x"}']
)
def test_incomplete_payment_is_400(client: FlaskClient, payment: Payment, body: bytes) -> None:
    assert client.post("/payments", data=body).status_code == 400
    assert payment.outbox() == []


@contextmanager
def running(directory: Path, amqp_url: str, mode: str) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """The service as a process, on a free port."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    own = {"PAYMENT_PORT": str(port), "SANDBOX_DIR": str(directory), "RABBITMQ_URL": amqp_url}
    environment = os.environ | own | {"PAYMENT_MODE": mode}
    with subprocess.Popen([sys.executable, "-m", "sandbox.payment"], env=environment) as process:
        try:
            yield process, f"http://127.0.0.1:{port}"
        finally:
            process.kill()


def at_broker(url: str) -> bool:
    with suppress(httpx2.TransportError):
        return bool(httpx2.get(f"{url}/healthz").json() == {"status": "ok", "broker": "connected"})
    return False


@pytest.fixture
def channel(amqp_url: str) -> Iterator[BlockingChannel]:
    """The Order Service's place at the broker."""
    with closing(pika.BlockingConnection(pika.URLParameters(amqp_url))) as connection:
        channel = connection.channel()
        channel.exchange_declare("restaurant.events", "topic", durable=True)
        channel.queue_declare("listener", exclusive=True)
        for routing_key in ("payment.completed", "payment.failed", "payment.refunded"):
            channel.queue_bind("listener", "restaurant.events", routing_key)
        channel.confirm_delivery()
        yield channel


def publish(channel: BlockingChannel, routing_key: str, body: bytes) -> None:
    """Raises when no queue takes it."""
    properties = pika.BasicProperties(delivery_mode=2, headers={"traceparent": TRACE})
    channel.basic_publish("restaurant.events", routing_key, body, properties, mandatory=True)


def hear(channel: BlockingChannel) -> Heard | None:
    method, properties, body = channel.basic_get("listener", auto_ack=True)
    if method is None or properties is None or body is None:
        return None
    return str(method.routing_key), properties, json.loads(body)


def test_process_pays_and_refunds_over_the_broker(
    amqp_url: str, channel: BlockingChannel, tmp_path: Path, eventually: Eventually
) -> None:
    with running(tmp_path / "sandbox", amqp_url, "auto") as (process, url):
        eventually(lambda: at_broker(url), "the Payment Service at the broker")

        publish(channel, "payment.requested", request(5))
        routing_key, properties, completed = eventually(lambda: hear(channel), "PaymentCompleted")
        publish(channel, "payment.refund_requested", refund(5, completed["data"]["payment_id"]))
        refunded: Heard = eventually(lambda: hear(channel), "PaymentRefunded")

        assert routing_key == "payment.completed"
        assert (properties.type, properties.app_id) == ("PaymentCompleted", "payment-service")
        assert (properties.correlation_id, properties.headers) == ("5", {"traceparent": TRACE})
        assert refunded[0] == "payment.refunded"
        assert httpx2.get(f"{url}/payments/1").json()["status"] == "refunded"
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=5) == 0


def test_process_announces_a_payment_made_by_hand(
    amqp_url: str, channel: BlockingChannel, tmp_path: Path, eventually: Eventually
) -> None:
    body = {"order_id": 5, "user_id": 1, "amount": 38000}
    with running(tmp_path / "sandbox", amqp_url, "manual") as (_, url):
        eventually(lambda: at_broker(url), "the Payment Service at the broker")
        httpx2.post(f"{url}/payments", json=body, headers={"traceparent": TRACE}).raise_for_status()

        _, properties, completed = eventually(lambda: hear(channel), "PaymentCompleted")
        assert completed["data"] == {"order_id": 5, "payment_id": 1, "amount": 38000}
        assert properties.headers == {"traceparent": TRACE}


def exists(amqp_url: str, exchange: str) -> bool:
    with closing(pika.BlockingConnection(pika.URLParameters(amqp_url))) as connection:
        try:
            connection.channel().exchange_declare(exchange, passive=True)
        except pika.exceptions.ChannelClosedByBroker:
            return False
        return True


def test_process_declares_a_lost_exchange_again_and_keeps_what_it_had_to_say(
    amqp_url: str, channel: BlockingChannel, tmp_path: Path, eventually: Eventually
) -> None:
    body = {"order_id": 5, "user_id": 1, "amount": 38000}
    with running(tmp_path / "sandbox", amqp_url, "manual") as (_, url):
        eventually(lambda: at_broker(url), "the Payment Service at the broker")
        channel.exchange_delete("restaurant.events")
        httpx2.post(f"{url}/payments", json=body).raise_for_status()

        eventually(lambda: exists(amqp_url, "restaurant.events"), "the exchange to be declared again")
        channel.queue_bind("listener", "restaurant.events", "payment.completed")
        eventually(lambda: hear(channel), "PaymentCompleted")


def test_unknown_mode_is_refused_at_start(tmp_path: Path) -> None:
    environment = os.environ | {"PAYMENT_MODE": "sometimes", "SANDBOX_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "sandbox.payment"]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30, check=False)
    assert ended.returncode == 1
    assert "PAYMENT_MODE" in ended.stderr
