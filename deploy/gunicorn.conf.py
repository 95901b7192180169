"""The configuration of gunicorn, which serves the API. Operators configure it by the variables in docs/settings.md."""

import os
import shutil
import signal
import tempfile
from typing import Any

from order_service import process, vendor
from order_service.storage.database import Database
from order_service.storage.migrate import wait_for_database

#: The directory in which prometheus_client collects the metrics of several workers. The library reads the variable
#: when it is imported, which is in the workers. https://prometheus.github.io/client_python/multiprocess/
METRICS_DIR, METRICS_PREFIX = "PROMETHEUS_MULTIPROC_DIR", "order-service-metrics-"
_settings = process.begin()
bind = f"{_settings.host}:{_settings.port}"
worker_class = vendor.gunicorn_worker()
workers = _settings.api_workers
threads = _settings.api_threads
# In seconds, and longer than the longest wait of a POST for the menu.
timeout = 60
graceful_timeout = 8
keepalive = 75
# gunicorn would create it below $HOME, which a container may not have.
control_socket_disable = True
# A reload (SIGHUP) keeps the existing one.
if workers > 1 and METRICS_DIR not in os.environ:
    os.environ[METRICS_DIR] = tempfile.mkdtemp(prefix=METRICS_PREFIX)

#: The longest wait for the next byte of a request, in seconds: it occupies a thread.
READ_SECONDS = 10


def when_ready(server: Any) -> None:
    """Limit every read of a request."""
    vendor.limit_gunicorn_reads([listener.sock for listener in server.LISTENERS], READ_SECONDS)


def post_worker_init(worker: Any) -> None:
    """On SIGTERM, end open streams and waits before gunicorn waits for their requests."""
    stopping = worker.wsgi.extensions["api"].stopping
    handle_sigterm = signal.getsignal(signal.SIGTERM)

    def stop(number: int, frame: Any) -> None:
        stopping.set()
        handle_sigterm(number, frame)

    signal.signal(signal.SIGTERM, stop)


def on_starting(_server: Any) -> None:
    """Before any worker starts, wait for the database, and exit if it is not migrated."""
    stop = process.stop_on_signal()
    database = Database(_settings.database_url)
    wait_for_database(database, stop)
    database.dispose()
    signal.set_wakeup_fd(-1)  # gunicorn replaces the handlers, which ends the flag and closes its descriptor
    if stop.is_set():
        raise SystemExit(0)


def child_exit(_server: Any, worker: Any) -> None:
    """Remove the gauges of a worker that has ended; its counters stay."""
    if METRICS_DIR in os.environ:
        from prometheus_client import multiprocess

        multiprocess.mark_process_dead(worker.pid)


def on_exit(_server: Any) -> None:
    """Remove the metrics directory."""
    metrics = os.environ.get(METRICS_DIR, "")
    if os.path.basename(metrics).startswith(METRICS_PREFIX):
        shutil.rmtree(metrics, ignore_errors=True)
