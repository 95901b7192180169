"""The worker: one subscriber per queue, one transaction per message; FastStream acks when the handler returns."""

import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
from faststream import AckPolicy, FastStream
from faststream.rabbit import RabbitMessage, RabbitQueue

from faststream_peer.events import EXCHANGE, PREFETCH, broker, publish
from orders.model import price_of
from orders.statements import PAY, REMEMBER, RESERVE


@asynccontextmanager
async def lifespan() -> AsyncIterator[None]:
    global pool
    async with asyncpg.create_pool(os.environ["DATABASE_URL"], min_size=PREFETCH, max_size=PREFETCH) as pool:
        yield


#: Not a `Context`, which FastStream resolves in another thread for every message.
pool: asyncpg.Pool
app = FastStream(broker, lifespan=lifespan)


async def apply_once(message: RabbitMessage, statement: str, *arguments: Any) -> bool:
    """Run the statement unless the message was applied before; whether it changed the order."""
    async with pool.acquire() as connection, connection.transaction():
        if await connection.execute(REMEMBER, message.message_id) == "INSERT 0 0":
            return False
        return bool(await connection.execute(statement, *arguments) == "UPDATE 1")


@broker.subscriber(
    RabbitQueue("orders.menu-reserved", durable=True, routing_key="menu.reserved"),
    EXCHANGE,
    ack_policy=AckPolicy.NACK_ON_ERROR,
)
async def menu_reserved(order_id: int, items: list[dict[str, Any]], message: RabbitMessage) -> None:
    amount = price_of(items)
    if await apply_once(message, RESERVE, order_id, json.dumps(items), amount):
        await publish("payment.requested", {"order_id": order_id, "amount": amount})


@broker.subscriber(
    RabbitQueue("orders.payment-completed", durable=True, routing_key="payment.completed"),
    EXCHANGE,
    ack_policy=AckPolicy.NACK_ON_ERROR,
)
async def payment_completed(order_id: int, payment_id: str, amount: int, message: RabbitMessage) -> None:
    if await apply_once(message, PAY, order_id, payment_id, amount):
        await publish("order.paid", {"order_id": order_id, "payment_id": payment_id})
