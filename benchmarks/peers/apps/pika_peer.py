"""Plain pika, as in RabbitMQ's tutorials: a blocking consumer that acks each message after its transaction."""

import functools
import json
import os
import threading
import uuid
from typing import Any

import pika
import psycopg
from pika.adapters.blocking_connection import BlockingChannel
from pika.exceptions import AMQPError
from pika.spec import Basic, BasicProperties

import psycopg_handlers

#: Messages that are delivered during the work on one; with fewer, the worker waits for the network.
PREFETCH = 100
HANDLERS = {
    "orders.menu-reserved": psycopg_handlers.menu_reserved,
    "orders.payment-completed": psycopg_handlers.payment_completed,
}
_local = threading.local()


def publish_on(channel: BlockingChannel, routing_key: str, event: dict[str, Any]) -> None:
    """Persistent and unconfirmed, as in the tutorial about work queues."""
    properties = BasicProperties(
        content_type="application/json", delivery_mode=2, message_id=str(uuid.uuid4()), type=routing_key
    )
    channel.basic_publish("orders", routing_key, json.dumps(event).encode(), properties)


def publish(routing_key: str, event: dict[str, Any]) -> None:
    """Publish on a connection of this thread of gunicorn: threads must not share one."""
    try:
        publish_on(_open_channel(), routing_key, event)
    except AMQPError:
        publish_on(_open_channel(), routing_key, event)


def _open_channel() -> BlockingChannel:
    if not hasattr(_local, "channel") or _local.channel.is_closed:
        parameters = pika.URLParameters(os.environ["RABBITMQ_URL"])
        parameters.heartbeat = 0  # a thread without requests does not answer heartbeats
        _local.channel = pika.BlockingConnection(parameters).channel()
    return _local.channel


def main() -> None:
    connection = psycopg.connect(os.environ["DATABASE_URL"], **psycopg_handlers.CONNECT)
    channel = pika.BlockingConnection(pika.URLParameters(os.environ["RABBITMQ_URL"])).channel()
    publish_event = functools.partial(publish_on, channel)

    def handle(
        handler: psycopg_handlers.Handler, _: object, method: Basic.Deliver, properties: BasicProperties, body: bytes
    ) -> None:
        handler(connection, properties.message_id, publish_event, **json.loads(body))
        channel.basic_ack(method.delivery_tag)

    channel.basic_qos(prefetch_count=PREFETCH)
    for queue, handler in HANDLERS.items():
        channel.basic_consume(queue, functools.partial(handle, handler))
    channel.start_consuming()


if __name__ == "__main__":
    main()
