"""The Payment Service: takes money and gives it back. Run it with `python -m sandbox.payment`.

With PAYMENT_MODE=auto it pays whatever is requested, once per order; with PAYMENT_MODE=manual somebody has
to, with POST /payments. Each POST is a payment, also the second one for an order: sorting that out is what
refunds are for. It does not look at `pay_by`: whether a payment is late is the asker's to judge.

After everything paid for an order was given back, the order is over here: a PaymentRequested that comes later
is neither paid nor answered. Refunds of that kind follow the end of an order, so nobody waits.

What it can be made to do wrong, at start with PAYMENT_FAULTS and later at /faults, is listed in faults.py.
"""

import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import structlog
from flask import Flask, request
from flask.typing import ResponseReturnValue
from pydantic import BaseModel
from werkzeug.exceptions import NotFound

from sandbox.siblings import faults
from sandbox.siblings.consumer import Handler, Service
from sandbox.siblings.events import Amount, Event, Id, Reference, enqueue, number
from sandbox.siblings.faults import Faults
from sandbox.siblings.process import Settings, json_app, read_body, serve, workers
from sandbox.siblings.store import connect, create, transaction

log = structlog.get_logger()

NAME = "payment-service"
MODES = ("auto", "manual")
#: `closed_orders`: those of which everything was given back. No request is paid for them any more.
SCHEMA = """
CREATE TABLE IF NOT EXISTS payments (
    id INTEGER PRIMARY KEY AUTOINCREMENT, order_id INTEGER NOT NULL, user_id INTEGER NOT NULL,
    amount TEXT NOT NULL,
    status TEXT NOT NULL DEFAULT 'paid' CHECK (status IN ('paid', 'refunded'))
);
CREATE INDEX IF NOT EXISTS payments_by_order ON payments (order_id);
CREATE TABLE IF NOT EXISTS closed_orders (order_id INTEGER PRIMARY KEY);
"""
UNKNOWN_PAYMENT = "Pembayaran tidak ditemukan."


class NewPayment(BaseModel):
    """What PaymentRequested and POST /payments both say."""

    order_id: Id
    user_id: Id
    amount: Amount


class Search(BaseModel):
    order_id: Id | None = None


class RefundRequested(BaseModel):
    """`payment_id` has no default: null gives everything back, so it has to be said."""

    order_id: Id
    refund_id: Reference
    payment_id: Reference | None


def on_payment_requested(db: sqlite3.Connection, data: dict[str, Any], *, fault: str = "") -> list[Event]:
    """Pay once for the order; announce the same payment as often as asked."""
    wanted = NewPayment.model_validate(data)
    known = find_payments(db, wanted.order_id)
    standing = [payment for payment in known if payment["status"] == "paid"]
    if standing:
        return [completed(standing[0])]
    if known or is_closed(db, wanted.order_id):
        log.info("order already refunded, nothing paid", order_id=wanted.order_id)
        return []
    if fault == "reject":
        failed = {"order_id": wanted.order_id, "reason": "refused on purpose"}
        return [Event("PaymentFailed", wanted.order_id, failed)]
    if fault == "wrong_amount":
        wanted = wanted.model_copy(update={"amount": wanted.amount + 1})
    return [pay(db, wanted)]


def on_payment_requested_manually(db: sqlite3.Connection, data: dict[str, Any]) -> list[Event]:
    """Leave paying to somebody else, but announce again what they have paid."""
    wanted = NewPayment.model_validate(data)
    return [completed(row) for row in find_payments(db, wanted.order_id) if row["status"] == "paid"][:1]


def on_refund_requested(db: sqlite3.Connection, data: dict[str, Any]) -> list[Event]:
    """Give back what the request means, if it was not yet given back, and confirm in any case.

    A request whose payment_id is null means every payment of the order, and closes it, heard of or not.
    """
    refund = RefundRequested.model_validate(data)
    named = None if refund.payment_id is None else str(refund.payment_id)
    if named is None:
        db.execute("INSERT OR IGNORE INTO closed_orders VALUES (?)", (refund.order_id,))
    db.execute(
        "UPDATE payments SET status = 'refunded'"
        " WHERE order_id = :order_id AND (:named IS NULL OR CAST(id AS TEXT) = :named)",
        {"order_id": refund.order_id, "named": named},
    )
    confirmed = {"order_id": refund.order_id, "refund_id": refund.refund_id}
    return [Event("PaymentRefunded", refund.order_id, confirmed)]


def pay(db: sqlite3.Connection, new: NewPayment) -> Event:
    """Record the payment. Returns its announcement."""
    insert = "INSERT INTO payments (order_id, user_id, amount) VALUES (?, ?, ?) RETURNING *"
    return completed(db.execute(insert, (new.order_id, new.user_id, str(new.amount))).fetchone())


def completed(payment: sqlite3.Row) -> Event:
    data = {"order_id": payment["order_id"], "payment_id": payment["id"], "amount": number(Decimal(payment["amount"]))}
    return Event("PaymentCompleted", payment["order_id"], data)


DECIDING = ("reject", "wrong_amount")
FAULTY = {(fault, "PaymentRequested"): partial(on_payment_requested, fault=fault) for fault in DECIDING}


def service(database: Path, mode: str, switched: Faults | None = None) -> Service:
    """The Payment Service as the broker knows it."""
    paying: dict[str, Handler] = {"auto": on_payment_requested, "manual": on_payment_requested_manually}
    handlers = {"PaymentRequested": paying[mode], "RefundRequested": on_refund_requested}
    return Service(NAME, "payment-service.orders", handlers, database, switched or Faults(DECIDING), FAULTY)


def find_payments(db: sqlite3.Connection, order_id: int) -> list[sqlite3.Row]:
    return db.execute("SELECT * FROM payments WHERE order_id = ? ORDER BY id", (order_id,)).fetchall()


def is_closed(db: sqlite3.Connection, order_id: int) -> bool:
    return db.execute("SELECT 1 FROM closed_orders WHERE order_id = ?", (order_id,)).fetchone() is not None


def as_json(row: sqlite3.Row) -> dict[str, Any]:
    return dict(row) | {"amount": number(Decimal(row["amount"]))}


def create_app(
    database: Path,
    switched: Faults | None = None,
    *,
    paid: Callable[[], None] = lambda: None,
    connected: Callable[[], bool] | None = None,
) -> Flask:
    """The service's HTTP side. `paid` is called once a payment and its announcement are committed."""
    app = json_app(NAME, connected)
    switched = switched or Faults()
    faults.add_routes(app, switched)

    @app.post("/payments")
    def add_payment() -> ResponseReturnValue:
        new = read_body(NewPayment)
        with closing(connect(database)) as db, transaction(db):
            event = pay(db, new)
            enqueue(db, NAME, [event], request.headers.get("traceparent"), switched.departures)
        paid()
        return {"message": "Pembayaran diproses", "payment_id": event.data["payment_id"]}, 201

    @app.get("/payments")
    def list_payments() -> ResponseReturnValue:
        order_id = Search.model_validate(request.args.to_dict()).order_id
        query = "SELECT * FROM payments WHERE :order_id IS NULL OR order_id = :order_id ORDER BY id"
        with closing(connect(database)) as db:
            return [as_json(row) for row in db.execute(query, {"order_id": order_id})]

    @app.get("/payments/<int(max=2147483647):payment_id>")
    def show_payment(payment_id: int) -> ResponseReturnValue:
        with closing(connect(database)) as db:
            row = db.execute("SELECT * FROM payments WHERE id = ?", (payment_id,)).fetchone()
        if row is None:
            raise NotFound(UNKNOWN_PAYMENT)
        return as_json(row)

    return app


def main() -> None:
    """Serve HTTP and the broker until SIGTERM."""
    settings = Settings.read(os.environ, port_name="PAYMENT_PORT", default_port=5004)
    mode = os.environ.get("PAYMENT_MODE", "auto")
    if mode not in MODES:
        raise SystemExit(f"PAYMENT_MODE is {mode}, neither auto nor manual")
    database = settings.directory / "payment.db"
    create(database, SCHEMA)
    deciding = DECIDING if mode == "auto" else ()
    switched = faults.read("PAYMENT_FAULTS", os.environ.get("PAYMENT_FAULTS", ""), deciding)
    consumer, relay = workers(service(database, mode, switched), settings.amqp_url)
    app = create_app(database, switched, paid=relay.wake, connected=lambda: consumer.link.up)
    serve(settings, app, [consumer, relay])
