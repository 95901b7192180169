"""Dramatiq: the siblings' replies are messages to actors; events are published on the channel of Dramatiq's broker."""

import functools
import os
from typing import Any

import dramatiq
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.middleware import CurrentMessage
from pika.exceptions import AMQPChannelError, AMQPConnectionError
from psycopg_pool import ConnectionPool

import psycopg_handlers
from pika_peer import publish_on

#: Worker threads, each of which uses one database connection at a time.
THREADS = int(os.environ.get("WORKER_THREADS", "8"))

broker = RabbitmqBroker(url=os.environ["RABBITMQ_URL"])
broker.add_middleware(CurrentMessage())
dramatiq.set_broker(broker)


@functools.cache
def pool() -> ConnectionPool:
    return psycopg_handlers.pool(os.environ["DATABASE_URL"], size=THREADS)


def publish(routing_key: str, event: dict[str, Any]) -> None:
    """Publish on this thread's channel; after a lost connection on a new one, as the broker itself does."""
    try:
        publish_on(broker.channel, routing_key, event)
    except (AMQPConnectionError, AMQPChannelError):
        del broker.connection
        publish_on(broker.channel, routing_key, event)


def _handle(handler: psycopg_handlers.Handler, data: dict[str, Any]) -> None:
    with pool().connection() as connection:
        handler(connection, CurrentMessage.get_current_message().message_id, publish, **data)


@dramatiq.actor(queue_name="order-tasks")
def menu_reserved(**data: Any) -> None:
    _handle(psycopg_handlers.menu_reserved, data)


@dramatiq.actor(queue_name="order-tasks")
def payment_completed(**data: Any) -> None:
    _handle(psycopg_handlers.payment_completed, data)
