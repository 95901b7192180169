"""The sandbox's Payment Service without a broker: what it charges and refunds, and its HTTP side."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sandbox.siblings.payment import create_app, create_service
from tests.integration.sandbox_service import Direct, direct, event, refund, request, types

POSTED = {"order_id": 5, "user_id": 1, "amount": 38000}
COMPLETED = {"order_id": 5, "payment_id": 1, "amount": 38000}


@pytest.fixture
def payment(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Direct]:
    """In automatic mode, unless a test is parametrized with another."""
    with direct(create_service(tmp_path / "payment.db", getattr(request, "param", "auto")), create_app) as payment:
        yield payment


def states(payment: Direct) -> list[tuple[Any, ...]]:
    """Of every payment, its order and its status."""
    return payment.rows("SELECT order_id, status FROM payments ORDER BY id")


def test_payment_is_made_once_and_a_repeated_request_gets_the_same_reply_in_a_new_event(payment: Direct) -> None:
    [first, again] = payment.tell(request(5), request(5))

    assert (first["type"], first["source"], first["data"]) == ("PaymentCompleted", "/payment-service", COMPLETED)
    assert again["data"] == first["data"]
    assert again["id"] != first["id"]
    assert states(payment) == [(5, "paid")]


def test_failed_payment_stays_failed_when_its_request_is_repeated(payment: Direct) -> None:
    payment.client.put("/faults", json={"reject": True})
    [failed] = payment.tell(request(5))
    payment.client.put("/faults", json={})

    [again, completed] = payment.tell(request(5), request(6))

    assert types([failed, again, completed]) == ["PaymentFailed", "PaymentFailed", "PaymentCompleted"]
    assert again["data"] == failed["data"]
    assert states(payment) == [(6, "paid")]


def test_fractional_amount_stays_exact(payment: Direct) -> None:
    [completed] = payment.tell(request(5).replace(b"38000", b"9999999999999.90"))
    assert json.dumps(completed["data"]["amount"]) == "9999999999999.9"


@pytest.mark.parametrize("payment", ["manual"], indirect=True)
def test_manual_mode_waits_for_a_posted_payment(payment: Direct) -> None:
    assert (payment.tell(request(5)), states(payment)) == ([], [])

    payment.client.post("/payments", json=POSTED)
    assert types(payment.outbox()) == ["PaymentCompleted"]
    [again] = payment.tell(request(5))
    assert again["data"] == COMPLETED


@pytest.mark.parametrize("payment_id", [1, "1", None])
def test_payment_is_refunded_once_and_every_request_confirmed(payment: Direct, payment_id: object) -> None:
    payment.tell(request(5), request(6))

    replies = payment.tell(refund(5, payment_id, "refund-1"), refund(5, payment_id, "refund-1"), refund(5, 1, 2))

    assert types(replies) == ["PaymentRefunded"] * 3
    assert [each["data"]["refund_id"] for each in replies] == ["refund-1", "refund-1", 2]
    assert payment.tell(request(5)) == []
    assert states(payment) == [(5, "refunded"), (6, "paid")]


def test_refund_of_everything_before_the_request_prevents_its_payment(payment: Direct) -> None:
    replies = payment.tell(refund(5, None), request(5), refund(5, None, "refund-2"))
    assert [each["data"].get("refund_id") for each in replies] == ["refund-1", "refund-2"]
    assert states(payment) == []


def test_second_payment_is_refunded_alone_and_then_everything(payment: Direct) -> None:
    for _ in range(2):
        payment.client.post("/payments", json=POSTED)
    payment.outbox()

    [_, again] = payment.tell(refund(5, 2), request(5))
    assert states(payment) == [(5, "paid"), (5, "refunded")]
    assert again["data"]["payment_id"] == 1

    payment.tell(refund(5, None))
    assert states(payment) == [(5, "refunded"), (5, "refunded")]


def test_refund_of_everything_refunds_all_payments_of_the_order(payment: Direct) -> None:
    for _ in range(2):
        payment.client.post("/payments", json=POSTED)
    payment.tell(refund(5, None))
    assert states(payment) == [(5, "refunded"), (5, "refunded")]


@pytest.mark.parametrize("payment_id", [2, 99, "01", "another's", 10**30])
def test_refund_of_a_payment_not_of_this_order_is_confirmed_and_changes_nothing(
    payment: Direct, payment_id: object
) -> None:
    payment.tell(request(5), request(6))
    assert types(payment.tell(refund(5, payment_id))) == ["PaymentRefunded"]
    assert states(payment) == [(5, "paid"), (6, "paid")]


@pytest.mark.parametrize(
    "invalid",
    [
        b"{",
        event("OrderPaid", order_id=5),
        request(0),
        request(5, -1),
        request(5, "much"),
        request(5, 1234567890123456),
        request(5).replace(b"38000", b"NaN"),
        event("RefundRequested", order_id=5, refund_id="1"),
    ],
)
def test_invalid_message_is_dropped_alone(payment: Direct, invalid: bytes) -> None:
    replies = payment.tell(request(1), invalid, request(2))
    assert [each["data"]["order_id"] for each in replies] == [1, 2]


def test_posted_payment_is_recorded_and_published(payment: Direct) -> None:
    response = payment.client.post("/payments", data=b'{"order_id": 5, "user_id": 1, "amount": 38000.0}')

    assert (response.status_code, response.json) == (201, {"message": "Pembayaran diproses", "payment_id": 1})
    assert [each["data"] for each in payment.outbox()] == [COMPLETED]


def test_payments_are_found_by_id_and_by_order(payment: Direct) -> None:
    payment.tell(request(5), request(6), refund(6, None))

    first = {"id": 1, **POSTED, "status": "paid"}
    second = first | {"id": 2, "order_id": 6, "status": "refunded"}
    for path, found in {"/1": first, "": [first, second], "?order_id=6": [second], "?order_id=7": []}.items():
        assert payment.client.get(f"/payments{path}").json == found


@pytest.mark.parametrize("query", ["order_id=x", "order_id=", f"order_id={10**30}"])
def test_search_for_an_invalid_order_id_is_400(payment: Direct, query: str) -> None:
    assert payment.client.get(f"/payments?{query}").status_code == 400


def test_unknown_payment_is_404(payment: Direct) -> None:
    response = payment.client.get("/payments/9")
    assert (response.status_code, response.json) == (404, {"message": "Pembayaran tidak ditemukan."})


@pytest.mark.parametrize(
    "body", [b"", b'{"order_id": 5}', b'{"order_id": 5, "user_id": 1, "amount": -1}', b'{"order_id": "5x"}']
)
def test_incomplete_payment_is_400(payment: Direct, body: bytes) -> None:
    assert payment.client.post("/payments", data=body).status_code == 400
    assert payment.outbox() == []
