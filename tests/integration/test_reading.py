"""What a client reads: pages of orders, and versions of one."""

from base64 import b32encode

import pytest
from werkzeug.test import TestResponse

from order_service.domain.order import State
from tests.builders import order_request, payment_failed, reply
from tests.http_service import RESPOND_ASYNC, Service, body_of, problem


def pages_of(service: Service, query: str) -> list[list[int]]:
    """The ids of every page, each fetched by the cursor of the previous page."""
    pages, more = [], ""
    while True:
        page = body_of(service.get(f"/orders?{query}{more}"))
        pages.append([order["id"] for order in page["orders"]])
        if page["next_cursor"] is None:
            return pages
        more = f"&cursor={page['next_cursor']}"


def test_pages_go_from_the_newest_to_the_oldest_without_gap_or_repeat(service: Service) -> None:
    ids = [service.order_in(State.AWAITING_MENU) for _ in range(5)]

    assert pages_of(service, "limit=2") == [ids[:2:-1], ids[2:0:-1], ids[:1]]
    assert pages_of(service, "limit=5") == [ids[::-1]]
    assert pages_of(service, "") == [ids[::-1]]


def test_order_placed_between_two_pages_shifts_no_other(service: Service) -> None:
    # given
    first, second, third = (service.order_in(State.AWAITING_MENU) for _ in range(3))

    # when
    page = body_of(service.get("/orders?limit=2"))
    service.order_in(State.AWAITING_MENU)
    rest = body_of(service.get(f"/orders?limit=2&cursor={page['next_cursor']}"))

    # then
    assert [order["id"] for order in page["orders"]] == [third, second]
    assert [order["id"] for order in rest["orders"]] == [first]


def test_filters_are_by_user_and_by_public_status_and_hold_on_every_page(service: Service) -> None:
    # given
    by_state = {state: service.order_in(state) for state in State}
    theirs = [body_of(service.post(order_request(user_id=2), RESPOND_ASYNC))["id"] for _ in range(3)]
    pending = [id for state, id in by_state.items() if state.status == "pending"]

    # when, then
    assert pages_of(service, "status=pending&user_id=1&limit=1") == [[id] for id in sorted(pending, reverse=True)]
    assert pages_of(service, "user_id=2&limit=2") == [theirs[:0:-1], theirs[:1]]
    for state in (State.PAID, State.FAILED, State.CANCELLED):
        assert pages_of(service, f"status={state.status}") == [[by_state[state]]]
    assert pages_of(service, "user_id=3") == [[]]


def history_pages(service: Service, order_id: int, limit: int) -> list[list[str]]:
    """The types of the entries of every page."""
    pages, more = [], ""
    while True:
        page = body_of(service.get(f"/orders/{order_id}/history?limit={limit}{more}"))
        assert page.keys() == {"events", "next_cursor"}
        pages.append([entry["type"] for entry in page["events"]])
        if page["next_cursor"] is None:
            return pages
        more = f"&cursor={page['next_cursor']}"


def test_history_is_read_in_pages_from_the_oldest_entry_on(service: Service) -> None:
    other, order_id = (service.order_in(State.PAID) for _ in range(2))
    service.apply(*(reply(order_id, payment_failed(), id=f"failed-{number}") for number in range(2)))

    whole = ["OrderPlaced", "MenuReserved", "PaymentCompleted", "PaymentFailed", "PaymentFailed"]
    assert history_pages(service, order_id, 1) == [[each] for each in whole]
    assert history_pages(service, order_id, 2) == [whole[:2], whole[2:4], whole[4:]]
    assert history_pages(service, order_id, 5) == [whole]
    assert history_pages(service, other, 2) == [whole[:2], whole[2:3]]
    assert len(body_of(service.get(f"/orders/{order_id}/history"))["events"]) == 5


def test_entry_added_between_two_pages_of_a_history_is_on_the_last_page(service: Service) -> None:
    order_id = service.order_in(State.AWAITING_PAYMENT)

    page = body_of(service.get(f"/orders/{order_id}/history?limit=1"))
    assert service.put_payment(order_id).status_code == 200
    rest = body_of(service.get(f"/orders/{order_id}/history?cursor={page['next_cursor']}"))

    assert [entry["type"] for entry in page["events"] + rest["events"]] == ["OrderPlaced", "MenuReserved", "PutPaid"]
    assert rest["next_cursor"] is None


def test_cursor_of_any_number_is_accepted(service: Service) -> None:
    order_id = service.order_in(State.PAID)

    for number, length in [(0, 2), (2**63 - 1, 0)]:
        cursor = b32encode(b"after:%d" % number).decode()
        assert len(body_of(service.get(f"/orders/{order_id}/history?cursor={cursor}"))["events"]) == length
        assert len(body_of(service.get(f"/orders?cursor={cursor}"))["orders"]) == (number > 0)
    beyond = b32encode(b"after:%d" % 2**63).decode()
    problem(service.get(f"/orders?cursor={beyond}"), 422, "invalid_request")


@pytest.mark.parametrize("query", ["limit=0", "limit=101", "cursor=", "cursor=1", "limit=1&limit=1", "status=paid"])
def test_invalid_query_of_a_history_is_422_naming_its_parameter(service: Service, query: str) -> None:
    found = problem(service.get(f"/orders/1/history?{query}"), 422, "invalid_request")

    assert [error["field"] for error in found["errors"]] == [query.split("=")[0]]


@pytest.mark.parametrize(
    "query",
    [
        "user_id=", "user_id=0", "user_id=1.0", "user_id=+1", "user_id=2147483648", "user_id=1&user_id=1",
        "status=", "status=PAID", "status=awaiting_menu", "limit=0", "limit=101", "limit=x", "cursor=", "cursor=7",
        "note=1",
    ],
)  # fmt: skip
def test_invalid_query_is_422_naming_its_parameter(service: Service, query: str) -> None:
    found = problem(service.get(f"/orders?{query}"), 422, "invalid_request")

    assert [error["field"] for error in found["errors"]] == [query.split("=")[0]]


def test_etag_changes_with_the_order_and_until_then_the_answer_is_304(service: Service) -> None:
    # given
    order_id = service.order_in(State.AWAITING_PAYMENT)
    etag = service.get(f"/orders/{order_id}").headers["ETag"]

    def again(seen: str) -> TestResponse:
        return service.get(f"/orders/{order_id}", headers={"If-None-Match": seen})

    # when, then
    same = again(etag)
    assert (same.status_code, same.data, same.headers["ETag"]) == (304, b"", etag)
    assert again('"another"').status_code == 200
    assert again(f'"another", {etag}').status_code == 304
    assert (again(f"W/{etag}").status_code, again("*").status_code, again("nonsense").status_code) == (304, 304, 200)
    # Any other condition is ignored.
    for name, value in [
        ("If-Match", '"another"'), ("If-Unmodified-Since", "Thu, 02 Jan 2020 03:04:05 GMT"), ("Range", "bytes=0-3"),
        ("If-Modified-Since", "Thu, 02 Jan 2120 03:04:05 GMT"), ("If-Range", etag),
    ]:  # fmt: skip
        found = service.get(f"/orders/{order_id}", headers={name: value})
        assert (found.status_code, found.headers["ETag"]) == (200, etag), name
    assert service.get("/orders/1", headers={"If-Match": '"x"', "If-None-Match": etag}).status_code == 304

    # and
    changed = service.put_payment(order_id)
    assert changed.headers["ETag"] != etag
    assert (again(etag).status_code, again(changed.headers["ETag"]).status_code) == (200, 304)
