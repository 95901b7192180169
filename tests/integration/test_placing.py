"""POST /orders: what the original API specification fixes exactly, with the menu's reply in time, late, or negative."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from urllib.parse import urljoin

import pytest

from order_service.domain.messages import Item, Message
from order_service.domain.order import Payment
from tests.builders import FREE, KWETIAU, NASI_AYAM, REQUEST_TOTAL, menu_reserved, payment_completed
from tests.http_service import RESPOND_ASYNC, Service, body_of
from tests.integration import core


@pytest.mark.parametrize("reply", [menu_reserved(), None], ids=["reserved in time", "silent menu"])
def test_location_answers_the_body_of_the_post(service: Service, reply: Message | None) -> None:
    # when
    posted = service.post_with_reply(reply) if reply else service.post(headers={"Prefer": "wait=0"})
    found = service.get(urljoin("/orders", posted.headers["Location"]))

    # then
    assert posted.status_code == (201 if reply else 202)
    assert posted.headers["Location"] == f"orders/{body_of(posted)['id']}"
    assert (found.status_code, found.text) == (200, posted.text)
    assert abs(datetime.now(UTC) - datetime.fromisoformat(body_of(found)["created_at"])) < timedelta(minutes=1)


def test_items_are_one_per_requested_id_in_order_and_as_the_menu_wrote_them(service: Service) -> None:
    # given
    name = 'Mie "Äyam" 🍜 \\ </script>'
    reserved = menu_reserved("R1", Item(1, name, Decimal("0.1"), 3), Item(2, "Nasi", Decimal("18000.00"), 0))

    # when
    answer = service.post_with_reply(reserved, {"user_id": 7, "menu_ids": [1, 2, 1, 1]})

    # then: prices are JSON numbers without a trailing zero
    body = json.loads(answer.text, parse_float=str)
    mie, nasi = (
        {"id": 1, "name": name, "price": "0.1", "stock": 3},
        {"id": 2, "name": "Nasi", "price": 18000, "stock": 0},
    )
    assert body["items"] == [mie, nasi, mie, mie]
    assert (body["user_id"], body["total_price"]) == (7, "18000.3")


def test_stock_that_the_menu_does_not_count_is_null(service: Service) -> None:
    uncounted = [replace(dish, stock=None) for dish in (NASI_AYAM, KWETIAU)]

    answer = service.post_with_reply(menu_reserved("R1", *uncounted))

    assert answer.status_code == 201
    assert [(item["price"], item["stock"]) for item in body_of(answer)["items"]] == [(18000, None), (20000, None)]
    assert service.get_order(body_of(answer)["id"]) == body_of(answer)


def test_hundred_dishes_of_the_largest_ids_are_one_order(service: Service) -> None:
    answer = service.post({"user_id": 2**31 - 1, "menu_ids": [2**31 - 1] * 100}, RESPOND_ASYNC)

    assert (answer.status_code, len(body_of(answer)["items"])) == (202, 100)


@pytest.mark.parametrize("expected", ["38000", "38000.00", "3.8e4"])
def test_total_as_expected_is_201_in_every_notation(service: Service, expected: str) -> None:
    body = f'{{"user_id": 1, "menu_ids": [1, 2], "expected_total": {expected}}}'

    answer = service.post_with_reply(menu_reserved(), body)

    assert (answer.status_code, body_of(answer)["total_price"]) == (201, 38000)


def test_order_paid_while_the_post_waits_is_201_and_paid(service: Service) -> None:
    order_id, future = service.post_waiting()

    service.receive(order_id, payment_completed("P1", REQUEST_TOTAL), menu_reserved())

    assert (future.result().status_code, body_of(future.result())["status"]) == (201, "paid")


def test_free_order_is_201_and_paid_once_it_is_reserved(service: Service) -> None:
    answer = service.post_with_reply(menu_reserved("R1", *FREE))

    order = body_of(answer)
    assert (answer.status_code, order["status"], order["total_price"]) == (201, "paid", 0)
    assert core.get(service.database, order["id"]).payments == (Payment(None, Decimal(0)),)
    created, paid = core.unsent_events(service.database)
    assert (created["type"], paid["type"], paid["data"]["payment_id"]) == ("OrderCreated", "OrderPaid", None)
