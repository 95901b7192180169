"""FastStream with asyncpg: one subscriber per queue, one transaction per message, an ack when the handler returns."""

import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
from faststream import AckPolicy, FastStream
from faststream.rabbit import Channel, ExchangeType, RabbitBroker, RabbitExchange, RabbitMessage, RabbitQueue

from orders import PAY, REMEMBER, RESERVE, price_of

EXCHANGE = RabbitExchange("orders", type=ExchangeType.TOPIC, durable=True)
#: Messages that a subscriber processes at once, and database connections; with more, the one thread is not faster.
PREFETCH = 10

#: Without confirms, as with the other peers; waiting for them costs the worker about a tenth.
broker = RabbitBroker(
    os.environ["RABBITMQ_URL"], default_channel=Channel(prefetch_count=PREFETCH, publisher_confirms=False)
)


@asynccontextmanager
async def lifespan() -> AsyncIterator[None]:
    global pool
    async with asyncpg.create_pool(os.environ["DATABASE_URL"], min_size=PREFETCH, max_size=PREFETCH) as pool:
        yield


#: Not a `Context`, which FastStream resolves in another thread for every message.
pool: asyncpg.Pool
app = FastStream(broker, lifespan=lifespan)


async def publish(routing_key: str, event: dict[str, Any]) -> None:
    # Not mandatory: an event may have no subscriber.
    await broker.publish(event, exchange=EXCHANGE, routing_key=routing_key, persist=True, mandatory=False)


async def apply_once(message: RabbitMessage, statement: str, *arguments: Any) -> bool:
    """Run the statement unless the message was applied before; whether it changed the order."""
    async with pool.acquire() as connection, connection.transaction():
        if await connection.execute(REMEMBER, message.message_id) == "INSERT 0 0":
            return False
        return bool(await connection.execute(statement, *arguments) == "UPDATE 1")


def subscriber(queue: str, routing_key: str) -> Any:
    rabbit_queue = RabbitQueue(queue, durable=True, routing_key=routing_key)
    return broker.subscriber(rabbit_queue, EXCHANGE, ack_policy=AckPolicy.NACK_ON_ERROR)


@subscriber("orders.menu-reserved", "menu.reserved")
async def menu_reserved(order_id: int, items: list[dict[str, Any]], message: RabbitMessage) -> None:
    amount = price_of(items)
    if await apply_once(message, RESERVE, order_id, json.dumps(items), amount):
        await publish("payment.requested", {"order_id": order_id, "amount": amount})


@subscriber("orders.payment-completed", "payment.completed")
async def payment_completed(order_id: int, payment_id: str, amount: int, message: RabbitMessage) -> None:
    if await apply_once(message, PAY, order_id, payment_id, amount):
        await publish("order.paid", {"order_id": order_id, "payment_id": payment_id})
