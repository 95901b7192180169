"""The same work on four other libraries, each used as its own documentation recommends.

All of them have the same tables and statements, durable queues, persistent messages, an ack after the commit, and
deduplication by message id. None has an outbox: they commit, then publish. Their programs are in apps/.
"""

import json
import time
import uuid
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from dramatiq.brokers.rabbitmq import RabbitmqBroker

from benchmarks.system import Message, Protocol, System, json_event, persistent, preparation

#: The directory of the peers' programs, which import each other and nothing of the harness.
APPS = Path(__file__).with_name("apps")
TABLES = Path(__file__).with_name("tables.sql").read_text()
EXCHANGE = "orders"
#: The queues of the workers that consume events, and the queue of those that run tasks.
EVENT_QUEUES = {"orders.menu-reserved": "menu.reserved", "orders.payment-completed": "payment.completed"}
TASK_QUEUE = "order-tasks"
#: Threads of gunicorn: as many as the load has connections.
API_THREADS = 16
#: Threads of Dramatiq's worker, its default.
WORKER_THREADS = 8


def celery_task(routing_key: str, data: dict[str, Any]) -> Message:
    """A task in Celery's message protocol 2, with the headers that it requires.

    https://docs.celeryq.dev/en/stable/internals/protocol.html
    """
    task_id, name = str(uuid.uuid4()), routing_key.replace(".", "_")
    headers = {"lang": "py", "task": name, "id": task_id, "root_id": task_id, "parent_id": None, "group": None}
    content = {"content_type": "application/json", "content_encoding": "utf-8"}
    embed = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
    properties = persistent(task_id, correlation_id=task_id, headers=headers, **content)
    return Message("", TASK_QUEUE, json.dumps([[], data, embed]).encode(), properties)


def dramatiq_message(routing_key: str, data: dict[str, Any]) -> Message:
    """A message to an actor, as Dramatiq's JSON encoder writes it."""
    message_id, name = str(uuid.uuid4()), routing_key.replace(".", "_")
    message = {"queue_name": TASK_QUEUE, "actor_name": name, "args": [], "kwargs": data, "options": {}}
    message |= {"message_id": message_id, "message_timestamp": int(time.time() * 1000)}
    return Message("", TASK_QUEUE, json.dumps(message, separators=(",", ":")).encode(), persistent(message_id))


def prepare_dramatiq(database_url: str, rabbitmq_url: str) -> None:
    """The queue for all actors, with the two queues that Dramatiq declares next to it."""
    preparation(TABLES, EXCHANGE, {})(database_url, rabbitmq_url)
    with closing(RabbitmqBroker(url=rabbitmq_url)) as broker:
        broker.declare_queue(TASK_QUEUE, ensure=True)


prepare_events = preparation(TABLES, EXCHANGE, EVENT_QUEUES)
#: When it starts, Celery binds the queue to an exchange of its own.
prepare_celery = preparation(TABLES, EXCHANGE, {TASK_QUEUE: None})
EVENTS = Protocol(EXCHANGE, json_event(EXCHANGE), tuple(EVENT_QUEUES))
CELERY = Protocol(EXCHANGE, celery_task, (TASK_QUEUE,))
DRAMATIQ = Protocol(EXCHANGE, dramatiq_message, (TASK_QUEUE,))
GUNICORN = (
    f"gunicorn --worker-class gthread --workers 1 --threads {API_THREADS} --keep-alive 75 --no-control-socket "
    "--log-level warning --bind 127.0.0.1:{port}"
)


def _peer(name: str, protocol: Protocol, prepare: Callable[[str, str], None], *, api: str, worker: str) -> System:
    return System(
        name=name,
        processes={"api": ("{python}", "-m", *api.split()), "worker": ("{python}", "-m", *worker.split())},
        protocol=protocol,
        prepare=prepare,
        environment={"PYTHONPATH": str(APPS), "API_THREADS": str(API_THREADS), "WORKER_THREADS": str(WORKER_THREADS)},
    )


PEERS: tuple[System, ...] = (
    _peer(
        *("faststream", EVENTS, prepare_events),
        api="uvicorn faststream_api:app --host 127.0.0.1 --port {port} --no-access-log --log-level warning",
        worker="faststream run faststream_peer:app --log-level warning",
    ),
    _peer(
        *("celery", CELERY, prepare_celery),
        api=f"{GUNICORN} flask_api:app('celery_peer')",
        worker="celery --app celery_peer worker --concurrency 2 --loglevel warning "
        "--without-gossip --without-mingle --without-heartbeat",
    ),
    _peer(
        *("dramatiq", DRAMATIQ, prepare_dramatiq),
        api=f"{GUNICORN} flask_api:app('dramatiq_peer')",
        worker=f"dramatiq --processes 1 --threads {WORKER_THREADS} dramatiq_peer",
    ),
    _peer("pika", EVENTS, prepare_events, api=f"{GUNICORN} flask_api:app('pika_peer')", worker="pika_peer"),
)
