"""PUT /orders/{id}/payment: its answers in every state, and requests about orders that do not exist."""

import json
from typing import Any

import pytest
from flask.testing import FlaskClient
from structlog.testing import capture_logs

from order_service.domain.order import State
from order_service.storage.history import MAX_ENTRIES
from tests.builders import payment_failed
from tests.http_service import JSON_HEADERS, ORDER_KEYS, Service, body_of, problem
from tests.integration import core

#: By the status in the request, in the sequence of the states: 200 if and only if the order then has that status. A
#: failed attempt beside a known payment decides nothing.
ANSWERS = {
    "paid": [202, 202, 200, 200, 409, 409],
    "failed": [200, 409, 200, 409, 200, 409],
    "pending": [200, 200, 200, 409, 409, 409],
}


@pytest.mark.parametrize(
    ("state", "wanted", "expected"),
    [(state, wanted, answer) for wanted, row in ANSWERS.items() for state, answer in zip(State, row, strict=True)],
)
def test_put_payment_answers_as_the_decision_table_says(
    service: Service, state: State, wanted: str, expected: int
) -> None:
    # given
    order_id = service.order_in(state)
    before, rows = service.get_order(order_id), service.rows()

    # when
    answer = service.put_payment(order_id, wanted)

    # then
    after = service.get_order(order_id)
    assert answer.status_code == expected, answer.text
    if expected == 409:
        status = "paid" if state is State.AWAITING_MENU_PREPAID else before["status"]
        conflict = problem(answer, 409, f"order_{status}")
        assert (conflict["order_id"], after) == (order_id, before)
    else:
        assert list(body_of(answer)) == ORDER_KEYS + ["reason", "message"] * (after["status"] == "failed")
        assert body_of(answer) == after
        assert (expected == 200) == (after["status"] == wanted)
        # A repeated request changes and announces nothing.
        assert before["status"] != wanted or service.rows() == rows


@pytest.mark.parametrize("state", [State.FAILED, State.CANCELLED])
def test_refused_report_of_a_payment_is_in_the_history_and_in_the_log(service: Service, state: State) -> None:
    # given
    order_id = service.order_in(state)
    etag = service.get(f"/orders/{order_id}").headers["ETag"]

    # when
    with capture_logs() as lines:
        for status in ("paid", "failed", "pending"):
            service.put_payment(order_id, status)

    # then
    events = body_of(service.get(f"/orders/{order_id}/history"))["events"]
    entries = [(entry["type"], entry["from"], entry["to"]) for entry in events if entry["type"].startswith("Put")]
    assert entries == [("PutPaid", state, state)]
    assert "reason" not in events[-1]
    [warning] = [line for line in lines if line["log_level"] == "warning"]
    reason = {State.FAILED: "out_of_stock", State.CANCELLED: "cancelled"}[state]
    assert "refused" in warning["event"]
    assert (warning["order_id"], warning["state"], warning["reason"]) == (order_id, state, reason)
    assert service.get(f"/orders/{order_id}").headers["ETag"] == etag


def test_refused_report_is_not_added_to_a_full_history(service: Service) -> None:
    order_id = service.order_in(State.CANCELLED)
    service.receive(order_id, *[payment_failed()] * MAX_ENTRIES)

    problem(service.put_payment(order_id), 409, "order_cancelled")

    assert len(core.history_of(service.database, order_id)) == MAX_ENTRIES


@pytest.mark.parametrize("id", ["0", "1", "2147483648", "9" * 19, "9" * 40, "1" + "0" * 400])
def test_unknown_order_is_404(service: Service, id: str) -> None:
    for answer in (service.get(f"/orders/{id}"), service.put_payment(id)):
        problem(answer, 404, "order_not_found")


@pytest.mark.parametrize(
    "body",
    [
        {}, {"status": "paid"},
        *({"payment_status": value} for value in (
            None, "", "PAID", "cancelled", " paid", True, 1, ["paid"], {"paid": True}, "\x00", "\ud800",
        )),
    ],
)  # fmt: skip
@pytest.mark.parametrize("id", ["1", "9" * 30])
def test_any_other_payment_status_is_400_before_the_order_is_looked_for(
    client: FlaskClient, body: Any, id: str
) -> None:
    # when
    answer = client.put(f"/orders/{id}/payment", data=json.dumps(body), headers=JSON_HEADERS)

    # then
    found = problem(answer, 400, "invalid_payment_status")
    assert found["message"] == "Status pembayaran tidak valid."
    assert [error["field"] for error in found["errors"]] == ["payment_status"]
    assert "pending, paid" in found["errors"][0]["message"]
