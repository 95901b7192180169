"""The actors, and how they publish what is no message to an actor: on the broker's own channel."""

import functools
import json
import os
import uuid
from typing import Any

import dramatiq
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.middleware import CurrentMessage
from pika import BasicProperties
from pika.exceptions import AMQPChannelError, AMQPConnectionError
from psycopg_pool import ConnectionPool

from orders import database

EXCHANGE = "orders"
#: Worker threads, as given to the command line; each holds a connection while it is at work.
THREADS = int(os.environ.get("WORKER_THREADS", "8"))

broker = RabbitmqBroker(url=os.environ["RABBITMQ_URL"])
broker.add_middleware(CurrentMessage())
dramatiq.set_broker(broker)


@functools.cache
def connections() -> ConnectionPool:
    return database.pool(os.environ["DATABASE_URL"], size=THREADS)


def publish(routing_key: str, event: dict[str, Any]) -> None:
    """On this thread's channel; on a new connection when that one is lost, as the broker itself does it."""
    properties = BasicProperties(content_type="application/json", delivery_mode=2, message_id=str(uuid.uuid4()))
    body = json.dumps(event).encode()
    try:
        broker.channel.basic_publish(EXCHANGE, routing_key, body, properties)
    except (AMQPConnectionError, AMQPChannelError):
        del broker.connection
        broker.channel.basic_publish(EXCHANGE, routing_key, body, properties)


def message_id() -> str:
    message = CurrentMessage.get_current_message()
    assert message is not None
    return message.message_id


@dramatiq.actor(queue_name="order-tasks")
def menu_reserved(order_id: int, items: list[dict[str, Any]]) -> None:
    with connections().connection() as connection:
        amount = database.reserve(connection, message_id(), order_id=order_id, items=items)
    if amount is not None:
        publish("payment.requested", {"order_id": order_id, "amount": amount})


@dramatiq.actor(queue_name="order-tasks")
def payment_completed(order_id: int, payment_id: str, amount: int) -> None:
    with connections().connection() as connection:
        paid = database.pay(connection, message_id(), order_id=order_id, payment_id=payment_id, amount=amount)
    if paid:
        publish("order.paid", {"order_id": order_id, "payment_id": payment_id})
