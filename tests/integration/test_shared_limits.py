"""The rate limit that several API processes share through Redis, and what happens while Redis does not answer."""

import contextlib
import shutil
import signal
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sandbox.servers.ports import free_ports
from tests.http_service import RESPOND_ASYNC, ServiceWith
from tests.integration import core
from tests.polling import wait_until

PASSWORD = "S3cretCanary"

pytestmark = [
    pytest.mark.skipif(shutil.which("redis-server") is None, reason="needs Redis (apt-get install redis-server)"),
    pytest.mark.parametrize("database_url", ["sqlite"], indirect=True),
]


class Redis:
    """A Redis with a password, in memory only."""

    def __init__(self, directory: Path) -> None:
        self._directory, [self._port] = directory, free_ports(0)
        self.url = f"redis://:{PASSWORD}@127.0.0.1:{self._port}/0"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        options = ["--port", str(self._port), "--bind", "127.0.0.1", "--save", "", "--requirepass", PASSWORD]
        command = ["redis-server", *options, "--dir", str(self._directory)]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        wait_until(self._answers, "Redis to start", seconds=20)

    def _answers(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self._port), timeout=5) as connection:
            connection.sendall(b"PING\r\n")
            return bool(connection.recv(100))
        return False

    def signal(self, number: int) -> None:
        assert self._process
        self._process.send_signal(number)

    def stop(self) -> None:
        if self._process:
            self._process.kill()
            self._process.wait(20)
            self._process = None


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[Redis]:
    redis = Redis(tmp_path)
    yield redis
    redis.stop()


def test_processes_that_share_redis_hold_a_client_to_one_limit(service_with: ServiceWith, redis: Redis) -> None:
    redis.start()
    shared = {"rate_limit": "7/hour", "rate_limit_storage": redis.url}
    services = [service_with(**shared) for _ in range(2)]

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda service: service.post(headers=RESPOND_ASYNC), services * 10))

    assert Counter(answer.status_code for answer in answers) == {202: 7, 429: 13}
    assert {answer.headers["RateLimit-Policy"] for answer in answers} == {'"orders";q=7;w=3600'}
    assert {int(answer.headers["RateLimit"].split(";")[1].removeprefix("r=")) for answer in answers} == set(range(7))
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert 3500 < int(refused.headers["Retry-After"]) <= 3600


@pytest.mark.parametrize("is_frozen", [False, True], ids=["stopped", "frozen"])
def test_requests_are_served_without_a_limit_while_redis_does_not_answer(
    service_with: ServiceWith, redis: Redis, log: core.Log, is_frozen: bool
) -> None:
    # given
    redis.start()
    service = service_with(rate_limit="1/hour", rate_limit_storage=redis.url)
    before = [service.post(headers=RESPOND_ASYNC).status_code for _ in range(2)]

    # when
    redis.signal(signal.SIGSTOP) if is_frozen else redis.stop()
    seconds, during = [], []
    for _ in range(20):
        start = time.monotonic()
        during.append(service.post(headers=RESPOND_ASYNC))
        seconds.append(time.monotonic() - start)
    redis.signal(signal.SIGCONT) if is_frozen else redis.start()
    wait_until(lambda: "RateLimit" in service.post("{").headers, "requests to be counted again", seconds=20)

    # then
    assert before == [202, 429]
    assert {answer.status_code for answer in during} == {202}
    assert [answer for answer in during if "RateLimit" in answer.headers] == []
    # Redis has 0.2 s to answer; a request that waits for nothing takes some milliseconds.
    assert max(seconds) < 2
    assert sum(seconds) < 4
    assert log.count("the storage of the rate limit is unreachable, retrying") == 1
    assert log.count("the storage of the rate limit is reachable again") == 1
    assert PASSWORD not in str(log.calls)


def test_refused_access_is_named_without_the_password(service_with: ServiceWith, redis: Redis, log: core.Log) -> None:
    redis.start()
    wrong = redis.url.replace(PASSWORD, f"{PASSWORD}x")
    service = service_with(rate_limit="1/hour", rate_limit_storage=wrong)

    statuses = [service.post(headers=RESPOND_ASYNC).status_code for _ in range(3)]

    assert statuses == [202, 202, 202]
    assert log.count("access to the storage of the rate limit is refused, retrying") == 1
    assert PASSWORD not in str(log.calls)
