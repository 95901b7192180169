"""How the stubs of the siblings speak with each peer: plain JSON events, or the messages of its own tasks.

What a peer asks is alike everywhere: an event on the topic exchange `orders`.
"""

import functools
import json
import time
import uuid
from collections.abc import Callable
from typing import Any

from pika.spec import Basic, BasicProperties

from benchmarks.system import PRICES, Ask, Publish, Wire

EXCHANGE = "orders"
#: The queues of the stubs.
ASKED = (("menu", EXCHANGE, "order.created"), ("payment", EXCHANGE, "payment.requested"))
#: The queues of the workers: of the peers that hear events, by routing key, and of those that run tasks.
EVENT_QUEUES = {"menu.reserved": "orders.menu-reserved", "payment.completed": "orders.payment-completed"}
TASK_QUEUE = "order-tasks"

#: Makes a message, under a new id, of what a sibling says: the name, in the way of functions, and the data.
Message = Callable[[str, dict[str, Any]], Publish]


def asks(deliver: Basic.Deliver, _properties: BasicProperties, body: bytes) -> Ask | None:
    event = json.loads(body)
    if deliver.routing_key == "order.created":
        return Ask("menu", event["order_id"], tuple(event["menu_ids"]))
    return Ask("payment", event["order_id"], amount=str(event["amount"]))


@functools.cache
def items(menu_ids: tuple[int, ...]) -> list[dict[str, Any]]:
    return [{"id": each, "name": PRICES[each][0], "price": PRICES[each][1], "stock": 10} for each in menu_ids]


def speaking(message: Message, *, reply_queues: tuple[str, ...]) -> Wire:
    return Wire(
        queues=ASKED,
        asks=asks,
        reserved=lambda ask: message("menu_reserved", {"order_id": ask.order_id, "items": items(ask.menu_ids)}),
        completed=lambda ask: message(
            "payment_completed",
            {"order_id": ask.order_id, "payment_id": f"payment-{ask.order_id}", "amount": int(ask.amount or 0)},
        ),
        reply_queues=reply_queues,
    )


def event(name: str, data: dict[str, Any]) -> Publish:
    """A plain JSON event, routed by its type."""
    properties = BasicProperties(content_type="application/json", delivery_mode=2, message_id=str(uuid.uuid4()))
    return Publish(EXCHANGE, name.replace("_", "."), json.dumps(data).encode(), properties)


def celery_task(name: str, data: dict[str, Any]) -> Publish:
    """A task of Celery's message protocol 2, with the headers that it requires.

    https://docs.celeryq.dev/en/stable/internals/protocol.html
    """
    task_id = str(uuid.uuid4())
    embed = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
    properties = BasicProperties(
        content_type="application/json",
        content_encoding="utf-8",
        headers={"lang": "py", "task": name, "id": task_id, "root_id": task_id, "parent_id": None, "group": None},
        delivery_mode=2,
        correlation_id=task_id,
        message_id=task_id,
    )
    return Publish("", TASK_QUEUE, json.dumps([[], data, embed]).encode(), properties)


def dramatiq_message(name: str, data: dict[str, Any]) -> Publish:
    """A message to an actor, as Dramatiq's JSON encoder writes it."""
    message_id = str(uuid.uuid4())
    message = {
        "queue_name": TASK_QUEUE,
        "actor_name": name,
        "args": [],
        "kwargs": data,
        "options": {},
        "message_id": message_id,
        "message_timestamp": int(time.time() * 1000),
    }
    body = json.dumps(message, separators=(",", ":")).encode()
    return Publish("", TASK_QUEUE, body, BasicProperties(delivery_mode=2, message_id=message_id))


EVENTS = speaking(event, reply_queues=tuple(EVENT_QUEUES.values()))
CELERY = speaking(celery_task, reply_queues=(TASK_QUEUE,))
DRAMATIQ = speaking(dramatiq_message, reply_queues=(TASK_QUEUE,))
