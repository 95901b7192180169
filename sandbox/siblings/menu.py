"""The Menu Service: what there is to eat, and how much of it is left. Run it with `python -m sandbox.menu`.

It decides once per order. A repeated OrderCreated gets the same answer again, and what is given back is given
back once, whoever asks and however often. It does not look at `reply_by`: whether an answer is late is the
asker's to judge.

After a release the order is over here. An OrderCreated that comes after it, a late reminder for one, takes no
stock and gets no answer: releases follow the end of an order, so nobody waits, and neither MenuReserved nor
the contract's two reasons for MenuRejected would be true.

What it can be made to do wrong, at start with MENU_FAULTS and later at /faults, is listed in faults.py.
"""

import json
import os
import sqlite3
import uuid
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import closing
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import structlog
from flask import Flask
from flask.typing import ResponseReturnValue
from pydantic import BaseModel, Field
from werkzeug.exceptions import BadRequest, NotFound

from sandbox.siblings import faults
from sandbox.siblings.consumer import Service
from sandbox.siblings.events import Amount, Event, Id, Reference, number
from sandbox.siblings.faults import Faults
from sandbox.siblings.process import Settings, json_app, read_body, serve, workers
from sandbox.siblings.store import connect, create, transaction

log = structlog.get_logger()

#: `orders` holds what was decided and, in `lines`, what is held for it. A row without an answer is a
#: tombstone: the order was released before it came.
SCHEMA = """
CREATE TABLE IF NOT EXISTS menus (
    id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL, price TEXT NOT NULL,
    stock INTEGER NOT NULL CHECK (stock >= 0)
);
INSERT OR IGNORE INTO menus VALUES (1, 'Nasi Ayam Bakar', '18000', 15), (2, 'Kwetiau Goreng', '20000', 7);
CREATE TABLE IF NOT EXISTS orders (
    order_id INTEGER PRIMARY KEY, answer TEXT, data TEXT, reservation_id TEXT,
    lines TEXT NOT NULL DEFAULT '{}', released INTEGER NOT NULL DEFAULT 0
);
"""
#: What the fault `price` adds to the listed price of each dish.
SURCHARGE = 1000
UNKNOWN_MENU = "Menu tidak ditemukan."
MENU = "/menus/<int(max=2147483647):menu_id>"


class Line(BaseModel):
    menu_id: Id
    quantity: Id


class OrderCreated(BaseModel):
    order_id: Id
    lines: Annotated[list[Line], Field(min_length=1)]


class StockReleaseRequested(BaseModel):
    """`reservation_id` has no default: null gives everything back, so it has to be said."""

    order_id: Id
    release_id: Reference
    reservation_id: Reference | None


class NewMenu(BaseModel):
    name: Annotated[str, Field(min_length=1, max_length=200)]
    price: Amount
    stock: Annotated[int, Field(strict=True, ge=0, le=2**31 - 1)]


class Sale(BaseModel):
    sold_quantity: Annotated[int, Field(strict=True)]


def on_order_created(db: sqlite3.Connection, data: dict[str, Any], *, fault: str = "") -> list[Event]:
    """Reserve every line of the order or none, once; answer the same as often as asked."""
    order = OrderCreated.model_validate(data)
    known = db.execute("SELECT * FROM orders WHERE order_id = ?", (order.order_id,)).fetchone()
    if known is None:
        return [reserve(db, order, fault)]
    if known["released"]:
        log.info("order already released, nothing reserved", order_id=order.order_id)
        return []
    return [Event(known["answer"], order.order_id, json.loads(known["data"]))]


def reserve(db: sqlite3.Connection, order: OrderCreated, fault: str) -> Event:
    """Decide on a new order: take the stock of all its lines, or say which one stands in the way."""
    wanted: Counter[int] = Counter()
    for line in order.lines:
        wanted[line.menu_id] += line.quantity
    obstacle = find_obstacle(db, wanted)
    if fault == "reject":
        obstacle = obstacle or {"reason": "out_of_stock", "menu_id": order.lines[0].menu_id}
    if obstacle:
        answer = Event("MenuRejected", order.order_id, {"order_id": order.order_id} | obstacle)
        wanted.clear()
    else:
        items = [take(db, menu_id, quantity) for menu_id, quantity in wanted.items()]
        if fault == "price":
            items = [item | {"price": item["price"] + SURCHARGE} for item in items]
        data = {"order_id": order.order_id, "reservation_id": str(uuid.uuid4()), "items": items}
        answer = Event("MenuReserved", order.order_id, data)
    remember(db, answer, wanted)
    return answer


def remember(db: sqlite3.Connection, answer: Event, held: Mapping[int, int]) -> None:
    """Keep the answer for when it is asked again, and what is held for when it is given back."""
    reservation_id = answer.data.get("reservation_id")
    db.execute(
        "INSERT INTO orders (order_id, answer, data, reservation_id, lines) VALUES (?, ?, ?, ?, ?)",
        (answer.order_id, answer.type, json.dumps(answer.data), reservation_id, json.dumps(held)),
    )


def find_obstacle(db: sqlite3.Connection, wanted: Counter[int]) -> dict[str, Any] | None:
    """The first menu, in the order they were asked for, that cannot be had."""
    for menu_id, quantity in wanted.items():
        menu = find_menu(db, menu_id)
        if menu is None:
            return {"reason": "menu_not_found", "menu_id": menu_id}
        if menu["stock"] < quantity:
            return {"reason": "out_of_stock", "menu_id": menu_id}
    return None


def take(db: sqlite3.Connection, menu_id: int, quantity: int) -> dict[str, Any]:
    """Take it from the stock. Returns the menu as it is now: the contract's `stock` is what remains."""
    update = "UPDATE menus SET stock = stock - ? WHERE id = ? RETURNING *"
    return as_json(db.execute(update, (quantity, menu_id)).fetchone())


def on_stock_release_requested(db: sqlite3.Connection, data: dict[str, Any]) -> list[Event]:
    """Give back what the request means, if it is still held, and confirm in any case.

    A request whose reservation_id is null means whatever is held for the order, and closes the order: nothing
    will be reserved for it later, even when it has not been heard of yet.
    """
    request = StockReleaseRequested.model_validate(data)
    named = None if request.reservation_id is None else str(request.reservation_id)
    if named is None:
        db.execute("INSERT OR IGNORE INTO orders (order_id) VALUES (?)", (request.order_id,))
    held = db.execute(
        "UPDATE orders SET released = 1"
        " WHERE order_id = :order_id AND NOT released AND (:named IS NULL OR reservation_id = :named)"
        " RETURNING lines",
        {"order_id": request.order_id, "named": named},
    ).fetchall()
    for row in held:
        for menu_id, quantity in json.loads(row["lines"]).items():
            db.execute("UPDATE menus SET stock = stock + ? WHERE id = ?", (quantity, int(menu_id)))
    confirmed = {"order_id": request.order_id, "release_id": request.release_id}
    return [Event("StockReleased", request.order_id, confirmed)]


DECIDING = ("reject", "price")
FAULTY = {(fault, "OrderCreated"): partial(on_order_created, fault=fault) for fault in DECIDING}


def service(database: Path, switched: Faults | None = None) -> Service:
    """The Menu Service as the broker knows it."""
    handlers = {"OrderCreated": on_order_created, "StockReleaseRequested": on_stock_release_requested}
    return Service("menu-service", "menu-service.orders", handlers, database, switched or Faults(DECIDING), FAULTY)


def find_menu(db: sqlite3.Connection, menu_id: int) -> sqlite3.Row | None:
    row: sqlite3.Row | None = db.execute("SELECT * FROM menus WHERE id = ?", (menu_id,)).fetchone()
    return row


def as_json(row: sqlite3.Row) -> dict[str, Any]:
    return dict(row) | {"price": number(Decimal(row["price"]))}


def sell(db: sqlite3.Connection, menu_id: int, quantity: int) -> int:
    """Take sold portions from the stock, outside any order. Returns what remains; refuses as HTTP does."""
    menu = find_menu(db, menu_id)
    if menu is None:
        raise NotFound(UNKNOWN_MENU)
    if quantity < 1:
        raise BadRequest("Invalid quantity.")
    if menu["stock"] < quantity:
        raise BadRequest("Stok tersedia tidak mencukupi.")
    return int(take(db, menu_id, quantity)["stock"])


def create_app(database: Path, switched: Faults | None = None, *, connected: Callable[[], bool] | None = None) -> Flask:
    """The service's HTTP side. A connection per request, as each runs in a thread of its own."""
    app = json_app("menu-service", connected)
    faults.add_routes(app, switched or Faults(DECIDING))

    @app.get("/menus")
    def list_menus() -> ResponseReturnValue:
        with closing(connect(database)) as db:
            return [as_json(row) for row in db.execute("SELECT * FROM menus ORDER BY id")]

    @app.post("/menus")
    def add_menu() -> ResponseReturnValue:
        new = read_body(NewMenu)
        insert = "INSERT INTO menus (name, price, stock) VALUES (?, ?, ?) RETURNING *"
        with closing(connect(database)) as db, transaction(db):
            return as_json(db.execute(insert, (new.name, str(new.price), new.stock)).fetchone()), 201

    @app.get(MENU)
    def show_menu(menu_id: int) -> ResponseReturnValue:
        with closing(connect(database)) as db:
            menu = find_menu(db, menu_id)
        if menu is None:
            raise NotFound(UNKNOWN_MENU)
        return as_json(menu)

    @app.put(f"{MENU}/update-stock")
    def update_stock(menu_id: int) -> ResponseReturnValue:
        sold = read_body(Sale).sold_quantity
        with closing(connect(database)) as db, transaction(db):
            stock = sell(db, menu_id, sold)
        return {"message": "Stok berhasil diperbarui.", "stock": stock}

    return app


def main() -> None:
    """Serve HTTP and the broker until SIGTERM."""
    settings = Settings.read(os.environ, port_name="MENU_PORT", default_port=5002)
    database = settings.directory / "menu.db"
    create(database, SCHEMA)
    switched = faults.read("MENU_FAULTS", os.environ.get("MENU_FAULTS", ""), DECIDING)
    consumer, relay = workers(service(database, switched), settings.amqp_url)
    serve(settings, create_app(database, switched, connected=lambda: consumer.link.up), [consumer, relay])
