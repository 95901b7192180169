"""The limit: the same design with nothing on it. No framework, no validation, no history, no deadlines, bare JSON.

What is kept is what the guarantees need: order and outbox row in one transaction, publisher confirms before a row goes,
deduplication by message id, ack after commit, durable quorum queues. What a service with features reaches of it is what
its features cost.
"""

import json
from uuid import uuid4

import pika
import psycopg
from pika.spec import Basic, BasicProperties

from benchmarks.system import PRICES, TOTAL, Ask, Publish, System, Wire

EXCHANGE = "probe.events"
MENU_QUEUE, PAYMENT_QUEUE = "probe.menu", "probe.payment"
#: The PostgreSQL channel that says: there is something new in the outbox.
CHANNEL = "outbox"
#: As the service has it: by index, row by row, also while the tables are new and the planner knows nothing of them.
PLANS = "-c enable_seqscan=off -c enable_hashjoin=off -c enable_mergejoin=off -c jit=off"
ITEMS = [{"id": id, "name": name, "price": price, "stock": 1000} for id, (name, price) in PRICES.items()]

TABLES = """
create table orders (
    id bigint generated always as identity primary key, user_id int not null, menu_ids text not null,
    state text not null, items text, total_price numeric(15, 4),
    created_at timestamptz not null default clock_timestamp(), paid_at timestamptz
) with (fillfactor = 70);
create table inbox (message_id text primary key);
create table outbox (
    id bigint generated always as identity primary key, message_id uuid not null default gen_random_uuid(),
    routing_key text not null, body bytea not null
);
"""


def asks(method: Basic.Deliver, _: BasicProperties, body: bytes) -> Ask | None:
    """Bare JSON; the routing key says what it is."""
    data = json.loads(body)
    if method.routing_key == "order.created":
        return Ask("menu", data["order_id"], tuple(data["menu_ids"]))
    return Ask("payment", data["order_id"], amount=str(data["amount"]))


def reserved(ask: Ask) -> Publish:
    return _reply("menu.reserved", {"order_id": ask.order_id, "items": ITEMS})


def completed(ask: Ask) -> Publish:
    return _reply("payment.completed", {"order_id": ask.order_id, "amount": ask.amount})


def _reply(routing_key: str, data: dict[str, object]) -> Publish:
    properties = BasicProperties(message_id=str(uuid4()), delivery_mode=pika.DeliveryMode.Persistent.value)
    return Publish(EXCHANGE, routing_key, json.dumps(data).encode(), properties)


def prepare(database_url: str, rabbitmq_url: str) -> None:
    """Three tables, one exchange, two quorum queues."""
    with psycopg.connect(database_url) as database:
        database.execute(TABLES)
    with pika.BlockingConnection(pika.URLParameters(rabbitmq_url)) as connection:
        channel = connection.channel()
        channel.exchange_declare(EXCHANGE, exchange_type="topic", durable=True)
        for queue, routing_key in ((MENU_QUEUE, "menu.reserved"), (PAYMENT_QUEUE, "payment.completed")):
            channel.queue_declare(queue, durable=True, arguments={"x-queue-type": "quorum"})
            channel.queue_bind(queue, EXCHANGE, routing_key)


def preload(database_url: str, awaiting_menu: int, awaiting_payment: int) -> None:
    """Orders as they stand while they wait for a reply."""
    insert = (
        "insert into orders (user_id, menu_ids, state, items, total_price) "
        "select 1, '[1, 2]', %s, %s, %s from generate_series(1, %s)"
    )
    with psycopg.connect(database_url) as database:
        database.execute(insert, ["awaiting_menu", None, None, awaiting_menu])
        database.execute(insert, ["awaiting_payment", json.dumps(ITEMS), TOTAL, awaiting_payment])


def _system(name: str, what: str, *api: str) -> System:
    return System(
        name=name,
        what=what,
        processes={
            "api": ("{python}", "-m", *api),
            "worker": ("{python}", "-m", "benchmarks.probe.worker"),
            "relay": ("{python}", "-m", "benchmarks.probe.relay"),
        },
        wire=Wire(
            queues=(("stub.menu", EXCHANGE, "order.created"), ("stub.payment", EXCHANGE, "payment.requested")),
            asks=asks,
            reserved=reserved,
            completed=completed,
            reply_queues=(MENU_QUEUE, PAYMENT_QUEUE),
        ),
        prepare=prepare,
        preload=preload,
        count_reserved="select count(*) from orders where items is not null",
        count_paid="select count(*) from orders where state = 'paid'",
        times={
            "postgresql": "select extract(epoch from paid_at - created_at) from orders where state = 'paid' order by id"
        },
        orders=5000,
    )


_APP = "benchmarks.probe.app:app"
GTHREAD = _system(
    "probe-gthread", "the bare design, gunicorn gthread",
    "gunicorn", "--bind=127.0.0.1:{port}", "--worker-class=gthread", "--threads=32", "--keep-alive=75",
    "--no-control-socket", "--log-level=warning", _APP,
)  # fmt: skip
GRANIAN = _system(
    "probe-granian", "the bare design, granian",
    "granian", "--interface=wsgi", "--host=127.0.0.1", "--port={port}", "--workers=1", "--blocking-threads=16",
    "--log-level=warning", _APP,
)  # fmt: skip
