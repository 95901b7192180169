"""The Celery application, its tasks, and how it publishes what is no task: with a producer of its own pool."""

import os
import uuid
from typing import Any

import psycopg
from celery import Celery, Task
from celery.signals import worker_process_init
from kombu import Exchange

from orders import database

EVENTS = Exchange("orders", type="topic", durable=True)

app = Celery("orders", broker=os.environ["RABBITMQ_URL"])
app.conf.update(
    task_default_queue="order-tasks",
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    task_ignore_result=True,
    broker_pool_limit=int(os.environ.get("API_THREADS", "16")),
    broker_connection_retry_on_startup=True,
)

#: The database connection of a pool process.
_connection: psycopg.Connection


@worker_process_init.connect
def connect(**_: Any) -> None:
    """A forked process needs a connection of its own."""
    global _connection
    _connection = psycopg.connect(os.environ["DATABASE_URL"], **database.HOW)


def publish(routing_key: str, event: dict[str, Any]) -> None:
    with app.producer_or_acquire() as producer:
        producer.publish(
            event,
            exchange=EVENTS,
            routing_key=routing_key,
            serializer="json",
            delivery_mode="persistent",
            message_id=str(uuid.uuid4()),
            retry=True,
        )


@app.task(bind=True, name="menu_reserved", autoretry_for=(psycopg.OperationalError,))
def menu_reserved(self: Task, order_id: int, items: list[dict[str, Any]]) -> None:
    amount = database.reserve(_connection, self.request.id, order_id=order_id, items=items)
    if amount is not None:
        publish("payment.requested", {"order_id": order_id, "amount": amount})


@app.task(bind=True, name="payment_completed", autoretry_for=(psycopg.OperationalError,))
def payment_completed(self: Task, order_id: int, payment_id: str, amount: int) -> None:
    if database.pay(_connection, self.request.id, order_id=order_id, payment_id=payment_id, amount=amount):
        publish("order.paid", {"order_id": order_id, "payment_id": payment_id})
