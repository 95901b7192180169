"""Publishing with pika: persistent, unconfirmed, as in the tutorial of work queues."""

import json
import uuid
from typing import Any

from pika import BasicProperties
from pika.adapters.blocking_connection import BlockingChannel

EXCHANGE = "orders"


def publish(channel: BlockingChannel, routing_key: str, event: dict[str, Any]) -> None:
    properties = BasicProperties(
        content_type="application/json", delivery_mode=2, message_id=str(uuid.uuid4()), type=routing_key
    )
    channel.basic_publish(EXCHANGE, routing_key, json.dumps(event).encode(), properties)
