"""The configuration of gunicorn, which serves the API. Operators configure it by the variables in docs/settings.md."""

import os
import resource
import shutil
import signal
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from gunicorn import glogging

from order_service import ops, process, vendor
from order_service.addresses import is_loopback
from order_service.config import open_to_others
from order_service.storage.database import Database
from order_service.storage.schema import wait_for_database
from order_service.web import tokens

#: The directory in which prometheus_client collects the metrics of several workers. The library reads the variable
#: when it is imported. https://prometheus.github.io/client_python/multiprocess/
METRICS_DIR, METRICS_PREFIX = "PROMETHEUS_MULTIPROC_DIR", "order-service-metrics-"
#: Connections besides those that have a thread: idle ones, and those of slow clients. Then the oldest is closed.
IDLE_CONNECTIONS = 1000
#: Descriptors for everything but connections: the database, logs, metrics.
OTHER_FILES = 200
#: Set if sockets are inherited that already listen: from systemd, or from the process that this one replaces (SIGUSR2).
INHERITED = {"LISTEN_FDS", "GUNICORN_FD"}


def _connections(threads: int) -> int:
    """The number of connections of a process, for which the limit of open files is raised where possible.

    Exits with 2 if streams and waiting POSTs could take all of them.
    """
    wanted = threads + IDLE_CONNECTIONS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if not 0 <= soft < wanted + OTHER_FILES:
        return wanted
    possible = wanted + OTHER_FILES if hard == resource.RLIM_INFINITY else min(wanted + OTHER_FILES, hard)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (possible, hard))
        soft = possible
    if soft - OTHER_FILES <= threads:
        process.refuse(
            f"ORDER_STREAMS and ORDER_WAITERS need at least {threads + OTHER_FILES + 1} open files, and the limit is "
            f"{soft}: raise it (ulimit -n) or lower them"
        )
    return min(wanted, soft - OTHER_FILES)


class Logger(glogging.Logger):  # type: ignore[misc]
    """Writes gunicorn's lines as all others, instead of with a format of its own."""

    def setup(self, cfg: Any) -> None:
        super().setup(cfg)
        self.error_log.handlers.clear()
        self.error_log.propagate = True


logger_class = Logger
# gunicorn takes it for the prefix of every path; only a documented variable may change the service.
os.environ.pop("SCRIPT_NAME", None)
_settings = process.begin(is_api=True)
bind = _settings.address
worker_class = "order_service.gunicorn_worker.Worker"
workers = _settings.api_workers
threads = _settings.api_threads
# In seconds, and longer than the longest wait of a POST for the menu.
timeout = 60
graceful_timeout = 8
keepalive = 75
# Only ORDER_TRUSTED_PROXIES decides which headers of a proxy are believed; gunicorn believes those of 127.0.0.1.
forwarded_allow_ips = ""
worker_connections, sendfile = _connections(threads), False  # the worker sends from memory
# For the workers' heartbeat files. A container with a read-only root file system may have no /tmp.
worker_tmp_dir = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108 - the files have random names
# gunicorn would create it below $HOME, which a container may not have.
control_socket_disable = True
# A reload (SIGHUP) keeps the existing one. The process that replaces this one (SIGUSR2) inherits the variable if there
# was a reload before, but needs another directory, because this one removes its own.
_own_prefix = f"{METRICS_PREFIX}{os.getpid()}-"
_metrics_name = os.path.basename(os.environ.get(METRICS_DIR, METRICS_PREFIX))
_is_of_another = _metrics_name.startswith(METRICS_PREFIX) and not _metrics_name.startswith(_own_prefix)
if (workers > 1 or _settings.ops_port) and _is_of_another:
    os.environ[METRICS_DIR] = tempfile.mkdtemp(prefix=_own_prefix)


def _check_access(address: Any) -> None:
    """Exit with 2 if a listener elsewhere than on HOST, such as one of --bind, would open the API by mistake."""
    # A socket file or a descriptor is for a proxy.
    if _settings.auth is None and isinstance(address, tuple) and not is_loopback(address[0]):
        where = address[0] or "every address"
        process.refuse(open_to_others(f"gunicorn listens on {where}, which is not a loopback address"))


def post_worker_init(worker: Any) -> None:
    """Once the application is loaded; before gunicorn stops and waits for requests, end open streams and waits.

    Ctrl-C sends SIGINT to all processes, after which gunicorn's first one sends SIGQUIT to the others.
    """
    process.tune_garbage_collection()
    stopping = worker.wsgi.extensions["api"].stopping
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)}

    def stop(number: int, frame: Any) -> None:
        stopping.set()
        handlers[signal.Signals(number)](number, frame)

    for number in handlers:
        signal.signal(number, stop)


def on_starting(server: Any) -> None:
    """Before any worker starts, wait for the database.

    Exits with 2 if it is not migrated, the address or the key file cannot be used, HTTPS is configured, or the API
    would be open by mistake.
    """
    if server.cfg.is_ssl and server.cfg.worker_class_str == worker_class:
        process.refuse(
            "GUNICORN_CMD_ARGS: only gunicorn's own worker serves HTTPS: add --worker-class gthread (docs/rest.md)"
        )

    def workers_as_loops() -> list[ops.Loop]:
        # The same time by which gunicorn restarts a worker that does not respond.
        each = server.WORKERS.copy().values()
        found = [ops.Loop(f"worker {worker.pid}", turned_at=worker.tmp.last_update()) for worker in each]
        return found or [ops.Loop("workers", missing="no worker runs")]

    for address in server.cfg.address:
        _check_access(address)
    if not INHERITED & os.environ.keys():
        if _settings.ops_port:
            process.check_address(_settings.host, _settings.ops_port, setting="ORDER_OPS_PORT")
        for address in server.cfg.address:
            if isinstance(address, tuple):  # and not a socket file or a descriptor
                process.check_address(*address)
    tokens.verifier(_settings)
    # In this process, which outlives its workers. The one that replaces it (SIGUSR2) listens at the same time.
    server.ops = ops.serve(_settings, workers_as_loops, reuse_port=True)
    stop = process.stop_on_signal()
    with Database(_settings.database_url) as database:
        wait_for_database(database, stop)
    signal.set_wakeup_fd(-1)  # gunicorn replaces the handlers, which ends the flag and closes its descriptor
    if stop.is_set():
        raise SystemExit(0)


def when_ready(server: Any) -> None:
    """Before any worker starts, check the inherited sockets too."""
    for listener in server.LISTENERS:
        _check_access(listener.getsockname())


def post_fork(server: Any, _worker: Any) -> None:
    """Close the listener for monitoring, which belongs to the parent process."""
    if server.ops:
        server.ops.socket.close()


def child_exit(_server: Any, worker: Any) -> None:
    """Remove the gauges of a worker that has ended; its counters stay, in the files of all such workers."""
    if METRICS_DIR in os.environ:
        from prometheus_client import multiprocess

        multiprocess.mark_process_dead(worker.pid)
        vendor.merge_metrics_of_ended_worker(Path(os.environ[METRICS_DIR]), worker.pid)


def on_exit(_server: Any) -> None:
    """Remove the metrics directory."""
    metrics = os.environ.get(METRICS_DIR, "")
    if os.path.basename(metrics).startswith(METRICS_PREFIX):
        shutil.rmtree(metrics, ignore_errors=True)
