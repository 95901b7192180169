"""The broker, and how both processes publish with it: persistent."""

import os
from typing import Any

from faststream.rabbit import Channel, ExchangeType, RabbitBroker, RabbitExchange

EXCHANGE = RabbitExchange("orders", type=ExchangeType.TOPIC, durable=True)
#: Messages that a subscriber takes at once. Each waits in turn for the database, whose commits then go together.
PREFETCH = int(os.environ.get("PREFETCH", "10"))
CONFIRMS = bool(int(os.environ.get("CONFIRMS", "1")))

broker = RabbitBroker(
    os.environ["RABBITMQ_URL"], default_channel=Channel(prefetch_count=PREFETCH, publisher_confirms=CONFIRMS)
)


async def publish(routing_key: str, event: dict[str, Any]) -> None:
    # Not mandatory: nobody need listen to an event.
    await broker.publish(event, exchange=EXCHANGE, routing_key=routing_key, persist=True, mandatory=False)
