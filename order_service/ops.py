"""The second listener of a process (ORDER_OPS_PORT), for monitoring systems: /metrics, /healthz and /readyz."""

import importlib
import json
import os
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import psycopg
import sqlalchemy as sa
import structlog
from werkzeug.serving import BaseWSGIServer, ThreadedWSGIServer, WSGIRequestHandler
from werkzeug.wrappers import Request, Response

from order_service import metrics, process, vendor
from order_service.config import Settings
from order_service.process import Attempt
from order_service.storage import schema
from order_service.storage.database import Database

log = structlog.get_logger(__name__)
#: A loop that has not turned for this long is stuck, in seconds. Reaching an absent server takes less per turn.
STUCK_SECONDS = 30.0
#: After this time a lock of the database is reported, in seconds: probes do not wait for long.
LOCK_SECONDS = 1
#: The most connections that are open at once.
MOST_CONNECTIONS = 64
#: How long a request waits for the check of the database, in seconds; an unreachable or locked one takes up to 15 s.
CHECK_SECONDS = 2.0
#: How long a client may be silent, in seconds.
CLIENT_SECONDS = 10
#: https://prometheus.io/docs/instrumenting/exposition_formats/
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Loop:
    """One loop of a process: when it last turned, and what it still needs before it can work."""

    def __init__(self, name: str, *, missing: str = "", turned_at: float | None = None) -> None:
        self.name, self.missing = name, missing
        #: On the monotonic clock. None: it has not begun, because the process waits for the database.
        self.turned_at = turned_at

    def turn(self) -> None:
        self.turned_at = time.monotonic()

    @contextmanager
    def session(self) -> Iterator[None]:
        """At the end of the block, such as that of a connection, the loop misses what it missed at the beginning."""
        missing = self.missing
        self.turn()
        try:
            yield
        finally:
            self.missing = missing

    @property
    def still_seconds(self) -> float:
        """How long ago it turned, in seconds."""
        return 0.0 if self.turned_at is None else time.monotonic() - self.turned_at


#: Names what is missing; None if that was not found out in time.
_Check = Attempt[list[str]]


class _Forks:
    """Keeps this process from being forked in a block, but for at most CHECK_SECONDS: gunicorn forks its workers.

    A worker that is forked while a thread of this process uses SQLite or OpenSSL inherits their locks as held, and
    waits for them without end. What takes longer waits for a server, without such a lock, and gunicorn could neither
    replace a worker nor stop until it ends.
    """

    def __init__(self) -> None:
        self._running, self._is_waited_for, self._is_overdue = threading.Lock(), False, False
        os.register_at_fork(before=self._wait, after_in_parent=self._go_on, after_in_child=self._go_on)

    @contextmanager
    def held(self) -> Iterator[None]:
        """One thread at a time."""
        with self._running:
            self._is_overdue = False
            yield

    def _wait(self) -> None:
        # Of several forks, only the first waits for a block that takes too long.
        self._is_waited_for = self._running.acquire(timeout=0 if self._is_overdue else CHECK_SECONDS)
        self._is_overdue = not self._is_waited_for

    def _go_on(self) -> None:
        if self._is_waited_for:
            self._running.release()


class _Server(ThreadedWSGIServer):
    """A thread for each connection, of which the oldest is closed for one that is too many."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        self._connections: dict[Any, None] = {}
        self._lock = threading.Lock()
        super().__init__(*arguments, **named)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            self._connections[request] = None
            if len(self._connections) > MOST_CONNECTIONS:
                oldest = next(iter(self._connections))
                del self._connections[oldest]
                with suppress(OSError):
                    oldest.shutdown(socket.SHUT_RDWR)  # its thread closes it
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._connections.pop(request, None)
        super().shutdown_request(request)


class _Handler(WSGIRequestHandler):
    timeout = CLIENT_SECONDS

    def log_request(self, *_: object) -> None:
        """Log nothing: monitoring systems send a request every few seconds."""


def _answer(request: Request, database: _Check, loops: Sequence[Loop]) -> Response:
    match request.path:
        case "/metrics":
            return Response(vendor.prometheus_metrics() + _own_metrics(database, loops), content_type=METRICS_TYPE)
        case "/healthz":
            stuck = {loop.name: round(loop.still_seconds, 1) for loop in loops if loop.still_seconds > STUCK_SECONDS}
            return _json(503, status="stuck", seconds_since_turn=stuck) if stuck else _json(200, status="ok")
        case "/readyz":
            found = database.result()
            if found is None:
                found = [f"the database has not answered within {CHECK_SECONDS:g} s"]
            missing = [*found, *(loop.missing for loop in loops if loop.missing)]
            return _json(503, status="not ready", missing=missing) if missing else _json(200, status="ready")
    return _json(404, status="not found", paths=["/metrics", "/healthz", "/readyz"])


def _own_metrics(database: _Check, loops: Sequence[Loop]) -> bytes:
    """What a process exports beside its counters; with gunicorn, the library does not let the parent process add it."""
    # Imported late: the library reads PROMETHEUS_MULTIPROC_DIR, which deploy/gunicorn.conf.py sets, at import.
    from prometheus_client import generate_latest
    from prometheus_client.registry import Collector

    values: dict[metrics.Metric, dict[tuple[str, ...], float]] = {
        metrics.READY: {("database",): database.result() == [], ("loops",): not any(loop.missing for loop in loops)},
        metrics.STALLED: {(): max((loop.still_seconds for loop in loops), default=0.0)},
    }

    class Own(Collector):
        def collect(self) -> Iterator[Any]:
            return metrics.families(values)

    return generate_latest(Own())


def _json(code: int, **members: object) -> Response:
    return Response(json.dumps(members), code, mimetype="application/json")


def _missing_of_database(url: str) -> list[str]:
    database = Database(url, pool_size=1, lock_seconds=LOCK_SECONDS, role="readiness")
    try:
        schema.check_migrated(database)
        database.check_writable()
        with database.engine.connect() as connection:
            connection.execute(sa.text("SELECT 1"))  # on SQLite a transaction that may write, and is rolled back
    except schema.NotMigrated as error:
        return [str(error)]
    except (sa.exc.SQLAlchemyError, sqlite3.Error, psycopg.Error) as error:  # the latter two while connecting
        return [f"the database cannot be used: {process.first_line(error)}"]
    finally:
        # Not kept: gunicorn forks its workers from this process.
        database.dispose()
    return []


def serve(
    settings: Settings, loops: Callable[[], Sequence[Loop]], *, reuse_port: bool = False
) -> BaseWSGIServer | None:
    """Serve in a thread if ORDER_OPS_PORT is set. Exits with 2, and names it, if this process cannot listen there.

    `reuse_port`: another process that did so, too, may listen there.
    """
    host, port = settings.host, settings.ops_port
    if port is None:
        return None
    is_v6 = ":" in host
    family = socket.AF_INET6 if is_v6 else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, reuse_port=reuse_port, dualstack_ipv6=is_v6)
    except OSError as error:
        process.refuse_address(error, host, port, setting="ORDER_OPS_PORT")
    forks = _Forks()

    def missing() -> list[str]:
        with forks.held():
            return _missing_of_database(settings.database_url)

    # Before there is a thread that imports what this needs: a worker that is forked during an import cannot make it.
    importlib.import_module("prometheus_client.multiprocess")
    database = _Check(missing, CHECK_SECONDS)
    application = Request.application(lambda request: _answer(request, database, loops()))
    with listener:  # the server has a duplicate of it
        server = _Server(host, port, application, _Handler, fd=listener.fileno())
    threading.Thread(target=server.serve_forever, daemon=True, name="ops").start()
    log.info("serving metrics and health", port=port)
    return server
