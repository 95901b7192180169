"""What else one might take for this work: the same saga on four libraries, each as its own documentation has it done.

All of them: the same tables and statements, durable queues, persistent messages, an ack after the commit, and the
message's id for what comes twice. None of them has an outbox: they commit, then publish. Their programs are in apps/.
"""

from collections.abc import Callable, Sequence

from benchmarks.peers import store, wires
from benchmarks.system import System, Wire

#: The peers' programs import each other from here, and nothing of the harness.
APPS = "benchmarks/peers/apps"
#: Threads of gunicorn: as many as the load has connections.
API_THREADS = 16
#: Threads of Dramatiq's worker, its default.
WORKER_THREADS = 8


def peer(
    name: str,
    what: str,
    *,
    api: Sequence[str],
    worker: Sequence[str],
    wire: Wire,
    prepare: Callable[[str, str], None],
    orders: int = 1500,
) -> System:
    return System(
        name=name,
        what=what,
        processes={"api": ("{python}", "-m", *api), "worker": ("{python}", "-m", *worker)},
        wire=wire,
        prepare=prepare,
        preload=store.preload,
        count_reserved=store.COUNT_RESERVED,
        count_paid=store.COUNT_PAID,
        times=store.TIMES,
        environment={"PYTHONPATH": APPS, "API_THREADS": str(API_THREADS), "WORKER_THREADS": str(WORKER_THREADS)},
        orders=orders,
    )


def gunicorn(app: str) -> Sequence[str]:
    return (
        *("gunicorn", "--worker-class", "gthread", "--workers", "1", "--threads", str(API_THREADS)),
        *("--keep-alive", "75", "--no-control-socket", "--log-level", "warning"),
        *("--bind", "127.0.0.1:{port}", f"{app}:app()"),
    )


PEERS = (
    peer(
        "faststream",
        "FastAPI on uvicorn; FastStream with asyncpg, 10 messages at once",
        api=(
            *("uvicorn", "faststream_peer.api:app", "--host", "127.0.0.1", "--port", "{port}"),
            *("--no-access-log", "--log-level", "warning"),
        ),
        worker=("faststream", "run", "faststream_peer.worker:app", "--log-level", "warning"),
        wire=wires.EVENTS,
        prepare=store.prepare_events,
    ),
    peer(
        "celery",
        "Flask on gunicorn; a prefork worker of 2 processes",
        api=gunicorn("celery_peer.api"),
        worker=(
            *("celery", "--app", "celery_peer.tasks", "worker", "--concurrency", "2", "--loglevel", "warning"),
            *("--without-gossip", "--without-mingle", "--without-heartbeat"),
        ),
        wire=wires.CELERY,
        prepare=store.prepare_celery,
    ),
    peer(
        "dramatiq",
        f"Flask on gunicorn; one worker process of {WORKER_THREADS} threads",
        api=gunicorn("dramatiq_peer.api"),
        worker=("dramatiq", "--processes", "1", "--threads", str(WORKER_THREADS), "dramatiq_peer.actors"),
        wire=wires.DRAMATIQ,
        prepare=store.prepare_dramatiq,
    ),
    peer(
        "pika",
        "Flask on gunicorn; a blocking consumer, one message a transaction",
        api=gunicorn("pika_peer.api"),
        worker=("pika_peer.worker",),
        wire=wires.EVENTS,
        prepare=store.prepare_events,
    ),
)
