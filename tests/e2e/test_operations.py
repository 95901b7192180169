"""What an operator sees of running processes: metrics, health, and the log of one order."""

import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from order_service.metrics import METRICS
from sandbox.servers.broker import Broker
from tests.e2e.client import order_of
from tests.e2e.deployment import MOSTLY_ON_POSTGRESQL, MOSTLY_ON_SQLITE, ON_SQLITE, Deployment, api_alone
from tests.e2e.process import PROCFILE, free_ports
from tests.integration.core import Wire
from tests.polling import wait_until

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
OURS = ("API", "consumers", "publishers")


class Listeners:
    """The listeners for monitoring of the processes, by the names in docs/metrics.md."""

    def __init__(self) -> None:
        self.ports = dict(zip(OURS, free_ports(len(OURS)), strict=True))

    def setting(self, name: str) -> dict[str, str]:
        return {"ORDER_OPS_PORT": str(self.ports[name])}

    def get(self, name: str, path: str, *, timeout: float = 20) -> tuple[int, str]:
        """Raises OSError or HTTPException when there is no response."""
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.ports[name], timeout=timeout)) as each:
            each.request("GET", path)
            response = each.getresponse()
            return response.status, response.read().decode()

    def answers(self, name: str, path: str, status: int, text: str = "") -> bool:
        with contextlib.suppress(OSError, http.client.HTTPException):
            found, body = self.get(name, path)
            return found == status and text in body
        return False

    def samples(self, name: str) -> dict[str, dict[str, float]]:
        """The values by label values, by metric; without the library's own metrics."""
        status, text = self.get(name, "/metrics")
        assert status == 200
        found: dict[str, dict[str, float]] = {}
        for family in text_string_to_metric_families(text):
            if family.name.startswith(("order_service_", "http_")):
                for sample in family.samples:
                    labels = " ".join(value for key, value in sorted(sample.labels.items()) if key != "le")
                    found.setdefault(sample.name, {})[labels] = sample.value
        return found


@pytest.fixture
def listeners() -> Listeners:
    return Listeners()


@pytest.fixture
def started(broker: Broker, deployment: Deployment, listeners: Listeners) -> Deployment:
    """The service and its siblings, ready, with a listener for each process of ours."""
    deployment.prepare()
    deployment.start("users", "menu", "payment")
    for name in OURS:
        settings = listeners.setting(name) | {"RABBITMQ_MANAGEMENT_URL": broker.management_url or ""}
        deployment.start(name.lower(), **settings)
    for name in OURS:
        deployment.wait_until(lambda name=name: listeners.answers(name, "/readyz", 200), f"{name} to be ready")
    deployment.wait_until_healthy()
    return deployment


def log_of(deployment: Deployment, order_id: int) -> list[dict[str, Any]]:
    """The lines about an order in the logs of our processes, by time."""
    lines = [
        json.loads(line)
        for process in deployment.processes
        if process.name in ("api", "consumers", "publishers")
        for line in process.log.splitlines()
    ]
    return sorted((line for line in lines if line.get("order_id") == order_id), key=lambda line: line["timestamp"])


@MOSTLY_ON_POSTGRESQL
def test_every_metric_is_documented_and_every_documented_one_is_exported(
    started: Deployment, listeners: Listeners
) -> None:
    # given: a paid order, a failed one, a cancelled one, and a message that cannot be applied
    client = started.client
    paid = client.post_order().body["id"]
    client.post_order(order_of(1, 999))
    cancelled = client.post_order(order_of(1), headers={"Prefer": "respond-async"}).body["id"]
    client.request("DELETE", f"/orders/{cancelled}")
    Wire(started.amqp_url).send_raw("menu.reserved", b"{", type="MenuReserved")
    started.wait_until(
        lambda: listeners.samples("consumers").get("order_service_dead_letters_total"), "the dead letter"
    )
    started.wait_until(lambda: client.request("GET", f"/orders/{paid}").body["status"] == "paid", "the payment")
    started.wait_until(
        lambda: listeners.samples("publishers")["order_service_published_total"].get("accepted OrderPaid"), "OrderPaid"
    )

    # when
    samples = {name: listeners.samples(name) for name in OURS}
    exported = {
        name: {metric.name for metric in METRICS if {metric.name, f"{metric.name}_count"} & found.keys()}
        for name, found in samples.items()
    }

    # then
    suffixes = ("", "_bucket", "_count", "_sum")
    documented = {name: {m.name for m in METRICS if name in m.processes.split(", ")} for name in OURS}
    named = {metric.name + suffix for metric in METRICS for suffix in suffixes}
    assert [name for found in samples.values() for name in found if name not in named] == []
    assert all(exported[name] <= documented[name] for name in OURS), exported
    assert set().union(*exported.values()) == {metric.name for metric in METRICS}
    assert samples["API"]["order_service_orders_total"][" pending"] == 3
    assert samples["consumers"]["order_service_orders_total"][" paid"] >= 1
    assert samples["consumers"]["order_service_orders_total"]["menu_not_found failed"] == 1
    assert samples["consumers"]["order_service_consumed_total"]["applied MenuRejected"] == 1
    assert samples["consumers"]["order_service_consumed_total"]["dead_lettered MenuReserved"] == 1
    assert samples["consumers"]["order_service_dead_letters_total"]["malformed order-service.menu"] == 1
    assert samples["publishers"]["order_service_published_total"]["accepted dead_letter"] == 1
    assert samples["publishers"]["order_service_confirm_seconds_count"][""] >= 8
    assert client.connect("api").port != listeners.ports["API"]
    assert client.request("GET", "/metrics").status == 404


@ON_SQLITE
def test_a_stopped_process_and_what_is_missing_are_seen(deployment: Deployment, listeners: Listeners) -> None:
    # given: nothing is migrated or declared, and no broker is there
    nowhere = {"RABBITMQ_URL": "amqp://127.0.0.1:1", "DATABASE_URL": deployment.database_url}
    deployment.prepare()
    consumers = deployment.start("consumers", **listeners.setting("consumers"), **nowhere)[0]
    deployment.start("publishers", **listeners.setting("publishers"), **nowhere)

    # then: alive, not ready, and they say why
    for name, role in (("consumers", "consumer of order-service.menu"), ("publishers", "relay")):
        missing = f"{role}"
        deployment.wait_until(lambda name=name: listeners.answers(name, "/healthz", 200), f"{name} to be healthy")
        status, body = listeners.get(name, "/readyz")
        assert (status, missing in body, "not connected to the broker" in body) == (503, True, True), body

    # when
    os.killpg(consumers.pid, signal.SIGSTOP)

    # then
    with pytest.raises(TimeoutError):
        listeners.get("consumers", "/healthz", timeout=1)
    os.killpg(consumers.pid, signal.SIGCONT)
    wait_until(lambda: listeners.answers("consumers", "/healthz", 200), "it to go on")


@ON_SQLITE
@pytest.mark.parametrize("name", ["API", "consumers", "publishers", "python api.py"])
def test_port_in_use_is_named(name: str, deployment: Deployment, listeners: Listeners) -> None:
    deployment.prepare()
    name, command = ("API", name) if name == "python api.py" else (name, PROCFILE[name.lower()])

    with socket.create_server(("127.0.0.1", listeners.ports[name])):
        process = deployment.start_command(name, command, **listeners.setting(name))

        assert process.exit_status() == 2

    assert f"ORDER_OPS_PORT: another program listens on {listeners.ports[name]} of 127.0.0.1" in process.log


def first_worker(deployment: Deployment) -> int:
    """The pid of a process of the API; its parent may have been started by a shell."""
    booted = re.search(r"Booting worker with pid: (\d+)", deployment.processes[0].log)
    assert booted
    return int(booted[1])


def test_one_listener_shows_all_api_processes_and_the_metrics_of_ended_ones(
    tmp_path: Path, listeners: Listeners
) -> None:
    # given
    settings = listeners.setting("API") | {"ORDER_API_WORKERS": "3"}
    with api_alone(f"sqlite:///{tmp_path}/orders.db", tmp_path, **settings) as deployment:

        def answered() -> float:
            found = listeners.samples("API").get("http_requests_total", {})
            return found.get("GET /orders/<int:order_id> 404", 0)

        def request() -> None:
            """Over a new connection, which any process may accept."""
            with contextlib.closing(deployment.client.connect()) as connection:
                connection.request("GET", "/orders/1")
                connection.getresponse().read()

        for _ in range(30):
            request()
        assert answered() == 30

        # when
        worker = first_worker(deployment)
        os.kill(worker, signal.SIGKILL)

        # then
        deployment.wait_until(lambda: deployment.processes[0].log.count("Booting worker") == 4, "another process")
        for _ in range(10):
            request()
        wait_until(lambda: answered() == 40, "all to be counted")
        assert listeners.answers("API", "/readyz", 200)


@pytest.mark.field
def test_an_api_process_that_is_stopped_is_named_after_half_a_minute(tmp_path: Path, listeners: Listeners) -> None:
    settings = listeners.setting("API") | {"ORDER_API_WORKERS": "2"}
    with api_alone(f"sqlite:///{tmp_path}/orders.db", tmp_path, **settings) as deployment:
        worker = first_worker(deployment)
        os.kill(worker, signal.SIGSTOP)

        wait_until(lambda: listeners.answers("API", "/healthz", 503, f"worker {worker}"), "the answer", seconds=50)
        os.kill(worker, signal.SIGCONT)
        wait_until(lambda: listeners.answers("API", "/healthz", 200), "it to be healthy again")


@MOSTLY_ON_SQLITE
def test_log_tells_the_whole_story_of_one_order(started: Deployment, listeners: Listeners) -> None:
    # given
    trace = {"traceparent": f"00-{TRACE_ID}-00f067aa0ba902b7-01"}
    paid = started.client.post_order(headers=trace).body["id"]
    started.wait_until(lambda: started.client.request("GET", f"/orders/{paid}").body["status"] == "paid", "payment")
    late = started.client.request("PUT", f"/orders/{paid}/payment", {"payment_status": "failed"})
    assert late.status == 409
    rejected = started.client.post_order(order_of(999)).body["order_id"]

    # when
    started.wait_until(lambda: [line for line in log_of(started, paid) if line.get("to") == "paid"], "the log")
    story = log_of(started, paid)
    changes = [line for line in story if line["event"] in ("order placed", "order changed")]

    # then
    assert [(line.get("type"), line.get("from"), line["to"]) for line in changes] == [
        (None, None, "awaiting_menu"),
        ("MenuReserved", "awaiting_menu", "awaiting_payment"),
        ("PaymentCompleted", "awaiting_payment", "paid"),
    ]
    assert {line["trace_id"] for line in changes} == {TRACE_ID}
    assert {line["correlation_id"] for line in changes} == {str(paid)}
    assert [bool(line.get("message_id")) for line in changes] == [False, True, True]
    assert [line["path"] for line in story if line["event"] == "request"][:1] == ["/orders"]
    # The line is written after the commit, which the answer to the POST may precede.
    [failed] = started.wait_until(
        lambda: [line for line in log_of(started, rejected) if line.get("to") == "failed"],
        "the line of the failed order",
    )
    assert (failed["reason"], failed["type"], failed["level"]) == ("menu_not_found", "MenuRejected", "info")
    # and: the lines of libraries have the same format
    [api] = [process for process in started.processes if process.name == "api"]
    assert any(json.loads(line)["logger"] == "gunicorn.error" for line in api.log.splitlines())


@pytest.mark.field
@pytest.mark.skipif(not shutil.which("promtool"), reason="needs promtool, of Debian's package prometheus")
@ON_SQLITE
def test_promtool_has_no_complaint(started: Deployment, listeners: Listeners) -> None:
    order_id = started.client.post_order().body["id"]
    started.wait_until_paid([order_id])

    for name in OURS:
        _, text = listeners.get(name, "/metrics")
        checked = subprocess.run(
            ["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False
        )
        assert (checked.returncode, checked.stdout + checked.stderr) == (0, ""), name
