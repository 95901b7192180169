"""How the processes start, wait, refuse and stop."""

import contextlib
import http.client
import json
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from order_service.config import ANSWERING_THREADS
from sandbox.servers import process_group as lifeline
from tests.e2e.gate import Gate
from tests.e2e.house import PROCFILE, START_SECONDS, STOP_SECONDS, House, Process


def test_every_process_ends_with_0_on_sigterm_under_load(house: House) -> None:
    # given
    house.prepare()
    processes = house.start_all()
    body = {"user_id": 1, "menu_ids": [house.add_menu()]}
    done = threading.Event()

    def keep_posting(preference: str) -> None:
        while not done.is_set():
            with contextlib.suppress(OSError, http.client.HTTPException):
                house.post(body, headers={"Prefer": preference})

    with ThreadPoolExecutor(9) as pool:
        for preference in ["wait=1"] * 8 + ["wait=30"]:
            pool.submit(keep_posting, preference)

        # when: those that answer go first, so that the API goes while POSTs wait
        try:
            house.wait_until_some_paid()
            order = ["consumers", "publishers", "menu", "payment", "api", "users"]
            statuses = {name: processes[name].terminate() for name in order}
        finally:
            done.set()

    # then
    assert statuses == dict.fromkeys(order, 0), house.logs()
    assert not [each.name for each in processes.values() if "Traceback" in each.log.read_text()], house.logs()


def refusals(house: House, *names: str) -> dict[str, tuple[int, str]]:
    """Start these and see how each ends by itself: its status and the end of its log."""
    processes = house.start(*names)
    statuses = [each.exit_status(seconds=START_SECONDS) for each in processes]
    return {each.name: (status, lifeline.tail(each.log)) for each, status in zip(processes, statuses, strict=True)}


def test_processes_refuse_to_start_before_migrate_and_topology_naming_the_command(house: House) -> None:
    # when
    unmigrated = refusals(house, "api", "consumers", "publishers")
    assert house.command("migrate").returncode == 0
    undeclared = refusals(house, "consumers", "publishers")

    # then
    assert {name: status for name, (status, _) in unmigrated.items()} == {"api": 2, "consumers": 2, "publishers": 2}
    assert {name: status for name, (status, _) in undeclared.items()} == {"consumers": 2, "publishers": 2}
    for refusal, command in [(unmigrated, "migrate"), (undeclared, "topology")]:
        for name, (_, log) in refusal.items():
            assert f"python -m order_service {command}" in log, f"{name}:\n{log}"
            assert "Traceback" not in log, f"{name}:\n{log}"


def test_setting_that_cannot_be_used_is_named_with_status_2(house: House) -> None:
    # when
    processes = house.start(
        "api", "consumers", "publishers", ORDER_BATCH_SIZE="many", DATABASE_URL="mysql://x:secret@y"
    )

    # then
    for process in processes:
        assert process.exit_status(seconds=START_SECONDS) == 2
        log = lifeline.tail(process.log)
        assert "ORDER_BATCH_SIZE" in log
        assert "DATABASE_URL" in log
        assert "secret" not in log
        assert "Traceback" not in log


def alive(processes: list[Process]) -> bool:
    return all(each.is_running for each in processes)


def said(processes: list[Process], *texts: str) -> bool:
    """Whether the log of each has one of the texts."""
    return all(any(text in each.log.read_text() for text in texts) for each in processes)


@pytest.fixture
def gated_broker(amqp_url: str, database_url: str, tmp_path: Path) -> Any:
    """A house whose broker is away until the gate opens."""
    gate = Gate(amqp_url)
    with contextlib.closing(House(gate.url, database_url, tmp_path)) as house, contextlib.closing(gate):
        yield house, gate


def test_processes_wait_for_a_broker_that_is_absent_at_their_start(
    gated_broker: tuple[House, Gate], amqp_url: str
) -> None:
    # given: declared, and then the broker went away
    house, gate = gated_broker
    House(amqp_url, house.database_url, house.directory).prepare()

    # when: started the other way round
    processes = house.start(*reversed(PROCFILE))
    consumers, publishers = (each for each in processes if each.name in ("consumers", "publishers"))
    house.until(lambda: said([consumers, publishers], "waiting for it"), "both to say that they wait")
    house.until(lambda: house.is_answering("api") and house.is_answering("users"), "the API and users")
    posted = house.post(headers={"Prefer": "wait=0"})

    # then
    assert posted.status == 202
    assert house.ask("GET", "/readyz").status == 200
    assert alive(processes), house.logs()
    extra = house.start("consumers", "publishers")
    house.until(
        lambda: said(extra, "waiting for it", "standing by"),  # a second relay on SQLite stands by
        "two more to wait",
    )
    assert [each.terminate() for each in extra] == [0, 0], "SIGTERM while waiting"

    # and: all goes on by itself
    gate.open()
    house.wait_until_paid([posted.body["id"]])
    assert alive(processes), house.logs()


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_processes_wait_for_a_database_that_is_absent_at_their_start(
    amqp_url: str, database_url: str, tmp_path: Path
) -> None:
    # given
    gate = Gate(database_url)
    House(amqp_url, database_url, tmp_path).prepare()
    with contextlib.closing(House(amqp_url, gate.url, tmp_path)) as house, contextlib.closing(gate):
        names = ["api", "consumers", "publishers"]

        # when
        stopped = house.start(*names)
        house.until(lambda: said(stopped, "waiting for it"), "all three to wait")
        processes = house.start(*names, "users", "menu", "payment")
        statuses = [each.terminate() for each in stopped]
        house.until(lambda: said(processes[:3], "waiting for it"), "the others to wait")

        # then
        assert alive(processes)
        gate.open()
        house.wait_healthy()
        house.wait_until_paid([house.post().body["id"]])
        assert statuses == [0, 0, 0], f"SIGTERM while waiting: {stopped[0].log.read_text()}"


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_every_worker_tells_the_counts_of_all(house: House, tmp_path: Path) -> None:
    # given
    house.prepare()
    house.start("api", USER_SERVICE_URL="", ORDER_API_WORKERS="2", TMPDIR=str(tmp_path))
    house.wait_healthy("api")

    def got(path: str) -> str:
        """Over a connection of its own, which any worker may take."""
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", house.ports["api"], timeout=10)) as connection:
            connection.request("GET", path)
            return connection.getresponse().read().decode()

    # when
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(got, ["/orders/1"] * 40))
        scrapes = list(pool.map(got, ["/metrics"] * 20))

    # then
    counted = 'http_requests_total{method="GET",route="/orders/<int:order_id>",status="404"} 40.0'
    assert [scrape for scrape in scrapes if counted not in scrape] == []

    # and: nothing is left of it
    assert list(tmp_path.glob("order-service-metrics-*"))
    assert house.processes[0].terminate() == 0
    assert not list(tmp_path.glob("order-service-metrics-*"))


START = b"POST /orders HTTP/1.1\r\nHost: here\r\nContent-Type: application/json\r\n"


def raw(house: House, request: bytes, *, leave: bool = False) -> bytes:
    """All that comes back for these bytes; `leave` sends no more, which a server takes for a client that went away."""
    with contextlib.closing(socket.create_connection(("127.0.0.1", house.ports["api"]), timeout=30)) as connection:
        connection.sendall(request)
        if leave:
            connection.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: connection.recv(4096), b""))


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_clients_that_stop_in_the_middle_of_a_request_do_not_hold_the_threads(house: House) -> None:
    # given
    house.prepare()
    house.start("api", USER_SERVICE_URL="", ORDER_WAITERS="0", ORDER_STREAMS="0")
    house.wait_healthy("api")
    half_a_body = START + b"Content-Length: 99\r\n\r\n{"

    # when: as many clients as threads stop in the body, and then in the headers
    for half, answer in [(half_a_body, b"HTTP/1.1 400 "), (START, b"")]:
        with ThreadPoolExecutor(ANSWERING_THREADS) as pool:
            slow = [pool.submit(raw, house, half) for _ in range(ANSWERING_THREADS)]
            house.until(lambda: house.is_answering("api"), "a thread to be free")

        # then
        assert all(each.result().startswith(answer) for each in slow)
        assert house.ask("GET", "/healthz").status == 200
    assert "Traceback" not in house.processes[0].log.read_text()


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_client_gets_its_turn_while_more_clients_than_threads_are_busy(house: House) -> None:
    # given
    house.prepare()
    house.start("api", USER_SERVICE_URL="", ORDER_WAITERS="0", ORDER_STREAMS="0")
    house.wait_healthy("api")
    request = b"GET /healthz HTTP/1.1\r\nHost: here\r\n\r\n"
    last = request.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    clients = ANSWERING_THREADS + 8
    ready = threading.Barrier(clients + 1)

    def ask_forty_things() -> bytes:
        with contextlib.closing(socket.create_connection(("127.0.0.1", house.ports["api"]), timeout=30)) as connection:
            connection.sendall(request[:1])
            ready.wait(30)
            connection.sendall(request[1:] + 38 * request + last)
            return b"".join(iter(lambda: connection.recv(4096), b""))

    with ThreadPoolExecutor(clients) as pool:
        busy = [pool.submit(ask_forty_things) for _ in range(clients)]
        ready.wait(30)

        # when
        assert house.ask("GET", "/healthz").status == 200

        # then: nobody had to be done first
        assert not any(each.done() for each in busy)
    assert all(each.result().count(b"HTTP/1.1 200") == 40 for each in busy)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_gunicorn_answers_odd_requests_in_json(house: House) -> None:
    # given
    house.prepare()
    house.start("api", USER_SERVICE_URL="")
    house.wait_healthy("api")
    headers = {"Content-Type": "application/json"}

    def sent(method: str, path: str, body: Any = None, **more: Any) -> tuple[int, str | None]:
        connection = http.client.HTTPConnection("127.0.0.1", house.ports["api"], timeout=10)
        with contextlib.closing(connection):
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.request(method, path, body, headers, **more)
            answer = connection.getresponse()
            json.loads(answer.read())
            return answer.status, answer.headers["Content-Type"]

    def chunks(size: int) -> Any:
        return (b"{}".ljust(size)[at : at + 8192] for at in range(0, size, 8192))

    # when, then
    problem = "application/problem+json"
    assert sent("POST", "/orders", b" " * 70_000) == (413, problem)
    assert sent("POST", "/orders", chunks(100), encode_chunked=True) == (422, problem)
    assert sent("POST", "/orders", chunks(300_000), encode_chunked=True) == (413, problem)
    assert sent("GET", "/nothing") == (404, problem)
    assert sent("DELETE", "/healthz") == (405, problem)
    assert sent("GET", "/orders/" + "9" * 3000) == (404, problem)

    # and: nonsense does not stop it
    assert b" 400 " in raw(house, b"\x16\x03\x01 nonsense\r\n\r\n")
    assert sent("GET", "/healthz")[0] == 200

    # and: a body that breaks off, or whose chunks make no sense, is the client's mistake
    for body in (b"zz\r\n", b"2\r\n{}\r\n0\r\nno trailer\r\n\r\n", b"2\r\n{}zz"):
        answer = raw(house, START + b"Transfer-Encoding: chunked\r\n\r\n" + body)
        assert answer.startswith(b"HTTP/1.1 400 "), answer
        assert b'"code": "bad_request"' in answer
    for framing in (b"Content-Length: 99\r\n\r\n{", b"Transfer-Encoding: chunked\r\n\r\n5\r\n{"):
        raw(house, START + framing, leave=True)
    assert "Traceback" not in house.processes[0].log.read_text()
    assert house.processes[0].terminate(seconds=STOP_SECONDS) == 0
