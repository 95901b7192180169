"""The Payment Service: charges and refunds payments.

With PAYMENT_MODE=auto it charges every request, once per order. With PAYMENT_MODE=manual only POST /payments pays. Each
POST is a payment, also a second one for the same order: the Order Service requests its refund. It ignores `pay_by`: the
Order Service decides whether a payment is late. After a refund of everything, a PaymentRequested for the order is
neither charged nor replied to: the order has ended, so no reply is expected. A PaymentFailed is final: a repeated
request gets the same reply.
"""

import sqlite3
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

from flask import Flask, request
from flask.typing import ResponseReturnValue
from pydantic import BaseModel

from sandbox.siblings.faults import Faults, FaultyService, add_routes, from_environment
from sandbox.siblings.http import (
    Amount,
    Id,
    OwnId,
    Reference,
    db_path,
    found,
    json_app,
    json_number,
    read_body,
    serve,
    setting,
)
from sandbox.siblings.kit import Event, Handler, connect, trace_context, transaction

#: `closed_orders`: orders that were refunded completely and are not charged again. `declined_orders`: orders whose
#: payment has failed.
SCHEMA = """
CREATE TABLE IF NOT EXISTS payments (
    id INTEGER PRIMARY KEY AUTOINCREMENT, order_id INTEGER NOT NULL, user_id INTEGER NOT NULL,
    amount TEXT NOT NULL,
    status TEXT NOT NULL DEFAULT 'paid' CHECK (status IN ('paid', 'refunded'))
);
CREATE INDEX IF NOT EXISTS payments_by_order ON payments (order_id);
CREATE TABLE IF NOT EXISTS closed_orders (order_id INTEGER PRIMARY KEY);
CREATE TABLE IF NOT EXISTS declined_orders (order_id INTEGER PRIMARY KEY);
"""
#: The service's own faults, in automatic mode. In manual mode, the user decides.
DECIDING = ("reject", "wrong_amount")


class NewPayment(BaseModel):
    order_id: Id
    user_id: Id
    amount: Amount


class Search(BaseModel):
    order_id: Id | None = None


class RefundRequested(BaseModel):
    """`payment_id` is required: null refunds everything."""

    order_id: Id
    refund_id: Reference
    payment_id: OwnId | None


def create_service(database: Path, mode: str = "auto", faults: Faults | None = None) -> FaultyService:
    faults = faults or Faults(DECIDING if mode == "auto" else ())
    handlers: dict[str, Handler] = {
        "PaymentRequested": partial(payment_requested, faults, mode),
        "RefundRequested": refund_requested,
    }
    return FaultyService(faults, "payment-service", database, SCHEMA, handlers)


def payment_requested(faults: Faults, mode: str, db: sqlite3.Connection, data: dict[str, Any]) -> Event | None:
    """Charge the order once, unless in manual mode. The reply to a repeated request has the same payment."""
    wanted = NewPayment.model_validate(data)
    query = "SELECT * FROM payments WHERE order_id = ? ORDER BY status, id"  # paid ones before refunded ones
    known = db.execute(query, [wanted.order_id]).fetchone()
    if known and known["status"] == "paid":
        return completed(known)
    is_closed = db.execute("SELECT 1 FROM closed_orders WHERE order_id = ?", [wanted.order_id]).fetchone()
    if known or is_closed or mode == "manual":
        return None
    declined = db.execute("SELECT 1 FROM declined_orders WHERE order_id = ?", [wanted.order_id]).fetchone()
    if declined or "reject" in faults.active:
        db.execute("INSERT OR IGNORE INTO declined_orders VALUES (?)", [wanted.order_id])
        return "PaymentFailed", {"order_id": wanted.order_id, "reason": "the fault `reject` is on"}
    if "wrong_amount" in faults.active:
        wanted = wanted.model_copy(update={"amount": wanted.amount + 1})
    return pay(db, wanted)


def pay(db: sqlite3.Connection, new: NewPayment) -> Event:
    insert = "INSERT INTO payments (order_id, user_id, amount) VALUES (?, ?, ?) RETURNING *"
    return completed(db.execute(insert, [new.order_id, new.user_id, str(new.amount)]).fetchone())


def completed(payment: sqlite3.Row) -> Event:
    amount = json_number(payment["amount"])
    return "PaymentCompleted", {"order_id": payment["order_id"], "payment_id": payment["id"], "amount": amount}


def refund_requested(db: sqlite3.Connection, data: dict[str, Any]) -> Event:
    """Refund the payment, once, and confirm in any case.

    Null refunds every payment of the order, and prevents later charges for it, also if it is not known yet.
    """
    refund = RefundRequested.model_validate(data)
    if refund.payment_id is None:
        db.execute("INSERT OR IGNORE INTO closed_orders VALUES (?)", [refund.order_id])
    db.execute(
        "UPDATE payments SET status = 'refunded' WHERE order_id = ? AND CAST(id AS TEXT) = coalesce(?, id)",
        [refund.order_id, refund.payment_id],
    )
    return "PaymentRefunded", {"order_id": refund.order_id, "refund_id": refund.refund_id}


def as_json(payment: sqlite3.Row) -> dict[str, Any]:
    return dict(payment) | {"amount": json_number(payment["amount"])}


def create_app(service: FaultyService) -> Flask:
    app = json_app(service.name, service)
    add_routes(app, service.faults)

    @app.post("/payments")
    def add_payment() -> ResponseReturnValue:
        new = read_body(NewPayment)
        with closing(connect(service.database)) as db, transaction(db):
            event = pay(db, new)
            service.enqueue(db, event, trace_context({name.lower(): value for name, value in request.headers}))
        return {"message": "Pembayaran diproses", "payment_id": event[1]["payment_id"]}, 201

    @app.get("/payments")
    def list_payments() -> ResponseReturnValue:
        order_id = Search.model_validate(request.args.to_dict()).order_id
        query = "SELECT * FROM payments WHERE order_id = coalesce(?, order_id) ORDER BY id"
        with closing(connect(service.database)) as db:
            return [as_json(row) for row in db.execute(query, [order_id])]

    @app.get("/payments/<int(max=2147483647):payment_id>")
    def show_payment(payment_id: int) -> ResponseReturnValue:
        with closing(connect(service.database)) as db:
            row = db.execute("SELECT * FROM payments WHERE id = ?", [payment_id]).fetchone()
            return as_json(found(row, "Pembayaran tidak ditemukan."))

    return app


def main() -> None:
    mode = setting("PAYMENT_MODE", "auto")
    if mode not in ("auto", "manual"):
        raise SystemExit(f"PAYMENT_MODE is {mode}, neither auto nor manual")
    switched = from_environment("PAYMENT_FAULTS", DECIDING if mode == "auto" else ())
    service = create_service(db_path("payment.db"), mode, switched)
    serve(create_app(service), "PAYMENT_PORT", 5004, service)
