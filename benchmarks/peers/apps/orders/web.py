"""POST /orders in Flask, for the peers whose library does not bring its own way to serve HTTP."""

import os
from collections.abc import Callable
from typing import Any

from flask import Flask, request
from flask.typing import ResponseReturnValue
from pydantic import ValidationError

from orders import database
from orders.model import PlaceOrder

#: Connections to the database: one for each of gunicorn's threads, so that none of them waits for another.
POOL_SIZE = int(os.environ.get("API_THREADS", "16"))


def create_app(publish: Callable[[str, dict[str, Any]], None]) -> Flask:
    """`publish(routing_key, event)` comes after the commit: without an outbox, a crash in between loses the event."""
    app = Flask("orders")
    connections = database.pool(os.environ["DATABASE_URL"], size=POOL_SIZE)

    @app.post("/orders")
    def place_order() -> ResponseReturnValue:
        order = PlaceOrder.model_validate_json(request.get_data())
        with connections.connection() as connection:
            order_id = database.place(connection, order.user_id, order.menu_ids)
        publish("order.created", {"order_id": order_id, **order.model_dump()})
        return {"id": order_id, "user_id": order.user_id, "status": "pending"}, 202

    @app.get("/healthz")
    def healthz() -> ResponseReturnValue:
        return {"status": "ok"}

    @app.errorhandler(ValidationError)
    def invalid(error: ValidationError) -> ResponseReturnValue:
        return {"errors": error.errors(include_url=False, include_context=False, include_input=False)}, 400

    return app
