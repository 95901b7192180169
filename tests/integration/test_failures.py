"""A client reads why its order failed, wherever it reads the order."""

import json
from typing import Any

import pytest

from order_service.domain.messages import Message
from order_service.domain.order import State
from order_service.process import utc_now
from order_service.web.failures import MESSAGES, message
from tests.builders import (
    menu_rejected,
    menu_reserved,
    order_after,
    order_request,
    payment_completed,
    payment_failed,
    policy,
)
from tests.http_service import ANSWER_SECONDS, ORDER_KEYS, RESPOND_ASYNC, Service, body_of, problem
from tests.integration import core

ENGLISH = {"Accept-Language": "en"}
#: For each reason: the messages that lead to it, expected_total, and the message in Indonesian and in English.
FAILURES: dict[str, tuple[tuple[Message, ...], int | None, str, str]] = {
    "menu_not_found": (
        (menu_rejected("menu_not_found", 9),), None,
        "Menu item 9 tidak ditemukan.", "Menu item 9 was not found.",
    ),
    "out_of_stock": (
        (menu_rejected("out_of_stock", 2),), None,
        "Menu item 2 kehabisan stok.", "Menu item 2 is out of stock.",
    ),
    "price_changed": (
        (menu_reserved(),), 37000,
        "Total harga berubah: seharusnya 37000, sekarang 38000.",
        "The total price has changed: expected 37000, now 38000.",
    ),
    "payment_failed": ((menu_reserved(), payment_failed()), None, "Pembayaran gagal.", "The payment failed."),
    "amount_mismatch": (
        (menu_reserved(), payment_completed("P1", 37000)), None,
        "Jumlah pembayaran salah: dibayar 37000, seharusnya 38000.",
        "The wrong amount was paid: 37000 instead of 38000.",
    ),
    "expired": ((), None, "Menu tidak menjawab tepat waktu.", "The menu did not answer in time."),
    "expired unpaid": ((menu_reserved(),), None, "Pembayaran tidak diterima tepat waktu.", "No payment came in time."),
}  # fmt: skip


def failed(service: Service, messages: tuple[Message, ...], expected_total: int | None) -> int:
    """The id of a new order that has failed after these messages, or else by its deadline."""
    fields = {} if expected_total is None else {"expected_total": expected_total}
    order_id: int = body_of(service.post(order_request(**fields), RESPOND_ASYNC))["id"]
    service.receive(order_id, *messages)
    core.clear_outbox(service.database)
    core.pass_deadlines(service.database, utc_now() + policy().lifetime)
    return order_id


def streamed(service: Service, order_id: int, headers: dict[str, str] | None = None) -> Any:
    """The order as the first event of its stream shows it."""
    with service.client.get(f"/orders/{order_id}/events", headers=headers, buffered=False) as stream:
        event = next(stream.iter_encoded()).decode()
    return json.loads(dict(line.split(": ", 1) for line in event.splitlines() if line)["data"])


def test_every_reason_has_a_message_that_is_tested() -> None:
    assert MESSAGES.keys() == {reason.split()[0] for reason in FAILURES}


@pytest.mark.parametrize(
    ("reason", "messages", "expected_total", "indonesian", "english"),
    [(reason.split()[0], *failure) for reason, failure in FAILURES.items()],
    ids=list(FAILURES),
)
def test_failed_order_says_why_in_the_clients_language_wherever_it_is_read(
    service: Service,
    reason: str,
    messages: tuple[Message, ...],
    expected_total: int | None,
    indonesian: str,
    english: str,
) -> None:
    # given
    order_id = failed(service, messages, expected_total)

    # when
    for headers, text in [({}, indonesian), (ENGLISH, english)]:
        answer = service.get(f"/orders/{order_id}", headers)
        listed = service.get("/orders", headers)

        # then
        body = body_of(answer)
        assert list(body) == [*ORDER_KEYS, "reason", "message"]
        assert (body["reason"], body["message"]) == (reason, text)
        assert body_of(listed)["orders"] == [body]
        assert streamed(service, order_id, headers) == body
        assert answer.headers["Vary"] == listed.headers["Vary"] == "Accept-Language"
    events = body_of(service.get(f"/orders/{order_id}/history"))["events"]
    assert [entry.get("reason") for entry in events] == [None] * (len(events) - 1) + [reason]
    assert all("reason" not in entry for entry in events[:-1])


def test_reported_failure_is_answered_with_its_reason_and_only_the_first_entry_has_it(service: Service) -> None:
    order_id = service.order_in(State.AWAITING_PAYMENT)

    first, repeat = service.put_payment(order_id, "failed"), service.put_payment(order_id, "failed")
    service.receive(order_id, payment_failed())

    assert (first.status_code, first.json, repeat.json) == (200, service.get_order(order_id), first.json)
    assert body_of(first)["reason"] == "payment_failed"
    events = body_of(service.get(f"/orders/{order_id}/history"))["events"]
    assert [entry["type"] for entry in events if "reason" in entry] == ["PutFailed"]


@pytest.mark.parametrize(("method", "path"), [("DELETE", ""), ("PUT", "/payment")])
def test_refused_change_of_a_failed_order_says_why_it_failed(service: Service, method: str, path: str) -> None:
    order_id = service.order_in(State.FAILED)

    def refused(headers: dict[str, str]) -> dict[str, Any]:
        answer = service.client.open(
            f"/orders/{order_id}{path}", method=method, json={"payment_status": "paid"}, headers=headers
        )
        found = problem(answer, 409, "order_failed")
        assert (found["order_id"], found["reason"]) == (order_id, "out_of_stock")
        return found

    assert refused({})["message"] == "Pesanan sudah gagal. Menu item 2 kehabisan stok."
    assert refused(ENGLISH)["message"] == "The order has already failed. Menu item 2 is out of stock."


#: How an order ends whose POST waits or is repeated, and the problem: code, reason and message.
ENDS: dict[str, tuple[tuple[Message, ...], int, str, str | None, str]] = {
    "rejected": ((menu_rejected(),), 400, "out_of_stock", None, "Menu item 2 kehabisan stok."),
    "payment failed": (
        (payment_failed(),), 409, "order_failed", "payment_failed", "Pesanan sudah gagal. Pembayaran gagal.",
    ),
    "wrong amount": (
        (payment_completed("P1", 1), menu_reserved()), 409, "order_failed", "amount_mismatch",
        "Pesanan sudah gagal. Jumlah pembayaran salah: dibayar 1, seharusnya 38000.",
    ),
    "cancelled": ((), 409, "order_cancelled", "cancelled", "Pesanan sudah dibatalkan."),
}  # fmt: skip


@pytest.mark.parametrize(("messages", "status", "code", "reason", "message"), ENDS.values(), ids=ENDS)
def test_order_that_failed_or_was_cancelled_is_never_answered_as_created(
    service: Service, messages: tuple[Message, ...], status: int, code: str, reason: str | None, message: str
) -> None:
    # given
    headers = {"Idempotency-Key": "k1", "Prefer": "wait=30"}
    order_id, waiting = service.post_waiting(headers=headers)

    # when
    if messages:
        service.receive(order_id, *messages)
    else:
        service.cancel(order_id)

    # then: while the request waits, and when it is repeated
    for answer in (waiting.result(ANSWER_SECONDS), service.post(headers=headers)):
        found = problem(answer, status, code)
        assert (found["order_id"], found.get("reason"), found["message"]) == (order_id, reason, message)
        assert answer.headers["Preference-Applied"] == "wait=30"
        assert "Location" not in answer.headers
    assert service.rows()[0] == 1


@pytest.mark.parametrize("state", [state for state in State if state is not State.FAILED])
def test_order_that_has_not_failed_has_exactly_the_six_members(service: Service, state: State) -> None:
    order_id = service.order_in(state)

    bodies = [service.get_order(order_id), *body_of(service.get("/orders"))["orders"], streamed(service, order_id)]

    assert [list(body) for body in bodies] == [ORDER_KEYS] * 3
    assert all("reason" not in entry for entry in body_of(service.get(f"/orders/{order_id}/history"))["events"])


def test_etag_of_a_failed_order_is_that_of_its_language(service: Service) -> None:
    # given
    path = f"/orders/{service.order_in(State.FAILED)}"
    indonesian, english = service.get(path).headers["ETag"], service.get(path, ENGLISH).headers["ETag"]

    # when
    seen = [
        (etag, service.get(path, {"If-None-Match": etag}), service.get(path, ENGLISH | {"If-None-Match": etag}))
        for etag in (indonesian, english)
    ]

    # then
    assert [(first.status_code, second.status_code) for _, first, second in seen] == [(304, 200), (200, 304)]
    assert {answer.headers["Vary"] for _, *answers in seen for answer in answers} == {"Accept-Language"}


def test_reason_of_a_newer_version_has_a_message_too() -> None:
    order = order_after(menu_rejected("out_of_stock", 2))
    order.reason = "kitchen_closed"

    assert (message(order, english=False), message(order, english=True)) == ("Pesanan gagal.", "The order has failed.")
