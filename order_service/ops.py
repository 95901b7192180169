"""The second listener of a process (ORDER_OPS_PORT), for monitoring systems: /metrics, /healthz and /readyz."""

import json
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler
from socketserver import TCPServer, ThreadingMixIn
from typing import Any
from urllib.parse import urlsplit

import psycopg
import sqlalchemy as sa
import structlog

from order_service import process, vendor
from order_service.config import Settings
from order_service.storage import migrate
from order_service.storage.database import Database

log = structlog.get_logger(__name__)
#: A loop that has not turned for this long is stuck, in seconds. Reaching an absent server takes less per turn.
STUCK_SECONDS = 30.0
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

    @property
    def still_seconds(self) -> float:
        """How long ago it turned, in seconds."""
        return 0.0 if self.turned_at is None else time.monotonic() - self.turned_at


class Server(ThreadingMixIn, TCPServer):
    """Answers in threads of its own; each request asks `loops` for the loops of the process."""

    daemon_threads = allow_reuse_address = True

    def __init__(self, settings: Settings, loops: Callable[[], Sequence[Loop]], *, reuse_port: bool) -> None:
        self.allow_reuse_port = reuse_port
        self.address_family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
        self._url, self._loops = settings.database_url, loops
        super().__init__((settings.host, settings.ops_port or 0), _Handler)

    def answer(self, path: str) -> tuple[int, str, bytes]:
        """Status, content type and body."""
        if path == "/metrics":
            return 200, METRICS_TYPE, vendor.prometheus_metrics()
        if path == "/healthz":
            stuck = {loop.name: round(loop.still_seconds, 1) for loop in self._loops()}
            stuck = {name: seconds for name, seconds in stuck.items() if seconds > STUCK_SECONDS}
            return _json(503, status="stuck", seconds_since_turn=stuck) if stuck else _json(200, status="ok")
        if path == "/readyz":
            missing = [*self._missing_of_database(), *(loop.missing for loop in self._loops() if loop.missing)]
            return _json(503, status="not ready", missing=missing) if missing else _json(200, status="ready")
        return _json(404, status="not found", paths=["/metrics", "/healthz", "/readyz"])

    def _missing_of_database(self) -> list[str]:
        database = Database(self._url, pool_size=1, role="readiness")
        try:
            migrate.check_migrated(database)
            database.check_writable()
            with database.engine.connect() as connection:
                connection.execute(sa.text("SELECT 1"))  # on SQLite a transaction that may write, and is rolled back
        except migrate.NotMigrated as error:
            return [str(error)]
        except (sa.exc.SQLAlchemyError, sqlite3.Error, psycopg.Error) as error:  # the latter two while connecting
            return [f"the database cannot be used: {process.first_line(error)}"]
        finally:
            # Not kept: gunicorn forks its workers from this process.
            database.dispose()
        return []

    def handle_error(self, request: Any, client_address: Any) -> None:
        log.exception("unexpected error in the listener for monitoring")


class _Handler(BaseHTTPRequestHandler):
    timeout = CLIENT_SECONDS
    server: Server
    server_version, sys_version = "order-service", ""

    def do_GET(self) -> None:
        status, content_type, body = self.server.answer(urlsplit(self.path).path)
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        """No line for each request: they are many, and all alike."""


def _json(code: int, **members: object) -> tuple[int, str, bytes]:
    return code, "application/json", json.dumps(members).encode()


def serve(settings: Settings, loops: Callable[[], Sequence[Loop]], *, reuse_port: bool = False) -> Server | None:
    """Serve in a thread if ORDER_OPS_PORT is set. Exits with 2, and names it, if this process cannot listen there.

    `reuse_port`: another process that did so, too, may listen there.
    """
    if settings.ops_port is None:
        return None
    try:
        server = Server(settings, loops, reuse_port=reuse_port)
    except OSError as error:
        process.refuse_address(error, settings.host, settings.ops_port, setting="ORDER_OPS_PORT")
    threading.Thread(target=server.serve_forever, daemon=True, name="ops").start()
    log.info("serving metrics and health", port=settings.ops_port)
    return server
