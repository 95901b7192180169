"""The limit: the same design without a framework, validation, history or deadlines, and with plain JSON events.

It keeps what the guarantees need: order and outbox row in one transaction, publisher confirms before a row is deleted,
deduplication by message id, ack after commit, durable quorum queues. What the service costs beyond that is the cost of
its features.
"""

from pathlib import Path

from benchmarks.system import Protocol, System, json_event, preparation, statements

EXCHANGE = "probe.events"
QUEUES = {"probe.menu": "menu.reserved", "probe.payment": "payment.completed"}
#: The PostgreSQL channel for notifications about new outbox rows.
CHANNEL = "outbox"
#: The connection options of the service: index scans and nested loops, also while the tables have no statistics.
PLANS = "-c enable_seqscan=off -c enable_hashjoin=off -c enable_mergejoin=off -c jit=off"
SQL = statements(Path(__file__).with_name("probe.sql"))


def _system(name: str, api: str) -> System:
    return System(
        name=name,
        processes={
            "api": ("{python}", "-m", *api.split(), "benchmarks.probe.app:app"),
            "worker": ("{python}", "-m", "benchmarks.probe.worker"),
            "relay": ("{python}", "-m", "benchmarks.probe.relay"),
        },
        protocol=Protocol(EXCHANGE, json_event(EXCHANGE), tuple(QUEUES)),
        prepare=preparation(SQL["tables"], EXCHANGE, QUEUES, **{"x-queue-type": "quorum"}),
        orders=5000,
    )


GTHREAD = _system(
    "probe-gthread",
    "gunicorn --bind=127.0.0.1:{port} --worker-class=gthread --threads=32 --keep-alive=75 --no-control-socket "
    "--log-level=warning",
)
GRANIAN = _system(
    "probe-granian",
    "granian --interface=wsgi --host=127.0.0.1 --port={port} --workers=1 --blocking-threads=16 --log-level=warning",
)
