"""Each workaround works, and is still needed."""

import contextlib
import http.client
import os
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from order_service import vendor


@pytest.fixture
def empty_metrics_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The metrics of a worker that has created its file and not yet sized it."""
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    path = tmp_path / "counter_1.db"
    path.touch()
    return path


def test_library_still_fails_on_an_empty_metrics_file(empty_metrics_file: Path) -> None:
    registry = CollectorRegistry()
    MultiProcessCollector(registry)

    with pytest.raises(struct.error):
        generate_latest(registry)


def test_metrics_are_read_again_until_the_file_of_a_new_worker_is_ready(empty_metrics_file: Path) -> None:
    ready = threading.Timer(vendor.METRICS_PAUSE_SECONDS * 3, empty_metrics_file.write_bytes, [bytes(8)])
    ready.start()

    assert vendor.prometheus_metrics() == b""
    ready.join()


def test_metrics_file_that_stays_unreadable_is_an_error(empty_metrics_file: Path) -> None:
    with pytest.raises(struct.error):
        vendor.prometheus_metrics()


#: Answers with the thread that handles the request.
THREAD_APP = """
import threading, time

def app(environ, start_response):
    time.sleep(0.002)
    start_response("200 OK", [])
    return [b"%d" % threading.get_ident()]
"""


@contextlib.contextmanager
def gunicorn(directory: Path, worker_class: str) -> Iterator[int]:
    """gunicorn with four threads, and its port."""
    (directory / "thread_app.py").write_text(THREAD_APP)
    (directory / "gunicorn.conf.py").write_text(
        f"from order_service import vendor\nworker_class = {worker_class}\nthreads = 4\ncontrol_socket_disable = True\n"
    )
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        os.set_inheritable(listener.fileno(), True)
        port: int = listener.getsockname()[1]
        command = [sys.executable, "-m", "gunicorn", "--config", str(directory / "gunicorn.conf.py"),
                   "--bind", f"fd://{listener.fileno()}", "--pythonpath", str(directory), "thread_app:app"]  # fmt: skip
        server = subprocess.Popen(command, close_fds=False, stderr=subprocess.DEVNULL)
        try:
            yield port
        finally:
            server.terminate()
            server.wait(30)


def changes_of_thread(port: int, requests: int) -> int:
    """How often a request of one connection is handled by another thread than the request before."""
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
        threads = []
        for _ in range(requests):
            connection.request("GET", "/")
            threads.append(connection.getresponse().read())
    return sum(before != after for before, after in pairwise(threads))


@pytest.mark.parametrize(
    ("worker_class", "is_kept"), [("vendor.gunicorn_worker()", True), ("'gthread'", False)], ids=["ours", "gthread"]
)
def test_connection_stays_on_its_thread(tmp_path: Path, worker_class: str, is_kept: bool) -> None:
    with gunicorn(tmp_path, worker_class) as port, ThreadPoolExecutor(4) as pool:
        for _ in pool.map(changes_of_thread, [port] * 4, [20] * 4):
            pass  # Now there are several threads to choose from.
        changes = changes_of_thread(port, 100)

    assert (changes < 30) == is_kept, changes
