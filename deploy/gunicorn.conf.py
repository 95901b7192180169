"""How gunicorn serves the API; every value comes from the settings (docs/settings.md)."""

import logging
import os
import select
import shutil
import signal
import socket
import struct
import tempfile
from typing import Any

from gunicorn.workers.gthread import ThreadWorker

from order_service import process as startup
from order_service.storage.database import Database
from order_service.storage.migrate import wait_for_database

#: How long a thread stays with a client that may send its next request at once, in milliseconds.
LINGER_MS = 5


class Worker(ThreadWorker):
    """gthread, but for a client that sends one request after the other: its thread stays with it, if others are free.

    gthread hands each request of a connection from its main thread to another thread and back, which costs as much
    as the parsing of the request.
    """

    def handle(self, conn: Any) -> Any:
        kept = super().handle(conn)
        while kept is True and self.alive and self.tpool._work_queue.empty() and _has_more(conn):
            kept = super().handle(conn)
        return kept


def _has_more(conn: Any) -> bool:
    if conn.parser.unreader.buf.getvalue():
        return True
    waiting = select.poll()
    waiting.register(conn.sock, select.POLLIN)
    return bool(waiting.poll(LINGER_MS))


#: Where prometheus_client lets several workers count together. It looks for it when it is imported: in the workers.
#: https://prometheus.github.io/client_python/multiprocess/
METRICS_DIR, METRICS_PREFIX = "PROMETHEUS_MULTIPROC_DIR", "order-service-metrics-"
_settings = startup.begin()
bind = f"{_settings.host}:{_settings.port}"
worker_class = Worker
workers = _settings.api_workers
threads = _settings.api_threads
# A POST may wait for the menu, so a request is given longer than the longest wait.
timeout = 60
graceful_timeout = 8
keepalive = 75
# It would be written below $HOME, which a container need not have.
control_socket_disable = True
# A reload (SIGHUP) keeps the one there is.
if workers > 1 and METRICS_DIR not in os.environ:
    os.environ[METRICS_DIR] = tempfile.mkdtemp(prefix=METRICS_PREFIX)

#: A client that stops in the middle of its request is let go after so long, in seconds: it holds a thread.
READ_SECONDS = 10


def when_ready(server: Any) -> None:
    """Every read of a request ends in time. The kernel hands a listener's limit on to the connections it accepts.

    gunicorn itself waits without end for the rest of a request, and takes the timeout for an error worth a traceback.
    """
    for listener in server.LISTENERS:
        listener.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", READ_SECONDS, 0))
    logging.getLogger("gunicorn.error").addFilter(_is_no_slow_client)


def _is_no_slow_client(record: logging.LogRecord) -> bool:
    return not (record.exc_info and isinstance(record.exc_info[1], BlockingIOError))


def post_worker_init(worker: Any) -> None:
    """Let open event streams end by themselves on SIGTERM; gunicorn would wait for them until it gives up."""
    streams = worker.wsgi.extensions["api"].streams
    gunicorns_own = signal.getsignal(signal.SIGTERM)

    def stop(number: int, frame: Any) -> None:
        streams.stopping.set()
        gunicorns_own(number, frame)

    signal.signal(signal.SIGTERM, stop)


def on_starting(_server: Any) -> None:
    """Before any worker: wait for the database, refuse one that is not migrated."""
    stop = startup.stop_on_signal()
    database = Database(_settings.database_url)
    wait_for_database(database, stop)
    database.dispose()
    if stop.is_set():
        raise SystemExit(0)


def child_exit(_server: Any, worker: Any) -> None:
    """What a worker counted stays; what it measured as it stood goes with it."""
    if METRICS_DIR in os.environ:
        from prometheus_client import multiprocess

        multiprocess.mark_process_dead(worker.pid)


def on_exit(_server: Any) -> None:
    """Leave nothing behind."""
    metrics = os.environ.get(METRICS_DIR, "")
    if os.path.basename(metrics).startswith(METRICS_PREFIX):
        shutil.rmtree(metrics, ignore_errors=True)
