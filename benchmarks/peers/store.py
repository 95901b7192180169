"""What every peer finds when it starts: empty tables, the exchange, and its worker's queues."""

import json
from contextlib import closing
from pathlib import Path

import pika
import psycopg
from pika.adapters.blocking_connection import BlockingChannel

from benchmarks.peers.wires import EVENT_QUEUES, EXCHANGE, TASK_QUEUE, items
from benchmarks.system import TOTAL

TABLES = Path(__file__).with_name("tables.sql").read_text()
COUNT_RESERVED = "SELECT count(*) FROM orders WHERE state <> 'awaiting_menu'"
COUNT_PAID = "SELECT count(*) FROM orders WHERE state = 'paid'"
TIMES = {
    "postgresql": "SELECT extract(epoch FROM paid_at - created_at)::float8 FROM orders WHERE state = 'paid' ORDER BY id"
}


def prepare_events(database_url: str, rabbitmq_url: str) -> None:
    """For the peers that hear events: a queue for each kind of answer."""
    make_tables(database_url)
    with closing(pika.BlockingConnection(pika.URLParameters(rabbitmq_url))) as connection:
        channel = connection.channel()
        declare_exchange(channel)
        for routing_key, queue in EVENT_QUEUES.items():
            channel.queue_declare(queue, durable=True)
            channel.queue_bind(queue, EXCHANGE, routing_key)


def prepare_celery(database_url: str, rabbitmq_url: str) -> None:
    """One queue for all tasks, as Celery has it. It binds the queue to an exchange of its own when it starts."""
    make_tables(database_url)
    with closing(pika.BlockingConnection(pika.URLParameters(rabbitmq_url))) as connection:
        channel = connection.channel()
        declare_exchange(channel)
        channel.queue_declare(TASK_QUEUE, durable=True)


def prepare_dramatiq(database_url: str, rabbitmq_url: str) -> None:
    """One queue for all actors, with the queues that Dramatiq puts beside it."""
    from dramatiq.brokers.rabbitmq import RabbitmqBroker

    make_tables(database_url)
    with closing(RabbitmqBroker(url=rabbitmq_url)) as broker:
        declare_exchange(broker.channel)
        broker.declare_queue(TASK_QUEUE, ensure=True)


def make_tables(database_url: str) -> None:
    with psycopg.connect(database_url) as connection:
        connection.execute(TABLES)


def declare_exchange(channel: BlockingChannel) -> None:
    channel.exchange_declare(EXCHANGE, exchange_type="topic", durable=True)


def preload(database_url: str, awaiting_menu: int, awaiting_payment: int) -> None:
    waiting = "INSERT INTO orders (user_id, menu_ids) SELECT 1, '[1, 2]' FROM generate_series(1, %s)"
    reserved = """
        INSERT INTO orders (user_id, menu_ids, state, items, total_price)
        SELECT 1, '[1, 2]', 'awaiting_payment', %s, %s FROM generate_series(1, %s)
    """
    with psycopg.connect(database_url) as connection:
        connection.execute(waiting, (awaiting_menu,))
        connection.execute(reserved, (json.dumps(items((1, 2))), TOTAL, awaiting_payment))
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("VACUUM ANALYZE orders")
