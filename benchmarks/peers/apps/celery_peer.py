"""Celery: the siblings' replies are tasks of a prefork worker; events are published with Celery's pool of producers."""

import os
import uuid
from typing import Any

import psycopg
from celery import Celery, Task
from celery.signals import worker_process_init
from kombu import Exchange

import psycopg_handlers

EVENTS = Exchange("orders", type="topic", durable=True)
PUBLISH = {"serializer": "json", "delivery_mode": "persistent", "retry": True}

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
    """A forked process needs its own connection."""
    global _connection
    _connection = psycopg.connect(os.environ["DATABASE_URL"], **psycopg_handlers.CONNECT)


def publish(routing_key: str, event: dict[str, Any]) -> None:
    with app.producer_or_acquire() as producer:
        producer.publish(event, exchange=EVENTS, routing_key=routing_key, message_id=str(uuid.uuid4()), **PUBLISH)


@app.task(bind=True, name="menu_reserved", autoretry_for=(psycopg.OperationalError,))
def menu_reserved(self: Task, **data: Any) -> None:
    psycopg_handlers.menu_reserved(_connection, self.request.id, publish, **data)


@app.task(bind=True, name="payment_completed", autoretry_for=(psycopg.OperationalError,))
def payment_completed(self: Task, **data: Any) -> None:
    psycopg_handlers.payment_completed(_connection, self.request.id, publish, **data)
