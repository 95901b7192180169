"""`python -m order_service dlq`: dead letters are listed, shown, replayed and discarded."""

import contextlib
import json
import os
import random
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pika
import pytest
import sqlalchemy as sa
from click.testing import CliRunner, Result

from order_service.cli.main import main
from order_service.contract import outgoing, topology
from order_service.contract.envelope import Delivery, Reply, rejection, utc_text
from order_service.contract.topology import DEAD_LETTER_EXCHANGE, MENU, PAYMENT, Queue
from order_service.storage.database import Database
from order_service.storage.tables import order_history
from tests import builders
from tests.builders import REQUEST_TOTAL
from tests.conftest import VhostManagement
from tests.integration import core
from tests.integration.core import SQLITE_ONLY, Eventually, Log, Start, Wire, completed, reserved

pytestmark = pytest.mark.usefixtures("own_logging")

Dlq = Callable[..., Result]
NOW = datetime.now(UTC)


@pytest.fixture
def dlq(database: Database, wire: Wire, amqp_url: str, monkeypatch: pytest.MonkeyPatch) -> Dlq:
    """Runs `python -m order_service dlq` on this test's database and broker."""
    monkeypatch.setattr("order_service.cli.dlq.log", Log())
    env = {"DATABASE_URL": database.url, "RABBITMQ_URL": amqp_url}
    return lambda *arguments, **more: CliRunner(env=env).invoke(main, ["dlq", *arguments], **more)


def dead_letter(
    wire: Wire, *replies: Reply, queue: Queue = PAYMENT, code: str = "invalid", app_id: str = "payment-service"
) -> None:
    """Dead-letter these replies for this reason, as a consumer and the relay do."""
    letters = []
    for each in replies:
        key = topology.QUEUES[queue is PAYMENT].routing_keys[0]
        properties = {"message_id": each.message_id, "type": each.type, "app_id": app_id}
        delivery = Delivery(queue.name, key, builders.event(each), properties)
        letters.append(outgoing.dead_letter(rejection(delivery, code, "data", "is wrong", order_id=each.order_id), NOW))
    publish(wire, letters)


def publish(wire: Wire, letters: list[outgoing.Outgoing]) -> None:
    with wire.channel() as channel:
        for each in letters:
            properties = pika.BasicProperties(**(each.properties or {}), type=each.type, message_id=each.message_id)
            channel.basic_publish(DEAD_LETTER_EXCHANGE, each.routing_key, each.body, properties, mandatory=True)


def priced(database: Database, count: int = 1) -> list[int]:
    """Orders that await their payment."""
    ids = core.place_sent(database, count, now=NOW)
    assert core.apply(database, *map(reserved, ids), now=NOW) == []
    core.clear_outbox(database)
    return ids


def ids_in(wire: Wire, queue: str) -> list[str | None]:
    return [message.properties.message_id for message in wire.take(queue)]


def editor(tmp_path: Path, old: str, new: str) -> str:
    """An $EDITOR that replaces a text."""
    script = tmp_path / "editor"
    script.write_text(f"#!/bin/sh\nsed -i 's/{old}/{new}/' \"$1\"\n")
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    return str(script)


def test_wrong_payments_are_listed_corrected_and_applied(
    database: Database, wire: Wire, dlq: Dlq, consuming: Start, relaying: Start, eventually: Eventually, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    # given: a sender with amounts that are no numbers, and one order that ends before the operator looks
    ids = priced(database, 3)
    for order_id in ids:
        data = {"order_id": order_id, "payment_id": f"P{order_id}", "amount": "free"}
        event = {
            "specversion": "1.0",
            "id": f"p-{order_id}",
            "source": "/payments",
            "type": "PaymentCompleted",
            "data": data,
        }
        wire.send_raw("payment.completed", json.dumps(event).encode(), message_id=f"p-{order_id}")
    with consuming(), relaying():
        eventually(lambda: depth(wire, PAYMENT.dead_letters) == 3, "the dead letters")
    core.cancel(database, ids[2], now=NOW)

    # when
    listed = dlq("list", "--json")

    # then
    [group] = json.loads(listed.stdout)["groups"]
    assert listed.exit_code == 1
    named = {"queue": PAYMENT.dead_letters, "reason": "invalid", "type": "PaymentCompleted", "sender": "/payments"}
    assert named.items() <= group.items()
    assert (group["count"], group["orders"], group["pending"]) == (3, 3, 2)
    assert 0 < (datetime.fromisoformat(group["pending_until"]) - NOW).total_seconds() <= 900
    assert abs((datetime.fromisoformat(group["oldest"]) - datetime.now(UTC)).total_seconds()) < 60
    assert "data.amount" in group["example"]["detail"]
    text = dlq("list").stdout
    assert "invalid  PaymentCompleted from /payments: 3" in text
    assert "2 of 3 orders pending, the first until" in text

    # when: replayed as it is, and corrected
    rehearsed = dlq("replay", "p-1", "--dry-run")
    monkeypatch.setenv("EDITOR", editor(tmp_path, '"free"', str(REQUEST_TOTAL)))
    with consuming():
        corrected = dlq("replay", "p-1", "--edit")
        eventually(lambda: core.get(database, ids[0]).state == "paid", "the corrected payment to be applied")

    # then
    assert (rehearsed.exit_code, corrected.exit_code) == (1, 0), corrected.output
    assert "p-1  PaymentCompleted for order 1: dead-lettered again: invalid: data.amount" in rehearsed.stdout
    assert ids_in(wire, PAYMENT.dead_letters) == ["p-2", "p-3"]


def depth(wire: Wire, queue: str) -> int:
    with wire.channel() as channel:
        return int(channel.queue_declare(queue, passive=True).method.message_count)


@SQLITE_ONLY
def test_edit_that_is_still_invalid_changes_nothing(
    database: Database, wire: Wire, dlq: Dlq, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead_letter(wire, completed(1), completed(2, id="pay-2"))
    monkeypatch.setenv("EDITOR", editor(tmp_path, "38000.0", "true"))

    invalid, many = dlq("replay", "pay-1", "--edit"), dlq("replay", "--all", "--edit")
    both = dlq("replay", "pay-1", "--edit", "--dry-run")

    assert (invalid.exit_code, many.exit_code, both.exit_code) == (2, 2, 2)
    assert "with --edit, leave it out" in both.stderr
    assert "data.amount" in invalid.stderr
    assert "--edit is for one dead letter, and 2 are selected" in many.stderr
    assert ids_in(wire, PAYMENT.dead_letters) == ["pay-1", "pay-2"]


@SQLITE_ONLY
def test_bare_message_is_replayed_under_its_original_routing_key(
    database: Database, wire: Wire, dlq: Dlq, consuming: Start, relaying: Start, eventually: Eventually
) -> None:
    # given: data that its routing key alone names, for an order that does not exist yet
    data = json.dumps(builders.event_data(reserved(1))).encode()
    wire.send_raw("menu.reserved", data, type="java.util.HashMap")
    with consuming(), relaying():
        eventually(lambda: depth(wire, MENU.dead_letters) == 1, "the dead letter")
        core.place_sent(database, now=NOW)

        # when
        replayed = dlq("replay", "--reason", "unknown_order", "--type", "MenuReserved", "--order", "1")

        # then
        eventually(lambda: core.states(database, [1]) == {"awaiting_payment"}, "it to be applied")
    assert (replayed.exit_code, replayed.stdout) == (0, "1 replayed\n")
    assert depth(wire, MENU.dead_letters) == 0


@SQLITE_ONLY
def test_replayed_message_is_stamped_and_goes_to_its_own_queue_only(database: Database, wire: Wire, dlq: Dlq) -> None:
    wire.listen("#", queue="everybody")
    dead_letter(wire, completed(1))

    dlq("replay", "--all")

    [message] = wire.take(PAYMENT.name)
    headers = message.properties.headers or {}
    assert (message.body, message.properties.message_id) == (builders.event(completed(1)), "pay-1")
    assert datetime.fromisoformat(headers.pop("x-replayed-at")) > NOW
    headers.pop("x-delivery-count", None)
    assert headers == {"x-origin-routing-key": "payment.completed"}
    assert wire.take("everybody") == []


@SQLITE_ONLY
def test_message_that_is_rejected_again_is_replayed_once(
    database: Database, wire: Wire, dlq: Dlq, consuming: Start, relaying: Start, eventually: Eventually
) -> None:
    dead_letter(wire, *(completed(9, id=f"pay-{number}") for number in range(5)), code="unknown_order")

    with consuming(), relaying():
        replayed = dlq("replay", "--all", "--json")
        eventually(lambda: depth(wire, PAYMENT.dead_letters) == 5, "all of them to be rejected again")

    assert json.loads(replayed.stdout) == {"replayed": 5, "left": []}
    headers = [message.properties.headers or {} for message in wire.take(PAYMENT.dead_letters)]
    assert {each["x-error"] for each in headers} == {"unknown_order"}
    assert all("x-replayed-at" in each for each in headers)


@SQLITE_ONLY
@pytest.mark.parametrize("prefetch", [10_000, 40])
def test_looking_keeps_the_dead_letters_and_their_order(
    database: Database, wire: Wire, dlq: Dlq, monkeypatch: pytest.MonkeyPatch, prefetch: int
) -> None:
    """Also of more dead letters than one subscription holds."""
    monkeypatch.setattr("order_service.cli.holding.PREFETCH", prefetch)
    sent = [f"pay-{number}" for number in range(150)]
    dead_letter(wire, *(completed(1, id=each) for each in sent))

    for _ in range(4):
        assert dlq("list").exit_code == 1
        assert dlq("show", "pay-70").exit_code == 0
        assert dlq("replay", "pay-60", "--dry-run").exit_code == 1
    dlq("replay", "pay-100")

    assert ids_in(wire, PAYMENT.dead_letters) == [each for each in sent if each != "pay-100"]


def test_dry_run_prints_the_transitions_and_writes_nothing(database: Database, wire: Wire, dlq: Dlq) -> None:
    # given
    [waiting] = core.place_sent(database, now=NOW)
    [paid] = priced(database)
    # With as many places as a reader gives it.
    core.apply(database, completed(paid, amount=Decimal("38000.0000")))
    before = core.rows(database, order_history)
    dead_letter(wire, reserved(waiting), queue=MENU)
    dead_letter(
        wire, completed(waiting, amount=Decimal(1)), completed(paid), completed(9), completed(paid, "P2", id="x")
    )

    # when
    done = dlq("replay", "--all", "--dry-run", "--json")

    # then
    outcomes = [each["replay"] for each in json.loads(done.stdout)]
    assert outcomes == [
        "awaiting_menu -> awaiting_payment: PaymentRequested",
        "awaiting_payment -> failed: OrderFailed, StockReleaseRequested, RefundRequested",
        "nothing: this message was applied before",
        "dead-lettered again: unknown_order: data.order_id names no order of ours",
        "paid -> paid: RefundRequested",
    ]
    assert core.rows(database, order_history) == before
    assert depth(wire, PAYMENT.dead_letters) == 4


@SQLITE_ONLY
def test_selected_dead_letter_is_found_behind_any_number_of_others(
    database: Database, wire: Wire, dlq: Dlq, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given: more than one subscription holds
    monkeypatch.setattr("order_service.cli.holding.PREFETCH", 20)
    others = [f"pay-{number}" for number in range(90)]
    dead_letter(wire, *(completed(1, id=each) for each in others), code="unknown_order")
    dead_letter(wire, completed(2, id="first"), completed(3, id="second"))

    # when
    listed, replayed = dlq("list", "--json"), dlq("replay", "first", "--json")
    discarded = dlq("discard", "--reason", "invalid", "--yes", "--json")

    # then
    found = json.loads(listed.stdout)
    assert {each["reason"]: each["count"] for each in found["groups"]} == {"unknown_order": 90, "invalid": 2}
    assert json.loads(replayed.stdout) == {"replayed": 1, "left": []}
    assert json.loads(discarded.stdout) == {"discarded": 1}
    assert ids_in(wire, PAYMENT.name) == ["first"]
    assert ids_in(wire, PAYMENT.dead_letters) == others


@SQLITE_ONLY
def test_dead_letters_are_listed_without_the_database(database: Database, wire: Wire, dlq: Dlq, amqp_url: str) -> None:
    dead_letter(wire, completed(1))

    env = {"DATABASE_URL": "sqlite:////nowhere/orders.db", "RABBITMQ_URL": amqp_url}
    found = CliRunner(env=env).invoke(main, ["dlq", "list"])

    assert found.exit_code == 1
    assert "invalid  PaymentCompleted from payment-service: 1, " in found.stdout
    assert "pending" not in found.stdout
    assert "DATABASE_URL" in found.stderr
    assert "The orders concerned are not shown." in found.stderr


@SQLITE_ONLY
def test_discard_asks_logs_and_keeps_a_copy(
    database: Database, wire: Wire, dlq: Dlq, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, out = Log(), tmp_path / "copies"
    monkeypatch.setattr("order_service.cli.dlq.log", log)
    dead_letter(wire, completed(1), completed(2, id="pay-2"), completed(3, id="pay-3"))

    refused = dlq("discard", "--order", "1", input="n\n")
    assert depth(wire, PAYMENT.dead_letters) == 3
    asked = dlq("discard", "--order", "1", "--out", str(out), input="y\n")
    unasked = dlq("discard", "pay-2", "--out", str(out), "--yes")
    none = dlq("discard", "pay-2", "--yes")
    shown = dlq("show", "pay-3")

    assert [refused.exit_code, asked.exit_code, unasked.exit_code, none.exit_code] == [1, 0, 0, 1]
    assert "Discard 1 dead letter?" in asked.stderr
    assert ids_in(wire, PAYMENT.dead_letters) == ["pay-3"]
    copies = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(each["id"], json.loads(each["body"])["data"]["order_id"]) for each in copies] == [
        ("pay-1", 1),
        ("pay-2", 2),
    ]
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    at = utc_text(NOW)
    assert [each["at"] for each in copies] == [at, at]
    assert f"\nat: {at}\n" in shown.stdout
    assert log.count("dead letter discarded") == 2


@SQLITE_ONLY
@pytest.mark.parametrize("words", ["replay --dry-run", "replay", "discard --yes"])
def test_id_that_no_dead_letter_has_is_named_beside_others(
    database: Database, wire: Wire, dlq: Dlq, words: str
) -> None:
    [order_id] = priced(database)
    dead_letter(wire, completed(order_id))
    dead_letter(wire, reserved(9, id="of another order"), queue=MENU)

    done = dlq(*words.split(), f"pay-{order_id}", "pay-99", "pay-98", "--type", "PaymentCompleted")

    assert done.exit_code == 1
    assert [line for line in done.stderr.splitlines() if line.startswith("not")] == [
        "not found: pay-99",
        "not found: pay-98",
    ]
    assert depth(wire, PAYMENT.dead_letters) == ("--dry-run" in words)


@SQLITE_ONLY
@pytest.mark.parametrize("words", ["replay --dry-run", "replay", "discard --yes"])
def test_id_that_no_dead_letter_has_is_named_alone_too(dlq: Dlq, words: str) -> None:
    done = dlq(*words.split(), "pay-99")

    assert done.exit_code == 1
    assert "not found: pay-99" in done.stderr.splitlines()


@SQLITE_ONLY
def test_dead_letter_whose_copy_cannot_be_written_is_kept(database: Database, wire: Wire, dlq: Dlq) -> None:
    dead_letter(wire, completed(1))

    done = dlq("discard", "--all", "--yes", "--out", "/dev/full")

    assert done.exit_code == 2
    assert "Error: --out /dev/full: No space left on device; no dead letter without a copy was deleted" in done.stderr
    assert ids_in(wire, PAYMENT.dead_letters) == ["pay-1"]


@SQLITE_ONLY
def test_discard_deletes_only_what_was_selected(database: Database, wire: Wire, dlq: Dlq) -> None:
    """A message under the same id and with the same body was rejected twice, for different reasons."""
    dead_letter(wire, completed(1), code="invalid")
    dead_letter(wire, completed(1), code="unknown_order")

    done = dlq("discard", "--reason", "invalid", "pay-1", "--yes", "--json")

    assert json.loads(done.stdout) == {"discarded": 1}
    assert [each.properties.headers["x-error"] for each in wire.take(PAYMENT.dead_letters)] == ["unknown_order"]


@SQLITE_ONLY
@pytest.mark.parametrize(
    ("body", "headers"),
    [
        pytest.param(b'{"payment_id":1,"order_id":99999999999999999999,"amount":5}', {}, id="large order id"),
        pytest.param(b'{"payment_id":1}', {"x-order-id": "9" * 5000}, id="order id of 5,000 digits"),
        pytest.param(b'{"specversion":"1.0","id":"m","source":"\\udfffsrc","type":"A","data":{}}', {}, id="surrogate"),
        pytest.param(
            b'{"specversion":"1.0","id":"m","source":"a\\u001b[2J\\nFAKE","type":"A","data":{}}', {}, id="terminal"
        ),
    ],
)
def test_odd_message_is_listed_shown_and_discarded(
    database: Database, wire: Wire, dlq: Dlq, tmp_path: Path, body: bytes, headers: dict[str, str]
) -> None:
    delivery = Delivery(PAYMENT.name, "payment.completed", body, {"message_id": "odd", "headers": headers})
    publish(wire, [outgoing.dead_letter(rejection(delivery, "invalid", "data", "is wrong"), NOW)])
    out = tmp_path / "copies"

    listed, as_json = dlq("list"), dlq("list", "--json")
    [group] = json.loads(as_json.stdout)["groups"]
    shown = dlq("show", group["example"]["id"])
    discarded = dlq("discard", group["example"]["id"], "--yes", "--out", str(out))

    assert [each.exit_code for each in (listed, as_json, shown, discarded)] == [1, 1, 0, 0], listed.output
    assert [line for line in (listed.stdout + shown.stdout).splitlines() if not line.isprintable()] == []
    assert not [line for line in listed.stdout.splitlines() if line.startswith("FAKE")]
    assert depth(wire, PAYMENT.dead_letters) == 0
    assert json.loads(out.read_text())["reason"] == "invalid"


@SQLITE_ONLY
def test_oversized_message_is_left(
    database: Database, wire: Wire, dlq: Dlq, consuming: Start, relaying: Start, eventually: Eventually
) -> None:
    wire.send_raw("payment.completed", b" " * 300_000, message_id="large")
    with consuming(), relaying():
        eventually(lambda: depth(wire, PAYMENT.dead_letters) == 1, "the dead letter")

    replayed, shown = dlq("replay", "--all"), dlq("show", "large")

    assert replayed.exit_code == 1
    assert "left: large is oversized" in replayed.stdout
    assert "replay: dead-lettered again: oversized" in shown.stdout
    assert depth(wire, PAYMENT.dead_letters) == 1


@SQLITE_ONLY
def test_message_that_the_broker_dead_lettered_is_replayed(database: Database, wire: Wire, dlq: Dlq) -> None:
    with wire.channel() as channel:
        channel.basic_publish(topology.EXCHANGE, "payment.completed", builders.event(completed(1)))
        method, _, _ = channel.basic_get(PAYMENT.name)
        channel.basic_reject(method.delivery_tag, requeue=False)
        channel.connection.sleep(0)
    listed = json.loads(dlq("list", "--json").stdout)

    replayed = dlq("replay", "--reason", "broker: rejected")

    [group] = listed["groups"]
    assert (group["reason"], group["type"], group["count"]) == ("broker: rejected", "PaymentCompleted", 1)
    assert replayed.stdout == "1 replayed\n"
    [message] = wire.take(PAYMENT.name)
    assert (message.properties.headers or {})["x-origin-routing-key"] == "payment.completed"


@pytest.fixture
def sender(management: VhostManagement, amqp_url: str) -> Iterator[pika.ConnectionParameters]:
    """The login of another user."""
    name, parameters = f"sender-{management.vhost}", pika.URLParameters(amqp_url)
    management.api.call("PUT", "users", name, body={"password": "S3cret", "tags": ""})
    rights = dict.fromkeys(("configure", "write", "read"), ".*")
    management.api.call("PUT", "permissions", management.vhost, name, body=rights)
    parameters.credentials = pika.PlainCredentials(name, "S3cret")
    yield parameters
    management.api.call("DELETE", "users", name)


@SQLITE_ONLY
def test_letters_of_the_broker_that_it_would_refuse_are_replayed_too(
    database: Database, wire: Wire, dlq: Dlq, sender: pika.ConnectionParameters, eventually: Eventually
) -> None:
    # given: expired in the queue, so they keep their properties: of another user, with an id that is not UTF-8
    user = sender.credentials.username  # type: ignore[attr-defined]
    with contextlib.closing(pika.BlockingConnection(sender)) as connection:
        for odd in ({"user_id": user, "type": "A"}, {"message_id": "\udcff" * 200, "type": "B"}, {"type": "C"}):
            for name, value in odd.items():
                odd[name] = value.encode(errors="surrogateescape")  # type: ignore[assignment]
            properties = pika.BasicProperties(expiration="1", **odd)  # type: ignore[arg-type]
            connection.channel().basic_publish("", PAYMENT.name, b"{}", properties)
        eventually(lambda: depth(wire, PAYMENT.dead_letters) == 3, "the messages to expire")

    # when
    replayed = dlq("replay", "--all")

    # then
    assert (replayed.exit_code, replayed.stdout) == (0, "3 replayed\n"), replayed.output
    first, *others = wire.take(PAYMENT.name)
    assert (first.properties.type, [each.properties.type for each in others]) == ("A", ["B", "C"])
    assert (first.properties.headers or {})["x-original-user_id"] == user


@SQLITE_ONLY
@pytest.mark.parametrize("keys", [5, {"a": 1}, []], ids=str)
def test_headers_of_a_sender_that_describe_a_rejection_are_not_believed(
    keys: object, database: Database, wire: Wire, dlq: Dlq, consuming: Start, relaying: Start, eventually: Eventually
) -> None:
    forged = {"x-body-bytes": 7, "x-order-id": "5", "x-death": [{"routing-keys": keys}]}
    with wire.channel() as channel:
        channel.basic_publish("", PAYMENT.name, b"not JSON", pika.BasicProperties(headers=forged, message_id="forged"))
    with consuming(), relaying():
        eventually(lambda: depth(wire, PAYMENT.dead_letters) == 1, "the dead letter")

    listed, replayed = dlq("list", "--json"), dlq("replay", "--all")

    [group] = json.loads(listed.stdout)["groups"]
    assert (group["reason"], group["orders"]) == ("malformed", 0)
    assert (replayed.exit_code, replayed.stdout) == (0, "1 replayed\n"), replayed.output


@SQLITE_ONLY
def test_exit_codes_tell_nothing_found_from_what_cannot_run(
    database: Database, wire: Wire, dlq: Dlq, amqp_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty, unknown, unnamed = dlq("list"), dlq("show", "nothing"), dlq("replay")
    unreachable = CliRunner(env={"RABBITMQ_URL": core.UNREACHABLE_BROKER}).invoke(main, ["dlq", "list"])
    with wire.channel() as channel:
        channel.queue_delete(PAYMENT.dead_letters)
    lost = dlq("list")

    assert [empty.exit_code, unknown.exit_code, unnamed.exit_code] == [0, 2, 2]
    assert (unreachable.exit_code, lost.exit_code) == (2, 2)
    assert "python -m order_service topology" in lost.stderr


@pytest.mark.parametrize("turn", [0, *(pytest.param(turn, marks=pytest.mark.field) for turn in range(1, 20))])
@SQLITE_ONLY
def test_replay_killed_at_a_random_moment_loses_nothing_and_applies_nothing_twice(
    database: Database, wire: Wire, dlq: Dlq, amqp_url: str, consuming: Start, eventually: Eventually, turn: int
) -> None:
    # given
    ids = priced(database, 1000)
    dead_letter(wire, *(completed(id, f"P{id}", id=f"pay-{id}") for id in ids))
    all_ids = {f"pay-{id}" for id in ids}
    moment = random.Random(turn).randrange(1, 900)
    env = os.environ | {"DATABASE_URL": database.url, "RABBITMQ_URL": amqp_url}

    with consuming():
        # when
        command = [sys.executable, "-m", "order_service", "dlq", "replay", "--reason", "invalid"]
        replaying = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        eventually(lambda: applied(database) >= moment or replaying.poll() is not None, f"{moment} replays")
        replaying.send_signal(signal.SIGKILL)
        replaying.communicate()
        eventually(lambda: depth(wire, PAYMENT.name) == 0, "what was replayed to be consumed")

    # then: each is applied, or still there
    eventually(
        lambda: {*paid(database), *held(wire)} == all_ids, "each message to be applied or to be there", seconds=20
    )
    assert moment <= len(paid(database))

    # and: the next replay applies the others, each once
    with consuming():
        assert dlq("replay", "--all").exit_code in (0, 1)
        eventually(lambda: core.states(database, ids) == {"paid"}, "all orders to be paid")
        eventually(lambda: depth(wire, PAYMENT.name) == 0, "the queue to be empty")
    assert sorted(paid(database)) == sorted(all_ids)
    assert depth(wire, PAYMENT.dead_letters) == 0
    assert core.compensation_rows(database) == []


def applied(database: Database) -> int:
    with database.reading() as connection:
        of_payments = sa.select(sa.func.count()).where(order_history.c.type == "PaymentCompleted")
        return int(connection.execute(of_payments).scalar_one())


def paid(database: Database) -> list[str]:
    """The ids of the applied payments, one for each entry in the histories."""
    return [row.message_id for row in core.rows(database, order_history, order_history.c.type == "PaymentCompleted")]


def held(wire: Wire) -> set[str]:
    """The ids of all dead letters, which go back to their queue."""
    found = set()
    with wire.channel() as channel:
        while True:
            method, properties, _ = channel.basic_get(PAYMENT.dead_letters)
            if method is None:
                return found
            found.add(properties.message_id)
