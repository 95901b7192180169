"""A system under measurement, as a value: its processes, its storage, and the messages it exchanges with its siblings.

Every system does the same work. POST /orders with {"user_id": 1, "menu_ids": [1, 2]} answers 201 or 202 once the order
is stored, the stub of the Menu Service reserves it at a price of 38,000, the stub of the Payment Service confirms the
payment, and the order is stored as paid.
"""

import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pika
import psycopg
from pika import BasicProperties, DeliveryMode

#: The two menu items of every order, as MenuReserved describes them, by id.
MENU: Mapping[int, Mapping[str, Any]] = {
    1: {"id": 1, "name": "Nasi Ayam Bakar", "price": 18_000, "stock": 1000},
    2: {"id": 2, "name": "Kwetiau Goreng", "price": 20_000, "stock": 1000},
}
TOTAL = 38_000
#: The stubs' durable queues, and the routing keys that they are bound with.
STUB_QUEUES = {"stub.menu": "order.created", "stub.payment": "payment.requested"}


class Message(NamedTuple):
    """A message to publish: the arguments of pika's basic_publish."""

    exchange: str
    routing_key: str
    body: bytes
    properties: BasicProperties


class User(NamedTuple):
    """Who posts an order, and the value of the Authorization header, if any."""

    id: int
    authorization: str = ""


#: Encodes a reply of a sibling, given by its routing key and its data, as a message with a new id.
Encode = Callable[[str, dict[str, Any]], Message]


def persistent(message_id: str, **more: Any) -> BasicProperties:
    return BasicProperties(message_id=message_id, delivery_mode=DeliveryMode.Persistent.value, **more)


def json_event(exchange: str) -> Encode:
    """The encoding of replies as plain JSON events on this exchange."""

    def encode(routing_key: str, data: dict[str, Any]) -> Message:
        properties = persistent(str(uuid.uuid4()), content_type="application/json")
        return Message(exchange, routing_key, json.dumps(data).encode(), properties)

    return encode


@dataclass(frozen=True)
class Protocol:
    """The messages between a system and its siblings. The system publishes its requests to a topic exchange."""

    exchange: str
    encode: Encode
    #: The queues of the system's worker for the siblings' replies.
    reply_queues: tuple[str, ...]
    #: Extracts the data from the parsed body of a request.
    data_of: Callable[[dict[str, Any]], dict[str, Any]] = lambda event: event

    def reply_to(self, routing_key: str, body: bytes) -> Message:
        """The reply of a sibling to a request; always a positive one."""
        data = self.data_of(json.loads(body))
        if routing_key == "order.created":
            return self.menu_reserved(data["order_id"], data["menu_ids"])
        return self.payment_completed(data["order_id"], int(data["amount"]))

    def menu_reserved(self, order_id: int, menu_ids: Sequence[int] = (1, 2)) -> Message:
        return self.encode("menu.reserved", {"order_id": order_id, "items": [MENU[each] for each in menu_ids]})

    def payment_completed(self, order_id: int, amount: int = TOTAL) -> Message:
        data = {"order_id": order_id, "payment_id": f"P{order_id}", "amount": amount}
        return self.encode("payment.completed", data)


def statements(path: Path) -> dict[str, str]:
    """The SQL statements of a file, by the names in the `-- name:` lines above them."""
    sections = path.read_text().split("-- name: ")[1:]
    return {name: sql for name, _, sql in (section.partition("\n") for section in sections)}


def preparation(
    tables: str, exchange: str, queues: Mapping[str, str | None], **arguments: str
) -> Callable[[str, str], None]:
    """`System.prepare` for these tables, this topic exchange, and these durable queues with their routing keys."""

    def prepare(database_url: str, rabbitmq_url: str) -> None:
        with psycopg.connect(database_url) as database:
            database.execute(tables)
        with pika.BlockingConnection(pika.URLParameters(rabbitmq_url)) as connection:
            channel = connection.channel()
            channel.exchange_declare(exchange, exchange_type="topic", durable=True)
            for queue, routing_key in queues.items():
                channel.queue_declare(queue, durable=True, arguments=arguments)
                if routing_key:
                    channel.queue_bind(queue, exchange, routing_key)

    return prepare


def insert_orders(database_url: str, awaiting_menu: int, awaiting_payment: int) -> None:
    """`System.preload` for the systems whose orders need no more columns than these."""
    insert = (
        "insert into orders (user_id, menu_ids, state, items, total_price) "
        "select 1, '[1, 2]', %s, %s, %s from generate_series(1, %s)"
    )
    with psycopg.connect(database_url) as database:
        database.execute(insert, ["awaiting_menu", None, None, awaiting_menu])
        database.execute(insert, ["awaiting_payment", json.dumps(list(MENU.values())), TOTAL, awaiting_payment])


@dataclass(frozen=True)
class System:
    """One of the compared systems.

    Its database has a table `orders` with the columns id, state ('paid' at the end), items (null until the menu has
    reserved them), created_at and paid_at. In the arguments of its processes, {python} is the Python interpreter and
    {port} the port to listen on. They run in the project's directory, with DATABASE_URL (postgresql://... or
    sqlite:////...), RABBITMQ_URL, PORT and `environment` set. GET /healthz answers 200 once the API serves.
    """

    name: str
    #: Arguments by name, in the order in which the processes are started; SIGTERM stops them.
    processes: Mapping[str, Sequence[str]]
    protocol: Protocol
    #: (database_url, rabbitmq_url): creates the tables, exchanges and queues in an empty database and vhost.
    prepare: Callable[[str, str], None]
    #: (database_url, awaiting_menu, awaiting_payment): stores this many orders in each state, in this order, with
    #: consecutive ids from 1.
    preload: Callable[[str, int, int], None] = insert_orders
    #: The process that consumes the replies: the only one that runs in the worker measure.
    worker: str = "worker"
    environment: Mapping[str, str] = field(default_factory=dict)
    databases: frozenset[str] = frozenset({"postgresql"})
    #: Those whose orders are posted, in turn.
    users: Callable[[], Sequence[User]] = lambda: (User(1),)
    #: The measures that it takes part in; None is all.
    measures: frozenset[str] | None = None
    #: The number of orders that an end-to-end run posts: enough for about ten seconds.
    orders: int = 1500
