"""POST /orders in one statement: its own transaction, one round trip."""

import json
import os
import threading
from collections.abc import Callable, Iterable
from typing import Any

import psycopg

from benchmarks.probe import CHANNEL, PLANS

#: Order and outbox row; the event's body is made where the order's id is.
PLACE = """
with placed as (
    insert into orders (user_id, menu_ids, state) values (%s, %s, 'awaiting_menu') returning id, menu_ids
)
insert into outbox (routing_key, body)
select 'order.created', convert_to('{"order_id":' || id || ',"menu_ids":' || menu_ids || '}', 'UTF8') from placed
returning (select id from placed)
"""
_local = threading.local()
_rung = threading.Event()
_start = threading.Lock()
_ringer: threading.Thread | None = None


def app(environ: dict[str, Any], start_response: Callable[..., object]) -> Iterable[bytes]:
    """WSGI. Whatever is no POST is asked by whoever waits for us to be there."""
    if environ["REQUEST_METHOD"] != "POST":
        return _answer(start_response, "200 OK", b"{}")
    wanted = json.loads(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])))
    row = _connection().execute(PLACE, [wanted["user_id"], json.dumps(wanted["menu_ids"])], prepare=True).fetchone()
    _ring()
    return _answer(start_response, "202 Accepted", b'{"id":%d,"status":"pending"}' % (row[0] if row else 0))


def _answer(start_response: Callable[..., object], status: str, body: bytes) -> Iterable[bytes]:
    start_response(status, [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]


def _connection() -> psycopg.Connection[tuple[Any, ...]]:
    if not hasattr(_local, "connection"):
        _local.connection = psycopg.connect(os.environ["DATABASE_URL"], autocommit=True, options=PLANS)
    connection: psycopg.Connection[tuple[Any, ...]] = _local.connection
    return connection


def _ring() -> None:
    """Wake the relay, once for all the commits of a moment: NOTIFY inside would make them commit one by one."""
    global _ringer
    _rung.set()
    if _ringer is None:
        with _start:
            if _ringer is None:
                _ringer = threading.Thread(target=_keep_ringing, daemon=True)
                _ringer.start()


def _keep_ringing() -> None:
    with psycopg.connect(os.environ["DATABASE_URL"], autocommit=True, options=PLANS) as connection:
        while _rung.wait():
            _rung.clear()
            connection.execute(f"notify {CHANNEL}")
