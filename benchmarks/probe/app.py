"""POST /orders as one statement: its own transaction, one round trip."""

import functools
import json
import os
import threading
from collections.abc import Callable, Iterable
from typing import Any

import psycopg

from benchmarks.probe import CHANNEL, PLANS, SQL

_local = threading.local()
_placed = threading.Event()


def app(environ: dict[str, Any], start_response: Callable[..., object]) -> Iterable[bytes]:
    """WSGI. Every request that is not a POST is a health check."""
    status, body = "200 OK", b"{}"
    if environ["REQUEST_METHOD"] == "POST":
        order = json.loads(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])))
        parameters = [order["user_id"], json.dumps(order["menu_ids"])]
        row = _connection().execute(SQL["place"], parameters, prepare=True).fetchone()
        _notify()
        status, body = "202 Accepted", b'{"id":%d,"status":"pending"}' % (row[0] if row else 0)
    start_response(status, [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]


def _connect() -> psycopg.Connection[tuple[Any, ...]]:
    return psycopg.connect(os.environ["DATABASE_URL"], autocommit=True, options=PLANS)


def _connection() -> Any:
    if not hasattr(_local, "connection"):
        _local.connection = _connect()
    return _local.connection


def _notify() -> None:
    """Wake the relay once for several commits: NOTIFY in their transactions would serialize them."""
    _placed.set()
    _start_notifier()


@functools.cache
def _start_notifier() -> None:
    threading.Thread(target=_keep_notifying, daemon=True).start()


def _keep_notifying() -> None:
    with _connect() as connection:
        while _placed.wait():
            _placed.clear()
            connection.execute(f"notify {CHANNEL}")
