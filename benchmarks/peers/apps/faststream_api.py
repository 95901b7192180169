"""The API of the FastStream peer: FastAPI, with the broker and the pool opened in its lifespan."""

import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
from fastapi import FastAPI

from faststream_peer import broker, publish
from orders import PLACE, PlaceOrder

#: Database connections; asyncpg's own default.
POOL_SIZE = 10


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    url = os.environ["DATABASE_URL"]
    async with asyncpg.create_pool(url, min_size=POOL_SIZE, max_size=POOL_SIZE) as app.state.pool:
        await broker.connect()  # without start(), the worker's subscribers do not consume here
        yield
        await broker.stop()


app = FastAPI(lifespan=lifespan)


@app.post("/orders", status_code=202)
async def place_order(order: PlaceOrder) -> dict[str, Any]:
    order_id = await app.state.pool.fetchval(PLACE, order.user_id, json.dumps(order.menu_ids))
    await publish("order.created", {"order_id": order_id, **order.model_dump()})
    return {"id": order_id, "user_id": order.user_id, "status": "pending"}


@app.get("/healthz")
async def healthz() -> dict[str, str]:
    return {"status": "ok"}
