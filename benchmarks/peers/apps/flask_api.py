"""POST /orders in Flask, for the peers whose library does not serve HTTP."""

import importlib
import json
import os

from flask import Flask, request
from flask.typing import ResponseReturnValue
from pydantic import ValidationError

import psycopg_handlers
from orders import PLACE, PlaceOrder

#: Database connections: one for each of gunicorn's threads, so that none of them waits for another.
POOL_SIZE = int(os.environ.get("API_THREADS", "16"))


def app(peer: str) -> Flask:
    """The application; the peer's `publish` runs after the commit, so a crash in between loses the event."""
    app = Flask("orders")
    publish: psycopg_handlers.Publish = importlib.import_module(peer).publish
    pool = psycopg_handlers.pool(os.environ["DATABASE_URL"], size=POOL_SIZE)

    @app.post("/orders")
    def place_order() -> ResponseReturnValue:
        order = PlaceOrder.model_validate_json(request.get_data())
        with pool.connection() as connection:
            (order_id,) = connection.execute(PLACE, (order.user_id, json.dumps(order.menu_ids))).fetchone()
        publish("order.created", {"order_id": order_id, **order.model_dump()})
        return {"id": order_id, "user_id": order.user_id, "status": "pending"}, 202

    @app.get("/healthz")
    def healthz() -> ResponseReturnValue:
        return {"status": "ok"}

    @app.errorhandler(ValidationError)
    def invalid(error: ValidationError) -> ResponseReturnValue:
        return {"errors": error.errors(include_url=False, include_context=False, include_input=False)}, 400

    return app
