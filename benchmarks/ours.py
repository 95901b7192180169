"""The service as its users run it: the Procfile's commands, its own migrations and topology, its default settings.

This module alone depends on the service's commands, tables and events. It imports none of the service's code.
"""

import json
import os
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg

from benchmarks.system import MENU, Message, Protocol, System, persistent, statements

PROJECT_DIR = Path(__file__).parent.parent
EXCHANGE = "restaurant.events"
#: The processes of the Procfile that belong to the service, in the order in which they are started.
PROCESSES = ("api", "consumers", "publishers")
#: The columns of an order that the menu has reserved.
ITEMS = json.dumps([[item["id"], item["name"], str(item["price"]), item["stock"]] for item in MENU.values()])


SQL = statements(Path(__file__).with_name("ours.sql"))


def preload(database_url: str, awaiting_menu: int, awaiting_payment: int) -> None:
    with psycopg.connect(database_url) as database:
        database.execute(SQL["insert_awaiting_menu"], [awaiting_menu])
        database.execute(SQL["insert_awaiting_payment"], [ITEMS, awaiting_payment])


def encode(routing_key: str, data: dict[str, Any]) -> Message:
    """A reply as docs/siblings.md describes it."""
    message_id, order_id = str(uuid4()), data["order_id"]
    event_type = "".join(word.title() for word in routing_key.split("."))
    if event_type == "MenuReserved":
        data |= {"reservation_id": f"R{order_id}"}
    event = {"specversion": "1.0", "id": message_id, "source": "/stub", "type": event_type, "subject": str(order_id)}
    event |= {"time": datetime.now(UTC).isoformat(), "correlationid": str(order_id)}
    event |= {"datacontenttype": "application/json", "dataschema": f"urn:restaurant:schema:{event_type}:1"}
    properties = persistent(message_id, content_type="application/cloudevents+json", type=event_type)
    return Message(EXCHANGE, routing_key, json.dumps(event | {"data": data}).encode(), properties)


def prepare(database_url: str, rabbitmq_url: str) -> None:
    """The two commands that a user runs before the processes."""
    migrate(database_url)
    _order_service("topology", RABBITMQ_URL=rabbitmq_url)


def migrate(database_url: str) -> None:
    _order_service("migrate", DATABASE_URL=database_url)


def _order_service(step: str, **settings: str) -> None:
    env = os.environ | {"LOG_LEVEL": "WARNING"} | settings
    command = [sys.executable, "-m", "order_service", step]
    subprocess.run(command, cwd=PROJECT_DIR, env=env, check=True, stdout=subprocess.DEVNULL)


def _processes() -> dict[str, list[str]]:
    lines = dict(line.split(": ", 1) for line in (PROJECT_DIR / "Procfile").read_text().splitlines())
    return {name: shlex.split(lines[name]) for name in PROCESSES}


OURS = System(
    name="ours",
    processes=_processes(),
    protocol=Protocol(EXCHANGE, encode, ("order-service.menu", "order-service.payment"), lambda event: event["data"]),
    prepare=prepare,
    preload=preload,
    worker="consumers",
    databases=frozenset({"postgresql", "sqlite"}),
    orders=5000,
)
