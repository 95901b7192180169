"""The broker, and how both processes publish with it: persistent, unconfirmed."""

import os
from typing import Any

from faststream.rabbit import Channel, ExchangeType, RabbitBroker, RabbitExchange

EXCHANGE = RabbitExchange("orders", type=ExchangeType.TOPIC, durable=True)
#: Messages that a subscriber takes at once, as many as there are connections to the database. More bring nothing: the
#: worker's one thread is busy.
PREFETCH = 10

#: The broker does not confirm, as with the other peers; to wait for it costs the worker about a tenth.
broker = RabbitBroker(
    os.environ["RABBITMQ_URL"], default_channel=Channel(prefetch_count=PREFETCH, publisher_confirms=False)
)


async def publish(routing_key: str, event: dict[str, Any]) -> None:
    # Not mandatory: nobody need listen to an event.
    await broker.publish(event, exchange=EXCHANGE, routing_key=routing_key, persist=True, mandatory=False)
