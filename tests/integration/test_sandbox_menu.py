"""The sandbox's Menu Service without a broker: what it decides, and its HTTP side."""

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sandbox.siblings.menu import create_app, create_service
from tests.integration.sandbox_service import Direct, direct, event, order, release, types

FULL = {1: 15, 2: 7}


@pytest.fixture
def menu(tmp_path: Path) -> Iterator[Direct]:
    with direct(create_service(tmp_path / "menu.db"), create_app) as menu:
        yield menu


def stock(menu: Direct) -> dict[int, int]:
    return dict(menu.rows("SELECT id, stock FROM menus"))


def test_order_reserves_all_its_lines_in_an_event_about_the_order(menu: Direct) -> None:
    [reserved] = menu.tell(order(5, {1: 1, 2: 1}))

    assert (reserved["type"], reserved["source"], reserved["specversion"]) == ("MenuReserved", "/menu-service", "1.0")
    assert reserved["subject"] == reserved["correlationid"] == "5"
    assert reserved["datacontenttype"] == "application/json"
    assert reserved["data"]["order_id"] == 5
    assert reserved["data"]["items"] == [
        {"id": 1, "name": "Nasi Ayam Bakar", "price": 18000, "stock": 14},
        {"id": 2, "name": "Kwetiau Goreng", "price": 20000, "stock": 6},
    ]
    assert stock(menu) == {1: 14, 2: 6}


@pytest.mark.parametrize(
    ("lines", "reason", "menu_id"),
    [({1: 1, 2: 8}, "out_of_stock", 2), ({1: 1, 9: 1}, "menu_not_found", 9), ({2: 8, 9: 1}, "out_of_stock", 2)],
)
def test_order_that_cannot_be_reserved_completely_reserves_nothing(
    menu: Direct, lines: dict[int, int], reason: str, menu_id: int
) -> None:
    [rejected] = menu.tell(order(5, lines))

    assert rejected["type"] == "MenuRejected"
    assert rejected["data"] == {"order_id": 5, "reason": reason, "menu_id": menu_id}
    assert stock(menu) == FULL


def test_lines_of_the_same_menu_count_together(menu: Direct) -> None:
    line = {"menu_id": 2, "quantity": 4}

    [rejected] = menu.tell(event("OrderCreated", order_id=1, lines=[line, line]))
    [reserved] = menu.tell(event("OrderCreated", order_id=2, lines=[line, line | {"quantity": 3}]))

    assert rejected["data"]["reason"] == "out_of_stock"
    assert [(item["id"], item["stock"]) for item in reserved["data"]["items"]] == [(2, 0)]


def test_repeated_order_gets_the_same_reply_in_a_new_event_and_reserves_nothing_more(menu: Direct) -> None:
    [first] = menu.tell(order(5, {1: 2}))
    [again] = menu.tell(order(5, {1: 2}))

    assert again["data"] == first["data"]
    assert again["id"] != first["id"]
    assert stock(menu)[1] == 13


def test_last_portion_goes_to_one_order_and_the_other_stays_rejected_after_its_release(menu: Direct) -> None:
    [reserved, first] = menu.tell(order(1, {2: 7}), order(2, {2: 1}))
    assert (first["type"], stock(menu)[2]) == ("MenuRejected", 0)

    [_, again] = menu.tell(release(1, reserved["data"]["reservation_id"]), order(2, {2: 1}))
    assert again["data"] == first["data"]
    assert stock(menu) == FULL


def test_reservation_is_released_once_and_every_request_confirmed(menu: Direct) -> None:
    [reserved] = menu.tell(order(5, {1: 2, 2: 1}))
    reservation_id = reserved["data"]["reservation_id"]

    [first] = menu.tell(release(5, reservation_id, "release-1"))
    assert first["data"] == {"order_id": 5, "release_id": "release-1"}
    assert stock(menu) == FULL

    again = menu.tell(release(5, reservation_id), release(5, reservation_id, 2), release(5, None, "3"))
    assert [each["data"]["release_id"] for each in again] == ["release-1", 2, "3"]
    assert menu.tell(order(5, {1: 2})) == []
    assert stock(menu) == FULL


def test_release_of_everything_releases_what_the_order_holds(menu: Direct) -> None:
    menu.tell(order(5, {1: 2}), order(6, {1: 1}))

    assert types(menu.tell(release(5, None))) == ["StockReleased"]
    assert stock(menu)[1] == 14


def test_release_of_everything_before_the_order_prevents_its_reservation(menu: Direct) -> None:
    replies = menu.tell(release(5, None), order(5, {1: 2}), release(5, None, "release-2"))

    assert [each["data"].get("release_id") for each in replies] == ["release-1", "release-2"]
    assert stock(menu) == FULL


@pytest.mark.parametrize("reservation_id", ["unknown", 7])
def test_release_of_an_unknown_reservation_is_confirmed_and_changes_nothing(
    menu: Direct, reservation_id: object
) -> None:
    replies = menu.tell(release(5, reservation_id), order(5, {1: 1}), release(5, reservation_id))

    assert types(replies) == ["StockReleased", "MenuReserved", "StockReleased"]
    assert types(menu.tell(release(6, replies[1]["data"]["reservation_id"]))) == ["StockReleased"]
    assert stock(menu)[1] == 14


@pytest.mark.parametrize(
    "invalid",
    [
        b"",
        b"\xff",
        b"[]",
        b"[" * 100_000,
        b'{"type": "OrderCreated"}',
        event("OrderPaid", order_id=5),
        order(5, {}),
        order(2**31, {1: 1}),
        order(5, {1: 0}),
        event("StockReleaseRequested", order_id=5, release_id="1"),
    ],
)
def test_invalid_message_is_dropped_alone(menu: Direct, invalid: bytes) -> None:
    replies = menu.tell(order(1, {1: 1}), invalid, order(2, {1: 1}))
    assert [each["data"]["order_id"] for each in replies] == [1, 2]
    assert stock(menu) == {1: 13, 2: 7}


def test_changes_of_a_handler_that_fails_are_rolled_back(menu: Direct) -> None:
    def reserve_and_fail(db: sqlite3.Connection, data: dict[str, Any]) -> None:
        db.execute("UPDATE menus SET stock = 0")
        raise LookupError

    menu.service.handlers = {**menu.service.handlers, "StockReleaseRequested": reserve_and_fail}

    assert types(menu.tell(order(1, {1: 1}), release(1, None), order(2, {1: 1}))) == ["MenuReserved"] * 2
    assert stock(menu) == {1: 13, 2: 7}


def test_database_error_rolls_back_the_whole_batch(menu: Direct) -> None:
    def fail(db: sqlite3.Connection, data: dict[str, Any]) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    menu.service.handlers = {**menu.service.handlers, "StockReleaseRequested": fail}

    with pytest.raises(sqlite3.OperationalError):
        menu.tell(order(1, {1: 1}), release(1, None))
    assert (stock(menu), menu.outbox()) == (FULL, [])


def test_fractional_price_stays_exact_from_http_to_event(menu: Direct) -> None:
    created = menu.client.post("/menus", data=b'{"name": "Es Teh", "price": 4500.10, "stock": 3}')
    assert (created.status_code, created.json) == (201, {"id": 3, "name": "Es Teh", "price": 4500.1, "stock": 3})

    menu.tell(order(1, {3: 1}))
    [again] = menu.tell(order(1, {3: 1}))
    assert again["data"]["items"] == [{"id": 3, "name": "Es Teh", "price": 4500.1, "stock": 2}]


def test_whole_price_is_written_without_a_fraction(menu: Direct) -> None:
    menu.client.post("/menus", data=b'{"name": "Es Teh", "price": 4500.00, "stock": 3}')
    assert b"4500," in menu.client.get("/menus/3").data.replace(b"\n", b"")


def test_menus_are_listed_found_and_sold(menu: Direct) -> None:
    first = {"id": 1, "name": "Nasi Ayam Bakar", "price": 18000, "stock": 15}
    second = {"id": 2, "name": "Kwetiau Goreng", "price": 20000, "stock": 7}
    assert menu.client.get("/menus").json == [first, second]
    assert menu.client.get("/menus/1").json == first

    sold = menu.client.put("/menus/1/update-stock", json={"sold_quantity": 3})
    assert (sold.status_code, sold.json) == (200, {"message": "Stok berhasil diperbarui.", "stock": 12})
    assert menu.client.get("/menus/1").json == first | {"stock": 12}


@pytest.mark.parametrize(
    ("quantity", "message"),
    [
        (16, "Stok tersedia tidak mencukupi."),
        (10**30, "Stok tersedia tidak mencukupi."),
        (0, "Invalid quantity."),
        (-1, "Invalid quantity."),
        ("3", "Data tidak valid: sold_quantity."),
        (True, "Data tidak valid: sold_quantity."),
        (None, "Data tidak valid: sold_quantity."),
    ],
)
def test_invalid_sale_is_400(menu: Direct, quantity: object, message: str) -> None:
    response = menu.client.put("/menus/1/update-stock", json={"sold_quantity": quantity})
    assert (response.status_code, response.json) == (400, {"message": message})
    assert stock(menu) == FULL


def test_unknown_menu_is_404(menu: Direct) -> None:
    found, sold = menu.client.get("/menus/9"), menu.client.put("/menus/9/update-stock", json={"sold_quantity": 1})
    assert (found.status_code, sold.status_code) == (404, 404)
    assert found.json == sold.json == {"message": "Menu tidak ditemukan."}
