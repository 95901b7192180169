"""The Menu Service: menu items and their stock.

It decides once per order. It ignores `reply_by`: the Order Service decides whether a reply is late. After a release, an
OrderCreated for the order reserves nothing and gets no reply: the order has ended, so none is expected.
"""

import json
import sqlite3
from collections import Counter
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Annotated, Any
from uuid import uuid4

from flask import Flask
from flask.typing import ResponseReturnValue
from pydantic import BaseModel, Field
from werkzeug.exceptions import BadRequest

from sandbox.siblings.faults import Faults, FaultyService, add_routes, from_environment
from sandbox.siblings.http import Amount, Id, OwnId, Reference, db_path, found, json_app, json_number, read_body, serve
from sandbox.siblings.kit import Event, Handler, connect, transaction

#: `orders` holds the reply to each order (`answer` is its type) and, in `lines`, the reserved quantities. A row without
#: a reply belongs to an order that was released before its OrderCreated arrived.
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
#: The service's own faults.
DECIDING = ("reject", "price")
#: What the fault `price` adds to the price of each menu item.
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
    """`reservation_id` is required: null releases everything."""

    order_id: Id
    release_id: Reference
    reservation_id: OwnId | None


class NewMenu(BaseModel):
    name: Annotated[str, Field(min_length=1, max_length=200)]
    price: Amount
    stock: Annotated[int, Field(strict=True, ge=0, le=2**31 - 1)]


class Sale(BaseModel):
    sold_quantity: Annotated[int, Field(strict=True)]


def create_service(database: Path, faults: Faults | None = None) -> FaultyService:
    faults = faults or Faults(DECIDING)
    handlers: dict[str, Handler] = {
        "OrderCreated": partial(order_created, faults),
        "StockReleaseRequested": stock_release_requested,
    }
    return FaultyService(faults, "menu-service", database, SCHEMA, handlers)


def order_created(faults: Faults, db: sqlite3.Connection, data: dict[str, Any]) -> Event | None:
    """Reserve every line of the order or none, once. A repeated order gets the same reply."""
    order = OrderCreated.model_validate(data)
    known = db.execute("SELECT * FROM orders WHERE order_id = ?", [order.order_id]).fetchone()
    if known:
        return None if known["released"] else (known["answer"], json.loads(known["data"]))
    wanted: Counter[int] = Counter()
    for line in order.lines:
        wanted[line.menu_id] += line.quantity
    event_type, reply = decide(db, wanted, faults)
    reply = {"order_id": order.order_id} | reply
    held = json.dumps(wanted if event_type == "MenuReserved" else {})
    db.execute(
        "INSERT INTO orders (order_id, answer, data, reservation_id, lines) VALUES (?, ?, ?, ?, ?)",
        [order.order_id, event_type, json.dumps(reply), reply.get("reservation_id"), held],
    )
    return event_type, reply


def decide(db: sqlite3.Connection, wanted: Counter[int], faults: Faults) -> Event:
    """Reserve all quantities, or name the first menu item that is unknown or out of stock."""
    for menu_id, quantity in wanted.items():
        menu = find_menu(db, menu_id)
        if menu is None:
            return "MenuRejected", {"reason": "menu_not_found", "menu_id": menu_id}
        if menu["stock"] < quantity:
            return "MenuRejected", {"reason": "out_of_stock", "menu_id": menu_id}
    if "reject" in faults.active:
        return "MenuRejected", {"reason": "out_of_stock", "menu_id": next(iter(wanted))}
    items = [reserve(db, menu_id, quantity) for menu_id, quantity in wanted.items()]
    if "price" in faults.active:
        items = [item | {"price": item["price"] + SURCHARGE} for item in items]
    return "MenuReserved", {"reservation_id": str(uuid4()), "items": items}


def reserve(db: sqlite3.Connection, menu_id: int, quantity: int) -> dict[str, Any]:
    """Reduce the stock. Returns the menu item with the remaining stock."""
    update = "UPDATE menus SET stock = stock - ? WHERE id = ? RETURNING *"
    return as_json(db.execute(update, [quantity, menu_id]).fetchone())


def stock_release_requested(db: sqlite3.Connection, data: dict[str, Any]) -> Event:
    """Release the reservation if it is still held, and confirm in any case.

    Null releases everything held for the order, and prevents later reservations for it, also if it is not known yet.
    """
    request = StockReleaseRequested.model_validate(data)
    if request.reservation_id is None:
        db.execute("INSERT OR IGNORE INTO orders (order_id) VALUES (?)", [request.order_id])
    released = db.execute(
        "UPDATE orders SET released = 1"
        " WHERE order_id = ? AND NOT released AND reservation_id IS coalesce(?, reservation_id) RETURNING lines",
        [request.order_id, request.reservation_id],
    ).fetchall()
    for row in released:
        for menu_id, quantity in json.loads(row["lines"]).items():
            db.execute("UPDATE menus SET stock = stock + ? WHERE id = ?", [quantity, int(menu_id)])
    return "StockReleased", {"order_id": request.order_id, "release_id": request.release_id}


def find_menu(db: sqlite3.Connection, menu_id: int) -> Any:
    return db.execute("SELECT * FROM menus WHERE id = ?", [menu_id]).fetchone()


def as_json(menu: sqlite3.Row) -> dict[str, Any]:
    return dict(menu) | {"price": json_number(menu["price"])}


def create_app(service: FaultyService) -> Flask:
    app = json_app(service.name, service)
    add_routes(app, service.faults)

    @app.get("/menus")
    def list_menus() -> ResponseReturnValue:
        with closing(connect(service.database)) as db:
            return [as_json(row) for row in db.execute("SELECT * FROM menus ORDER BY id")]

    @app.post("/menus")
    def add_menu() -> ResponseReturnValue:
        new = read_body(NewMenu)
        insert = "INSERT INTO menus (name, price, stock) VALUES (?, ?, ?) RETURNING *"
        with closing(connect(service.database)) as db, transaction(db):
            return as_json(db.execute(insert, [new.name, str(new.price), new.stock]).fetchone()), 201

    @app.get(MENU)
    def show_menu(menu_id: int) -> ResponseReturnValue:
        with closing(connect(service.database)) as db:
            return as_json(found(find_menu(db, menu_id), UNKNOWN_MENU))

    @app.put(f"{MENU}/update-stock")
    def update_stock(menu_id: int) -> ResponseReturnValue:
        quantity = read_body(Sale).sold_quantity
        with closing(connect(service.database)) as db, transaction(db):
            menu = found(find_menu(db, menu_id), UNKNOWN_MENU)
            if quantity < 1:
                raise BadRequest("Invalid quantity.")
            if menu["stock"] < quantity:
                raise BadRequest("Stok tersedia tidak mencukupi.")
            return {"message": "Stok berhasil diperbarui.", "stock": reserve(db, menu_id, quantity)["stock"]}

    return app


def main() -> None:
    service = create_service(db_path("menu.db"), from_environment("MENU_FAULTS", DECIDING))
    serve(create_app(service), "MENU_PORT", 5002, service)
