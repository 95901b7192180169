"""The listener for monitoring: what it answers, and when a loop counts as stuck."""

import gc
import http.client
import json
import os
import re
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any

import pytest

from order_service import ops, process
from order_service.config import Settings
from order_service.ops import STUCK_SECONDS, Loop
from order_service.storage import migrate
from tests.polling import wait_until

Get = Callable[..., tuple[int, Any]]


@pytest.fixture
def loops() -> list[Loop]:
    return [Loop("relay"), Loop("deadlines")]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    return Settings(database_url=f"sqlite:///{tmp_path}/orders.db", ops_port=port)


@pytest.fixture
def get(settings: Settings, loops: list[Loop]) -> Iterator[Get]:
    server = ops.serve(settings, lambda: loops)
    assert server

    def get(path: str, method: str = "GET") -> tuple[int, Any]:
        with closing(http.client.HTTPConnection("127.0.0.1", settings.ops_port, timeout=10)) as connection:
            connection.request(method, path)
            response = connection.getresponse()
            body = response.read()
            return response.status, json.loads(body) if "json" in response.headers["Content-Type"] and body else body

    yield get
    server.shutdown()
    server.server_close()


def test_process_is_healthy_until_one_of_its_loops_is_stuck(get: Get, loops: list[Loop]) -> None:
    assert get("/healthz") == (200, {"status": "ok"})  # none has begun: the process waits for the database

    loops[0].turn()
    loops[1].turned_at = time.monotonic() - STUCK_SECONDS + 5
    assert get("/healthz") == (200, {"status": "ok"})

    loops[1].turned_at -= 6
    status, body = get("/healthz")
    assert (status, body["status"]) == (503, "stuck")
    assert STUCK_SECONDS < body["seconds_since_turn"].pop("deadlines") < STUCK_SECONDS + 5
    assert body["seconds_since_turn"] == {}

    loops[1].turn()
    assert get("/healthz?from=probe", "HEAD")[0] == 200


def test_readiness_names_everything_that_is_missing(get: Get, loops: list[Loop]) -> None:
    loops[0].missing = "relay: not connected to the broker"

    status, body = get("/readyz")

    assert (status, body["status"]) == (503, "not ready")
    assert body["missing"][1:] == ["relay: not connected to the broker"]
    assert "migration none" in body["missing"][0]


def test_metrics_are_in_the_text_format_and_other_paths_are_not_found(get: Get) -> None:
    assert get("/metrics")[0] == 200
    assert b"python_info" in get("/metrics")[1]
    assert get("/orders")[0] == 404


def own_metrics(get: Get) -> dict[str, float]:
    lines = [line.rsplit(" ", 1) for line in get("/metrics")[1].decode().splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in lines if re.match("order_service_(ready|loop)", name)}


def test_metrics_say_what_readiness_and_liveness_say(get: Get, settings: Settings, loops: list[Loop]) -> None:
    loops[0].missing = "relay: not connected to the broker"
    assert own_metrics(get) == {
        'order_service_ready{part="database"}': 0,  # not migrated
        'order_service_ready{part="loops"}': 0,
        "order_service_loop_stalled_seconds": 0,
    }

    migrate.upgrade(settings.database_url)
    loops[0].missing = ""
    loops[1].turned_at = time.monotonic() - 40
    found = own_metrics(get)
    assert found.pop("order_service_loop_stalled_seconds") == pytest.approx(40, abs=5)
    assert found == {'order_service_ready{part="database"}': 1, 'order_service_ready{part="loops"}': 1}


def test_a_locked_database_is_not_ready_and_delays_no_scrape_for_long(get: Get, settings: Settings) -> None:
    # given
    migrate.upgrade(settings.database_url)
    with closing(sqlite3.connect(settings.database_url.removeprefix("sqlite:///"), isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")

        # when
        began = time.monotonic()
        found = [own_metrics(get)['order_service_ready{part="database"}'] for _ in range(3)]

        # then: only the first one waited
        assert (found, time.monotonic() - began < 5) == ([0, 0, 0], True)
        other.execute("ROLLBACK")
    wait_until(lambda: own_metrics(get)['order_service_ready{part="database"}'], "the database to be ready", seconds=20)


def test_a_silent_client_delays_no_other(get: Get, settings: Settings) -> None:
    with socket.create_connection(("127.0.0.1", settings.ops_port or 0)):
        assert get("/healthz")[0] == 200


def test_silent_clients_have_a_bounded_number_of_threads_and_delay_no_other(get: Get, settings: Settings) -> None:
    before = threading.active_count()
    with ExitStack() as stack:
        for _ in range(3 * ops.MOST_CONNECTIONS):
            stack.enter_context(socket.create_connection(("127.0.0.1", settings.ops_port or 0)))

        assert get("/healthz")[0] == 200
        wait_until(lambda: threading.active_count() - before <= ops.MOST_CONNECTIONS, "the others to end", seconds=5)


def test_probes_share_one_connection_to_a_database_that_never_answers(settings: Settings) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, ThreadPoolExecutor(8) as pool:
        silent.settimeout(0.1)
        url = f"postgresql://127.0.0.1:{silent.getsockname()[1]}/orders"
        server = ops.serve(settings.model_copy(update={"database_url": url}), list)
        assert server

        def probe(_: int) -> Any:
            with closing(http.client.HTTPConnection("127.0.0.1", settings.ops_port, timeout=10)) as connection:
                connection.request("GET", "/readyz")
                return json.loads(connection.getresponse().read())["missing"]

        began = time.monotonic()
        found = list(pool.map(probe, range(8)))
        took = time.monotonic() - began
        connections: list[socket.socket] = []
        with suppress(TimeoutError):
            while True:
                connections.append(silent.accept()[0])
        server.shutdown()
        server.server_close()

    assert found == [["the database has not answered within 2 s"]] * 8
    assert (took < 10, len(connections)) == (True, 1)
    connections[0].close()


def test_nothing_listens_without_the_setting(settings: Settings) -> None:
    before = threading.active_count()

    assert ops.serve(settings.model_copy(update={"ops_port": None}), list) is None
    assert threading.active_count() == before


def test_an_address_that_is_in_use_ends_the_process_and_is_named(
    get: Get, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        ops.serve(settings, list)

    assert f"ORDER_OPS_PORT: another program listens on {settings.ops_port} of 127.0.0.1" in capsys.readouterr().err


def test_host_is_read_by_a_process_without_an_api_only_for_this_listener(monkeypatch: pytest.MonkeyPatch) -> None:
    # The settings of logging are of the whole process, which the tests share.
    monkeypatch.setenv("HOST", "x86_64-conda-linux-gnu")
    assert process.begin().host == "127.0.0.1"

    monkeypatch.setenv("ORDER_OPS_PORT", "9100")
    with pytest.raises(SystemExit, match="2"):
        process.begin()

    monkeypatch.setenv("HOST", "0.0.0.0")
    assert (process.begin().host, process.begin().ops_port) == ("0.0.0.0", 9100)


def test_readiness_that_waited_for_a_lock_leaves_no_file_open(get: Get, settings: Settings, tmp_path: Path) -> None:
    # given: files of a connection that uses the database, so that SQLite removes none of them
    migrate.upgrade(settings.database_url)
    path = str(tmp_path / "orders.db")
    with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as other:

        def open_files() -> int:
            targets = (each.readlink() for each in Path("/proc/self/fd").iterdir() if each.is_symlink())
            return sum(str(target) == f"{path}-wal" for target in targets)

        other.execute("SELECT count(*) FROM orders").fetchone()  # opens its files
        assert get("/readyz")[0] == 200
        before = open_files()

        # when
        gc.disable()
        try:
            for _ in range(5):
                other.execute("BEGIN IMMEDIATE")
                released = threading.Timer(0.2, other.execute, ["COMMIT"])
                released.start()
                assert get("/readyz")[0] == 200
                released.join()

            # then
            assert open_files() == before
        finally:
            gc.enable()


#: Exits with 0 if the check of the database, which takes so many seconds, has ended in a process that is forked during it.
FORKS_DURING_THE_CHECK = """
import os, sys, threading, time, urllib.request
from order_service import ops
from order_service.config import Settings

port, seconds = int(sys.argv[1]), float(sys.argv[2])
has_begun, has_ended = threading.Event(), threading.Event()

def check(_):
    has_begun.set()
    time.sleep(seconds)
    has_ended.set()
    return []

ops._missing_of_database = check
ops.serve(Settings(ops_port=port), lambda: [])
threading.Thread(target=urllib.request.urlopen, args=[f"http://127.0.0.1:{port}/metrics"], daemon=True).start()
has_begun.wait(10)
for _ in range(3):
    child = os.fork()
    if child == 0:
        os._exit(0 if has_ended.is_set() else 1)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
os._exit(status)
"""
#: Fails with the names of the modules that requests import.
IMPORTS_OF_REQUESTS = """
import sys, urllib.error, urllib.request
from order_service import ops
from order_service.config import Settings

settings = Settings()
ops.serve(settings, lambda: [])
before = set(sys.modules)
for path in ("healthz", "readyz", "metrics"):
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{settings.ops_port}/{path}").close()
    except urllib.error.HTTPError as error:
        error.close()
assert not (imported := set(sys.modules) - before), imported
"""


def test_no_process_is_forked_during_the_check_of_the_database(settings: Settings) -> None:
    assert forks_during_the_check(settings, seconds=0.5) == 0


def test_a_check_that_does_not_end_delays_a_fork_only_for_a_short_time(settings: Settings) -> None:
    began = time.monotonic()

    assert forks_during_the_check(settings, seconds=60) == 1
    assert time.monotonic() - began < 2 * ops.CHECK_SECONDS + 10  # three forks, of which one waits


def forks_during_the_check(settings: Settings, *, seconds: float) -> int:
    command = [sys.executable, "-c", FORKS_DURING_THE_CHECK, str(settings.ops_port), str(seconds)]
    return subprocess.run(command, timeout=30).returncode


def test_no_request_imports_a_module_because_a_process_that_is_forked_then_never_could(settings: Settings) -> None:
    env = os.environ | {"DATABASE_URL": settings.database_url, "ORDER_OPS_PORT": str(settings.ops_port)}
    command = [sys.executable, "-c", IMPORTS_OF_REQUESTS]

    assert subprocess.run(command, env=env, timeout=30).returncode == 0
