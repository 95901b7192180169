"""What sibling teams are given works unchanged: the consumers of docs/siblings.md, the commands, the document."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from order_service.contract import asyncapi, samples, topology
from order_service.contract.events import OUTGOING
from order_service.domain.order import State
from order_service.storage.database import Database
from publishers.relay import Relay
from sandbox.servers import broker_users
from sandbox.servers.broker import Broker
from sandbox.siblings import kit
from tests.integration import core
from tests.integration.core import Eventually, Message, Wire, completed

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "siblings.md").read_text(encoding="utf-8")
JAVASCRIPT = ROOT / "tests" / "contract-js"
CLIENTS_VENV = ROOT / "var" / "clients-venv"
GOLDEN = sorted((ROOT / "tests" / "contracts").glob("*.json"))
REPLIES = ("menu.reserved", "menu.rejected", "menu.released", "payment.completed", "payment.failed", "payment.refunded")
#: Seconds for a process to start, on a machine that is busy with other tests.
START_SECONDS = 60

NEEDS_NODE = [
    pytest.mark.contract,
    pytest.mark.skipif(not (JAVASCRIPT / "node_modules").is_dir(), reason="needs Node.js: make test-contract"),
]


def javascript(function: Callable[..., None]) -> Callable[..., None]:
    """Needs Node.js and the packages that `make test-contract` installs."""
    for mark in NEEDS_NODE:
        function = mark(function)
    return function


def test_the_page_prints_the_kit_that_the_sandbox_uses() -> None:
    kit = (ROOT / "sandbox" / "siblings" / "kit.py").read_text(encoding="utf-8")

    assert blocks("python")[0] == f"# kit.py\n{kit}"


@pytest.mark.parametrize("language", ["python", "javascript"])
def test_the_pages_services_take_an_empty_variable_as_unset(language: str) -> None:
    """`RABBITMQ_URL=` in an .env file."""
    defaults = [line for block in blocks(language) for line in block.splitlines() if "amqp://guest" in line]

    assert defaults
    assert all(re.search(r"RABBITMQ_URL(\"\) or| \|\|) ", line) for line in defaults), defaults


def test_the_kit_logs_an_outage_again_at_growing_intervals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, eventually: Eventually
) -> None:
    monkeypatch.setenv("RABBITMQ_URL", core.UNREACHABLE_BROKER)
    failures: list[int] = []

    def backoff_seconds(count: int) -> float:
        failures.append(count)
        return 0.0

    monkeypatch.setattr(kit, "backoff_seconds", backoff_seconds)
    service, stop = kit.Service("menu-service", tmp_path / "menu.db", "", {}), threading.Event()

    thread = threading.Thread(target=service.run, args=[stop])
    thread.start()
    try:
        eventually(lambda: len(failures) >= 99, "99 attempts")
    finally:
        stop.set()
        thread.join()

    lines = sum("not consuming, trying again" in each.getMessage() for each in caplog.records)
    assert 3 <= lines <= 5, lines


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def write_files(language: str, directory: Path) -> None:
    """The page's files, each under the name in its first line."""
    for block in blocks(language):
        name = block.splitlines()[0].split()[-1]
        (directory / name).write_text(block, encoding="utf-8")
    if language == "javascript":
        (directory / "node_modules").symlink_to(JAVASCRIPT / "node_modules")


@contextmanager
def started(
    command: list[str], directory: Path, amqp_url: str, eventually: Eventually
) -> Iterator[subprocess.Popen[bytes]]:
    """A sibling's process, consuming, for the length of the block; only `siblings check` may kill it before."""
    log = directory / f"{Path(command[-1]).name}.log"
    environment = os.environ | {"RABBITMQ_URL": amqp_url, "PYTHONUNBUFFERED": "1"}
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=directory, env=environment, stdout=output, stderr=output)
        try:
            eventually(
                lambda: "consuming" in log.read_text() or process.poll() is not None,
                f"{command} to consume", seconds=START_SECONDS,
            )  # fmt: skip
            assert process.poll() is None, log.read_text()
            yield process
            assert process.poll() in (None, -signal.SIGKILL), log.read_text()
        finally:
            process.kill()
            process.wait()


LANGUAGES = [
    pytest.param(("python", sys.executable, "py"), id="python"),
    pytest.param(("javascript", "node", "mjs"), id="javascript", marks=NEEDS_NODE),
]


@pytest.fixture
def database(tmp_path: Path, migrated_sqlite: Path) -> Iterator[Database]:
    path = tmp_path / "orders.db"
    path.write_bytes(migrated_sqlite.read_bytes())
    with core.opened(f"sqlite:///{path}") as database:
        yield database


@pytest.fixture
def exchanges(amqp_url: str) -> None:
    """The exchanges without our queues, with which `siblings check` does not run."""
    with Wire(amqp_url).channel() as channel:
        topology.declare_exchanges(channel)


@pytest.fixture(params=LANGUAGES)
def documented_siblings(
    request: pytest.FixtureRequest, tmp_path: Path, amqp_url: str, exchanges: None, eventually: Eventually
) -> Iterator[None]:
    """The page's Menu and Payment Service, running."""
    language, interpreter, suffix = request.param
    write_files(language, tmp_path)
    with ExitStack() as stack:
        for name in ("menu", "payment"):
            command = [interpreter, f"{name}.{suffix}"]
            stack.enter_context(started(command, tmp_path, amqp_url, eventually))
        yield


@contextmanager
def our_processes(amqp_url: str, database: Database) -> Iterator[None]:
    """Our consumer and our relay."""
    settings = core.settings(amqp_url, database.url)
    with core.running(core.worker(settings, database)), core.running(lambda stop: Relay(settings, database, stop)):
        yield


def check_orders_and_compensations(database: Database, wire: Wire, eventually: Eventually) -> None:
    """Orders are paid. A second payment is refunded and a cancelled order is released; both are confirmed."""
    ids = core.place(database, 3)
    eventually(lambda: core.states(database, ids) == {State.PAID}, "the orders to be paid")

    wire.send(completed(ids[0], "another payment"))
    confirmed = lambda: [row.confirmed_at for row in core.compensation_rows(database)]  # noqa: E731
    eventually(lambda: len(confirmed()) == 1 and all(confirmed()), "the refund to be confirmed")

    cancelled = core.place(database)
    core.cancel(database, cancelled[0])
    eventually(lambda: len(confirmed()) == 2 and all(confirmed()), "the release to be confirmed")


def test_an_order_gets_paid_by_the_documented_siblings(
    documented_siblings: None, amqp_url: str, database: Database, wire: Wire, eventually: Eventually
):
    with our_processes(amqp_url, database):
        check_orders_and_compensations(database, wire, eventually)


CHECK = [sys.executable, "-m", "order_service", "siblings", "check"]


def check(name: str, directory: Path, amqp_url: str) -> None:
    """Assert that a running sibling passes each rule of `siblings check`, except that it is not killed."""
    checked = run([*CHECK, name, "--json"], directory, amqp_url)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    rules = json.loads(checked.stdout)["rules"]
    assert [rule["rule"] for rule in rules if rule["outcome"] != "passed"] == ["kill"], checked.stderr


def test_the_documented_siblings_pass_every_rule(documented_siblings: None, tmp_path: Path, amqp_url: str):
    for name in ("menu", "payment"):
        check(name, tmp_path, amqp_url)


NEEDS_RASCAL = [
    pytest.mark.contract,
    pytest.mark.skipif(
        not (JAVASCRIPT / "node_modules" / "rascal").is_dir(), reason="needs Rascal: make test-contract"
    ),
]
NEEDS_FASTSTREAM = [
    pytest.mark.contract,
    pytest.mark.skipif(
        not [*CLIENTS_VENV.glob("lib/python3*/site-packages/faststream")], reason="needs FastStream: make test-contract"
    ),
]
WITH_LIBRARIES = [
    pytest.param(["node", "rascal_payment.mjs"], id="rascal", marks=NEEDS_RASCAL),
    pytest.param(
        [str(CLIENTS_VENV / "bin" / "python"), "faststream_payment.py"], id="faststream", marks=NEEDS_FASTSTREAM
    ),
]


@pytest.mark.parametrize("command", WITH_LIBRARIES)
def test_a_payment_service_with_a_library_passes_every_rule_and_an_order_gets_paid(
    command: list[str], tmp_path: Path, amqp_url: str, database: Database, exchanges: None, management: Any,
    eventually: Eventually,
):  # fmt: skip
    write_files("python", tmp_path)
    write_files("javascript", tmp_path)
    wire = Wire(amqp_url)
    with ExitStack() as stack:
        stack.enter_context(started([sys.executable, "menu.py"], tmp_path, amqp_url, eventually))
        stack.enter_context(started(command, tmp_path, amqp_url, eventually))
        for body, properties in UNREADABLE:
            wire.send_raw("payment.requested", body, **properties)
        check("payment", tmp_path, amqp_url)
        wire.declare()
        eventually(lambda: management.close_connections() >= 2, "the siblings' connections in the console")
        with our_processes(amqp_url, database):
            check_orders_and_compensations(database, wire, eventually)


KILLED = [
    pytest.param("menu", [sys.executable, "menu.py"], id="menu"),
    pytest.param("payment", [sys.executable, "payment.py"], id="payment"),
    pytest.param("payment", *WITH_LIBRARIES[0].values, id="rascal", marks=NEEDS_RASCAL),
    pytest.param("payment", *WITH_LIBRARIES[1].values, id="faststream", marks=NEEDS_FASTSTREAM),
]


@pytest.mark.parametrize(("name", "command"), KILLED)
def test_a_documented_service_that_is_killed_and_started_again_passes_every_rule(
    name: str, command: list[str], tmp_path: Path, amqp_url: str, exchanges: None, eventually: Eventually
):
    write_files("python", tmp_path)
    write_files("javascript", tmp_path)
    with started(command, tmp_path, amqp_url, eventually) as first:
        checking = [*CHECK, name, "--json", "--kill", str(first.pid)]
        with subprocess.Popen(checking, env=environment(amqp_url), stdout=subprocess.PIPE, text=True) as checker:
            try:
                assert first.wait(START_SECONDS) == -signal.SIGKILL
                with started(command, tmp_path, amqp_url, eventually):
                    output, _ = checker.communicate(timeout=START_SECONDS)
            finally:
                checker.kill()
    assert {rule["outcome"] for rule in json.loads(output)["rules"]} == {"passed"}, output


PYTHON_MENU = [sys.executable, "menu.py"]


@pytest.mark.parametrize(("menu", "payment"), [
    pytest.param(PYTHON_MENU, [sys.executable, "payment.py"], id="python"),
    pytest.param(["node", "menu.mjs"], ["node", "payment.mjs"], id="javascript", marks=NEEDS_NODE),
    *(pytest.param(PYTHON_MENU, *each.values, id=each.id, marks=each.marks) for each in WITH_LIBRARIES),
])  # fmt: skip
def test_the_documented_siblings_need_no_more_than_the_rights_of_their_users(
    menu: list[str], payment: list[str], tmp_path: Path, broker: Broker, amqp_url: str, database: Database, wire: Wire,
    eventually: Eventually,
):  # fmt: skip
    write_files("python", tmp_path)
    write_files("javascript", tmp_path)
    with ExitStack() as stack:
        logins = stack.enter_context(broker_users.created(broker, amqp_url))
        assert logins
        for user, command in (("menu-service", menu), ("payment-service", payment)):
            stack.enter_context(started(command, tmp_path, logins[user], eventually))
        stack.enter_context(our_processes(logins["order-service"], database))
        check_orders_and_compensations(database, wire, eventually)


#: Messages that are no requests.
UNREADABLE: list[tuple[bytes, dict[str, Any]]] = [
    *((body, {}) for body in (b"{", b"[]", b"1", b"{}", b"\xff", b'{"type": "PaymentRequested"}')),
    *((body, {"content_type": "application/json"}) for body in (b"{", b"{}")),
    (b'{"type": "PaymentRequested", "data": 1}', {"content_type": "application/cloudevents+json"}),
]


@pytest.mark.parametrize("command", WITH_LIBRARIES)
def test_a_reply_that_no_queue_takes_is_published_later(
    command: list[str], tmp_path: Path, amqp_url: str, wire: Wire, eventually: Eventually
):
    write_files("python", tmp_path)
    write_files("javascript", tmp_path)
    with wire.channel() as channel:
        for exchange in topology.PAYMENT.exchanges:
            channel.queue_unbind("order-service.payment", exchange, "payment.completed")
    with started(command, tmp_path, amqp_url, eventually):
        wire.send_raw("payment.requested", json.dumps(samples.event("PaymentRequested")).encode())
        wire.listen("payment.refunded", queue="refunds")
        wire.send_raw("payment.refund_requested", json.dumps(samples.event("RefundRequested")).encode())

        wire.listen("payment.completed")

        [reply] = eventually(wire.take, "the reply")
        [later] = eventually(lambda: wire.take("refunds"), "the reply to the later request")
    assert [reply.event["type"], later.event["type"]] == ["PaymentCompleted", "PaymentRefunded"]


class Conversation:
    """Events for a sibling, and its replies."""

    def __init__(self, wire: Wire, eventually: Eventually) -> None:
        self._wire, self._eventually = wire, eventually
        self._wire.listen(*REPLIES)

    def tell(self, event_type: str, **data: Any) -> None:
        event = samples.event(event_type, id="repeated", order_id=data["order_id"])
        body = json.dumps(event | {"data": event["data"] | data}).encode()
        self._wire.send_raw(asyncapi.EVENTS[event_type].routing_key, body)

    def ask(self, event_type: str, **data: Any) -> tuple[str, dict[str, Any]]:
        """Send the event, and return the type and the data of the reply."""
        self.tell(event_type, **data)
        [reply] = self._eventually(self._wire.take, f"a reply to {event_type}")
        assert reply.properties.type == reply.event["type"]
        assert reply.properties.message_id == reply.event["id"]
        assert reply.properties.delivery_mode == 2
        return reply.event["type"], reply.event["data"]


@pytest.fixture
def conversation(documented_siblings: None, wire: Wire, eventually: Eventually) -> Conversation:
    return Conversation(wire, eventually)


def lines(**quantities: int) -> list[dict[str, int]]:
    return [{"menu_id": int(name.removeprefix("menu_")), "quantity": count} for name, count in quantities.items()]


def test_a_documented_menu_decides_once_and_releases_once(conversation: Conversation):
    order = {"order_id": 1, "lines": lines(menu_1=15, menu_2=1)}

    reserved = conversation.ask("OrderCreated", **order)
    again = conversation.ask("OrderCreated", **order)
    short = conversation.ask("OrderCreated", order_id=2, lines=lines(menu_2=1, menu_1=1))
    unknown = conversation.ask("OrderCreated", order_id=3, lines=lines(menu_2=1, menu_9=1))

    reservation_id = reserved[1]["reservation_id"]
    assert reserved[0] == "MenuReserved"
    assert [(item["id"], item["stock"]) for item in reserved[1]["items"]] == [(1, 0), (2, 6)]
    assert again == reserved
    assert short == ("MenuRejected", {"order_id": 2, "reason": "out_of_stock", "menu_id": 1})
    assert unknown == ("MenuRejected", {"order_id": 3, "reason": "menu_not_found", "menu_id": 9})

    for release_id, named in (("r1", "no such"), ("r2", reservation_id), ("r3", reservation_id), ("r4", None)):
        released = conversation.ask("StockReleaseRequested", order_id=1, release_id=release_id, reservation_id=named)
        assert released == ("StockReleased", {"order_id": 1, "release_id": release_id})

    _, after = conversation.ask("OrderCreated", order_id=4, lines=lines(menu_1=1, menu_2=1))
    assert [item["stock"] for item in after["items"]] == [14, 6]


def test_a_documented_menu_reserves_nothing_for_a_released_order(conversation: Conversation):
    conversation.ask("StockReleaseRequested", order_id=1, release_id="r1", reservation_id=None)
    conversation.tell("OrderCreated", order_id=1, lines=lines(menu_1=15))

    event_type, data = conversation.ask("OrderCreated", order_id=2, lines=lines(menu_1=1))

    assert (event_type, data["order_id"], data["items"][0]["stock"]) == ("MenuReserved", 2, 14)


def test_a_documented_payment_is_charged_once_and_refunded_once(conversation: Conversation):
    request = {"order_id": 1, "amount": 38000.5}

    paid = conversation.ask("PaymentRequested", **request)
    again = conversation.ask("PaymentRequested", **request)

    assert (paid[0], paid[1]["amount"]) == ("PaymentCompleted", 38000.5)
    assert again == paid
    for order_id, named in ((1, "no such"), (1, paid[1]["payment_id"]), (1, None), (2, None)):
        refunded = conversation.ask("RefundRequested", order_id=order_id, refund_id="f1", payment_id=named, amount=None)
        assert refunded == ("PaymentRefunded", {"order_id": order_id, "refund_id": "f1"})


def test_a_documented_sibling_skips_unreadable_messages(conversation: Conversation, wire: Wire):
    for body in (b"{", b"[]", b"1", b"{}", b'{"type": "Unknown", "data": {}}', b'{"type": "OrderCreated"}'):
        wire.send_raw("order.created", body)
        wire.send_raw("payment.requested", body)

    assert conversation.ask("OrderCreated", order_id=1, lines=lines(menu_1=1))[0] == "MenuReserved"
    assert conversation.ask("PaymentRequested", order_id=1, amount=1)[0] == "PaymentCompleted"


def test_a_documented_sibling_reconnects(conversation: Conversation, management: Any, eventually: Eventually):
    eventually(lambda: management.close_connections() >= 2, "the siblings' connections in the console")

    assert conversation.ask("OrderCreated", order_id=1, lines=lines(menu_1=1))[0] == "MenuReserved"


def test_a_service_with_the_kit_replies_with_the_trace_context_of_the_request(
    tmp_path: Path, amqp_url: str, wire: Wire, eventually: Eventually
):
    trace = {"traceparent": f"00-{'a' * 32}-{'b' * 16}-00", "tracestate": "congo=t61rcWkgMzE, t@v=a b,"}
    write_files("python", tmp_path)
    wire.listen("payment.completed")

    with started([sys.executable, "payment.py"], tmp_path, amqp_url, eventually):
        body = json.dumps(samples.event("PaymentRequested")).encode()
        for headers in (trace, {"traceparent": 1}):
            wire.send_raw("payment.requested", body, headers=headers | {"other": "header"})
        taken: list[Message] = []
        eventually(lambda: taken.extend(wire.take()) or len(taken) == 2, "the replies")
    traced, untraced = taken

    assert traced.properties.headers == {name: traced.event[name] for name in trace} == trace
    assert not untraced.properties.headers


@javascript
@pytest.mark.parametrize("mode", ["structured", "binary", "colons"])
def test_an_order_gets_paid_by_a_service_with_the_cloudevents_sdk_for_javascript(
    mode: str, tmp_path: Path, amqp_url: str, database: Database, wire: Wire, eventually: Eventually
):
    ours = [str(path) for path in GOLDEN if path.stem in OUTGOING]
    command = ["node", str(JAVASCRIPT / "cloudevents.mjs"), mode, *ours]
    with started(command, tmp_path, amqp_url, eventually), our_processes(amqp_url, database):
        check_orders_and_compensations(database, wire, eventually)


@javascript
def test_an_order_gets_paid_by_a_consumer_written_from_the_asyncapi_document(
    tmp_path: Path, amqp_url: str, database: Database, wire: Wire, eventually: Eventually
):
    document = tmp_path / "asyncapi.json"
    document.write_text(json.dumps(asyncapi.document()))

    command = ["node", str(JAVASCRIPT / "consumer.mjs"), str(document)]
    with started(command, tmp_path, amqp_url, eventually), our_processes(amqp_url, database):
        check_orders_and_compensations(database, wire, eventually)


def parser(document: Any, directory: Path) -> subprocess.CompletedProcess[str]:
    path = directory / "asyncapi.json"
    path.write_text(json.dumps(document))
    command = ["node", str(JAVASCRIPT / "check.mjs"), str(path), *map(str, GOLDEN)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@javascript
def test_the_official_parser_accepts_the_document_and_the_golden_samples_match_it(tmp_path: Path):
    judged = parser(asyncapi.document(), tmp_path)

    assert judged.returncode == 0, judged.stderr
    assert judged.stdout == "14 messages, 14 events\n"


@javascript
def test_the_check_finds_mistakes_in_the_document(tmp_path: Path):
    document = json.loads(json.dumps(asyncapi.document()))
    document["channels"]["order.created"]["bindings"]["amqp"]["is"] = "nonsense"
    document["operations"]["sendOrderPaid"]["channel"]["$ref"] = "#/channels/nowhere"

    judged = parser(document, tmp_path)

    assert judged.returncode == 1
    assert "channels.order.created.bindings" in judged.stderr
    assert "operations.sendOrderPaid.channel" in judged.stderr


@javascript
def test_the_check_finds_events_that_do_not_match_the_document(tmp_path: Path):
    document = json.loads(json.dumps(asyncapi.document()))
    payload = document["components"]["messages"]["OrderPaid"]["payload"]
    payload["properties"]["data"]["properties"]["user_id"]["maximum"] = 2

    judged = parser(document, tmp_path)

    assert judged.returncode == 1
    assert "example of OrderPaid: data/data/user_id must be <= 2" in judged.stderr
    assert "OrderPaid.json: data/data/user_id must be <= 2" in judged.stderr


def run(command: list[str], directory: Path, amqp_url: str) -> subprocess.CompletedProcess[str]:
    """A command as a user types it, with our Python first in the path."""
    return subprocess.run(command, cwd=directory, env=environment(amqp_url), capture_output=True, text=True, timeout=60)


def environment(amqp_url: str) -> dict[str, str]:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return os.environ | {"RABBITMQ_URL": amqp_url, "PATH": path, "PYTHONPATH": str(ROOT)}


def events(arguments: str, directory: Path, amqp_url: str) -> subprocess.CompletedProcess[str]:
    return run(["python", "-m", "order_service", "events", *arguments.split()], directory, amqp_url)


def test_the_commands_of_the_page_publish_the_sample_to_our_queue(tmp_path: Path, amqp_url: str, wire: Wire):
    script, _ = blocks("sh")

    done = run(["bash", "-ec", script], tmp_path, amqp_url)

    assert done.returncode == 0, done.stderr
    [message] = wire.take("order-service.menu")
    published = json.loads((tmp_path / "reserved.json").read_text())
    assert message.event == published
    assert message.routing_key == "menu.reserved"
    properties = message.properties
    assert (properties.type, properties.message_id, properties.correlation_id) == ("MenuReserved", published["id"], "1")
    assert (properties.content_type, properties.delivery_mode) == ("application/cloudevents+json", 2)
    assert properties.timestamp


@pytest.mark.parametrize("number", [0, 1])
def test_the_json_of_the_page_reserves_an_order(
    number: int, amqp_url: str, database: Database, wire: Wire, eventually: Eventually
):
    body = blocks("json")[number].encode()
    ids = core.place_sent(database)

    with core.running(core.worker(core.settings(amqp_url, database.url), database)):
        wire.send_raw("menu.reserved", body)

        eventually(lambda: core.states(database, ids) == {State.AWAITING_PAYMENT}, "the order to be reserved")


def test_publish_command_reports_an_unroutable_event(tmp_path: Path, amqp_url: str, wire: Wire):
    (tmp_path / "paid.json").write_text(json.dumps(samples.event("OrderPaid", id="1")))

    done = events("publish paid.json", tmp_path, amqp_url)

    assert done.returncode == 1
    assert "no queue is bound to order.paid" in done.stderr


def test_publish_command_rejects_invalid_events_unless_unchecked(tmp_path: Path, amqp_url: str, wire: Wire):
    (tmp_path / "bad.json").write_text('{"order_id": "x"}')

    refused = events("publish bad.json --type MenuRejected", tmp_path, amqp_url)
    assert refused.returncode == 1
    assert "data.order_id" in refused.stderr
    assert wire.take("order-service.menu") == []

    done = events("publish bad.json --unchecked --routing-key menu.rejected", tmp_path, amqp_url)
    assert done.returncode == 0, done.stderr
    assert [message.body for message in wire.take("order-service.menu")] == [b'{"order_id": "x"}']


def test_without_an_exchange_the_command_to_declare_it_is_named(tmp_path: Path, amqp_url: str):
    done = events("tail", tmp_path, amqp_url)

    assert done.returncode == 1
    assert "python -m order_service topology" in done.stderr


def test_without_a_broker_the_setting_is_named(tmp_path: Path):
    done = events("tail", tmp_path, "amqp://guest:guest@localhost:1/")

    assert done.returncode == 2
    assert "RABBITMQ_URL" in done.stderr


def test_the_tail_shows_a_line_for_each_event_until_it_is_interrupted(tmp_path: Path, amqp_url: str, wire: Wire):
    command = [sys.executable, "-m", "order_service", "events", "tail"]
    environment = os.environ | {"RABBITMQ_URL": amqp_url, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    pipe, hostile = subprocess.PIPE, json.dumps({f"\x1b[2J\n{number}": number for number in range(5000)}).encode()
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=pipe, stderr=pipe, text=True) as tail:
        assert tail.stdout
        assert tail.stderr
        assert "Watching restaurant.events, menu-service.events, payment-service.events;" in tail.stderr.readline()

        wire.send(completed(12, "p7"))
        shown = tail.stdout.readline()
        for body in (
            b"\xff",
            b"[1]",
            b'{"order_id": {}, "a": "\\u001b[2J"}',
            b'{"specversion": 1}',
            b"[" * 90_000,
            hostile,
        ):
            wire.send_raw("menu.reserved", body)
        odd = [tail.stdout.readline() for _ in range(6)]
        tail.send_signal(signal.SIGINT)

        assert tail.wait(20) == 0
    assert re.fullmatch(r"\d\d:\d\d:\d\d  PaymentCompleted +order 12 +payment_id=\"p7\" amount=38000.0\n", shown), shown
    assert all("MenuReserved" in line and "\x1b" not in line and len(line) < 3000 for line in odd)
