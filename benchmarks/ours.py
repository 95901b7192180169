"""The service as its users run it: the Procfile's commands, its own migrations and topology, its own settings."""

import json
import os
import shlex
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pika
import sqlalchemy as sa
from pika.spec import Basic, BasicProperties

from benchmarks.system import PRICES, Ask, Publish, System, Wire
from order_service.storage import tables
from order_service.storage.database import Database

PROJECT_DIR = Path(__file__).parent.parent
EXCHANGE = "restaurant.events"
#: Of the Procfile's processes those that are the service, in the order of their start.
PROCESSES = ("api", "consumers", "publishers")
ITEMS = [{"id": id, "name": name, "price": price, "stock": 1000} for id, (name, price) in PRICES.items()]
#: The same as the table holds them.
STORED_ITEMS = json.dumps([[item["id"], item["name"], str(item["price"]), item["stock"]] for item in ITEMS])
EMPTY_LEDGER = json.dumps({"reservations": [], "payments": [], "released": [], "refunded": []})
RESERVED_LEDGER = json.dumps({"reservations": ["R1"], "payments": [], "released": [], "refunded": []})


def asks(method: Basic.Deliver, _: BasicProperties, body: bytes) -> Ask | None:
    """What an event of the service asks of a sibling."""
    data = json.loads(body)["data"]
    if method.routing_key == "order.created":
        return Ask("menu", data["order_id"], tuple(data["menu_ids"]))
    return Ask("payment", data["order_id"], amount=str(data["amount"]))


def reserved(ask: Ask) -> Publish:
    """MenuReserved, as docs/siblings.md has it."""
    items = [ITEMS[id - 1] for id in ask.menu_ids]
    return _reply("MenuReserved", "menu.reserved", ask, {"reservation_id": f"R{ask.order_id}", "items": items})


def completed(ask: Ask) -> Publish:
    """PaymentCompleted, as docs/siblings.md has it."""
    return _reply(
        "PaymentCompleted", "payment.completed", ask, {"payment_id": ask.order_id, "amount": int(ask.amount or 0)}
    )


def _reply(type: str, routing_key: str, ask: Ask, data: dict[str, Any]) -> Publish:
    message_id, order_id = str(uuid4()), str(ask.order_id)
    event = {
        "specversion": "1.0",
        "id": message_id,
        "source": "/stub",
        "type": type,
        "subject": order_id,
        "time": datetime.now(UTC).isoformat(),
        "datacontenttype": "application/json",
        "dataschema": f"urn:restaurant:schema:{type}:1",
        "correlationid": order_id,
        "data": {"order_id": ask.order_id} | data,
    }
    properties = BasicProperties(
        content_type="application/cloudevents+json",
        delivery_mode=pika.DeliveryMode.Persistent.value,
        message_id=message_id,
        type=type,
    )
    return Publish(EXCHANGE, routing_key, json.dumps(event).encode(), properties)


def prepare(database_url: str, rabbitmq_url: str) -> None:
    """The two commands that a user runs before the processes."""
    migrate(database_url)
    _order_service("topology", RABBITMQ_URL=rabbitmq_url)


def migrate(database_url: str) -> None:
    """The tables; may be repeated."""
    _order_service("migrate", DATABASE_URL=database_url)


def _order_service(step: str, **settings: str) -> None:
    env = os.environ | {"LOG_LEVEL": "WARNING"} | settings
    command = [sys.executable, "-m", "order_service", step]
    subprocess.run(command, cwd=PROJECT_DIR, env=env, check=True, stdout=subprocess.DEVNULL)


def preload(database_url: str, awaiting_menu: int, awaiting_payment: int) -> None:
    """Orders as they stand while they wait for a reply."""
    now = datetime.now(UTC)
    states = ["awaiting_menu"] * awaiting_menu + ["awaiting_payment"] * awaiting_payment
    database = Database(database_url)
    with database.engine.begin() as connection:
        for start in range(0, len(states), 10_000):
            rows = [_row(state, now) for state in states[start : start + 10_000]]
            connection.execute(sa.insert(tables.orders), rows)
    database.dispose()


def _row(state: str, now: datetime) -> dict[str, Any]:
    priced = state == "awaiting_payment"
    return {
        "key": uuid4(),
        "user_id": 1,
        "menu_ids": "[1, 2]",
        "created_at": now,
        "state": state,
        "version": 2 if priced else 1,
        "items": STORED_ITEMS if priced else None,
        "total_price": 38_000 if priced else None,
        "ledger": RESERVED_LEDGER if priced else EMPTY_LEDGER,
        "due_at": now + timedelta(minutes=15),
        "reminders_left": 3,
    }


def processes() -> dict[str, list[str]]:
    """The Procfile's commands."""
    lines = dict(line.split(": ", 1) for line in (PROJECT_DIR / "Procfile").read_text().splitlines())
    return {name: shlex.split(lines[name]) for name in PROCESSES}


OURS = System(
    name="ours",
    what="Order Service, all features on",
    processes=processes(),
    wire=Wire(
        queues=(("stub.menu", EXCHANGE, "order.created"), ("stub.payment", EXCHANGE, "payment.requested")),
        asks=asks,
        reserved=reserved,
        completed=completed,
        reply_queues=("order-service.menu", "order-service.payment"),
    ),
    prepare=prepare,
    preload=preload,
    count_reserved="select count(*) from orders where items is not null",
    count_paid="select count(*) from orders where state = 'paid'",
    times={
        "postgresql": "select extract(epoch from paid_at - created_at) from orders where state = 'paid' order by id",
        "sqlite": (
            "select (julianday(paid_at) - julianday(created_at)) * 86400 from orders where state = 'paid' order by id"
        ),
    },
    worker="consumers",
    databases=frozenset({"postgresql", "sqlite"}),
    orders=5000,
)
