"""POST /orders: what the client's documents fix to the letter, with the menu's reply in time, late, or negative."""

import json
import re
from datetime import UTC, datetime
from decimal import Decimal

import pytest
import sqlalchemy as sa

from order_service.domain.messages import Item, Message
from order_service.storage.tables import outbox
from tests.builders import REQUEST_TOTAL, menu_rejected, menu_reserved, order_request, payment_completed
from tests.http_service import RESPOND_ASYNC, Service, body_of, problem


@pytest.mark.parametrize("reply", [menu_reserved(), None], ids=["reserved in time", "silent menu"])
def test_location_answers_the_body_of_the_post(service: Service, reply: Message | None) -> None:
    # when
    posted = service.post_with_reply(reply) if reply else service.post(headers={"Prefer": "wait=0"})
    found = service.get(posted.headers["Location"])

    # then
    assert posted.status_code == (201 if reply else 202)
    assert posted.headers["Location"] == f"/orders/{body_of(posted)['id']}"
    assert (found.status_code, found.text) == (200, posted.text)


def test_prices_are_json_numbers_without_a_trailing_zero(service: Service) -> None:
    # given
    reserved = menu_reserved("R1", Item(1, "Teh", Decimal("0.1"), 3), Item(2, "Nasi", Decimal("18000.00"), 1))

    # when
    answer = service.post_with_reply(reserved, order_request(menu_ids=[1, 1, 1, 2]))

    # then
    body = json.loads(answer.text, parse_float=str)
    assert [item["price"] for item in body["items"]] == ["0.1", "0.1", "0.1", 18000]
    assert body["total_price"] == "18000.3"


def test_items_are_one_per_requested_id_in_order_with_repeats(service: Service) -> None:
    body = body_of(service.post_with_reply(menu_reserved(), {"user_id": 7, "menu_ids": [2, 1, 2, 2]}))

    assert [(item["id"], item["stock"]) for item in body["items"]] == [(2, 6), (1, 14), (2, 6), (2, 6)]
    assert (body["user_id"], body["total_price"]) == (7, 78000)


def test_created_at_is_rfc_3339_in_utc(service: Service) -> None:
    # given
    before = datetime.now(UTC)

    # when
    created_at = body_of(service.post(headers=RESPOND_ASYNC))["created_at"]

    # then
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", created_at)
    assert before <= datetime.fromisoformat(created_at) <= datetime.now(UTC)


def test_hundred_dishes_of_the_largest_ids_are_one_order(service: Service) -> None:
    answer = service.post({"user_id": 2**31 - 1, "menu_ids": [2**31 - 1] * 100}, RESPOND_ASYNC)

    assert (answer.status_code, len(body_of(answer)["items"])) == (202, 100)


def test_names_are_returned_as_the_menu_wrote_them(service: Service) -> None:
    name = 'Mie "Äyam" 🍜 \\ </script>'

    answer = service.post_with_reply(menu_reserved(None, Item(1, name, Decimal(1), 0)), order_request(menu_ids=[1]))

    assert body_of(answer)["items"] == [{"id": 1, "name": name, "price": 1, "stock": 0}]


@pytest.mark.parametrize(
    ("code", "menu_id", "status", "indonesian", "english"),
    [
        ("menu_not_found", 9, 404, "Menu item 9 tidak ditemukan.", "Menu item 9 was not found."),
        ("out_of_stock", 2, 400, "Menu item 2 kehabisan stok.", "Menu item 2 is out of stock."),
    ],
)
def test_rejected_order_is_the_clients_error_with_the_orders_id(
    service: Service, code: str, menu_id: int, status: int, indonesian: str, english: str
) -> None:
    for order_id, (language, message) in enumerate([("id", indonesian), ("en", english)], 1):
        # when
        answer = service.post_with_reply(menu_rejected(code, menu_id), headers={"Accept-Language": language})

        # then
        found = problem(answer, status, code)
        assert (found["message"], found["order_id"]) == (message, order_id)
        assert service.get_order(order_id)["status"] == "failed"


def test_total_other_than_expected_is_409_price_changed_before_any_payment(service: Service) -> None:
    # when
    answer = service.post_with_reply(menu_reserved(), order_request(expected_total=37999.5))

    # then
    found = problem(answer, 409, "price_changed")
    assert found["order_id"] == 1
    assert "38000" in found["message"]
    assert service.get_order(1)["status"] == "failed"
    with service.database.reading() as connection:
        announced = set(connection.execute(sa.select(outbox.c.type)).scalars())
    assert announced == {"OrderCreated", "OrderFailed", "StockReleaseRequested"}


@pytest.mark.parametrize("expected", ["38000", "38000.00", "3.8e4"])
def test_total_as_expected_is_201_in_every_notation(service: Service, expected: str) -> None:
    body = f'{{"user_id": 1, "menu_ids": [1, 2], "expected_total": {expected}}}'

    answer = service.post_with_reply(menu_reserved(), body)

    assert (answer.status_code, body_of(answer)["total_price"]) == (201, 38000)


def test_order_paid_while_the_post_waits_is_201_and_paid(service: Service) -> None:
    order_id, future = service.post_waiting()

    service.receive(order_id, payment_completed("P1", REQUEST_TOTAL), menu_reserved())

    assert (future.result().status_code, body_of(future.result())["status"]) == (201, "paid")


def test_only_an_accepted_request_is_recorded(service: Service) -> None:
    # given
    refused = [{}, {"user_id": 1}, order_request(note=""), [], order_request(expected_total=-1)]

    # when
    statuses = {service.post(body).status_code for body in refused}
    statuses |= {service.put_payment(1).status_code}

    # then
    assert (statuses, service.rows()) == ({404, 422}, (0, 0, 0))

    # and: one order, no entry of its history yet, one event
    service.post(headers=RESPOND_ASYNC)
    assert service.rows() == (1, 0, 1)
