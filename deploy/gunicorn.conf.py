"""How gunicorn serves the API; every value comes from the settings (docs/settings.md)."""

import signal
from typing import Any

from order_service import startup
from order_service.db import Database

_settings = startup.begin()
bind = f"{_settings.host}:{_settings.port}"
worker_class = "gthread"
workers = _settings.api_workers
threads = _settings.api_threads
# A POST may wait for the menu, so a request is given longer than the longest wait.
timeout = 60
graceful_timeout = 8
keepalive = 75
# It would be written below $HOME, which a container need not have.
control_socket_disable = True


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
    startup.wait_for_database(database, stop.wait, stop.is_set)
    database.dispose()
    if stop.is_set():
        raise SystemExit(0)
