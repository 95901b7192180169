"""The relay when the broker refuses a message, or the database does not record what was published."""

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import pytest

from order_service.contract import topology
from order_service.contract.outgoing import Outgoing
from order_service.storage import claims, outbox
from order_service.storage.database import Database
from order_service.storage.tables import outbox as outbox_table
from tests import builders
from tests.builders import NOW
from tests.integration import core
from tests.integration.core import Eventually, Log, Start, Wire


def left(database: Database) -> set[str]:
    return {row.message_id for row in core.rows(database, outbox_table)}


def refused_at_once(name: str) -> Outgoing:
    """A message that RabbitMQ, pika or the relay refuses; `refuse` makes the exchange of dead letters refuse."""
    [message] = builders.outgoing(1)
    exchanges = dict.fromkeys(["403", "404"], topology.DEAD_LETTER_EXCHANGE) | {"foreign": topology.MENU_EXCHANGE}
    # RabbitMQ closes the channel unless CC is a list. https://www.rabbitmq.com/docs/sender-selected
    headers = {"406": {"headers": {"CC": "order.paid"}}, "encoding": {"headers": {"x" * 256: "too long a name"}}}
    return message._replace(
        message_id=f"refused-{name}", exchange=exchanges.get(name, topology.EXCHANGE), properties=headers.get(name)
    )


def refuse(wire: Wire, code: str) -> None:
    """Have the broker answer each publish to the exchange of dead letters with this code."""
    with wire.channel() as channel:
        channel.exchange_delete(topology.DEAD_LETTER_EXCHANGE)
        if code == "403":
            channel.exchange_declare(topology.DEAD_LETTER_EXCHANGE, "direct", internal=True)


#: What the log says of the messages that the broker never receives; of the others, the broker's reply code.
PROBLEMS = {"encoding": "cannot be encoded", "foreign": "not one of this service's"}
REFUSED = [["403"], ["404"], ["406"], ["encoding"], ["foreign"], ["404", "406", "encoding", "foreign"]]


@pytest.mark.parametrize("names", REFUSED)
def test_refused_messages_delay_only_themselves(
    names: list[str], database: Database, wire: Wire, relaying: Start, eventually: Eventually, log: Log
) -> None:
    # given: refused messages among many others of the same routing key
    wire.listen("#")
    others = builders.outgoing(200)
    refused = [refused_at_once(name) for name in names]

    # when
    with relaying():
        eventually(lambda: log.count("relaying"), "the relay to find its exchanges")
        if code := {"403", "404"}.intersection(names):
            refuse(wire, *code)
        core.add_to_outbox(database, [*others[:77], *refused, *others[77:]])
        eventually(lambda: left(database) == {message.message_id for message in refused}, "the others to be sent")
        core.add_to_outbox(database, builders.outgoing(1, routing_key="order.paid", type="OrderPaid"))
        start = time.monotonic()
        eventually(lambda: left(database) == {message.message_id for message in refused}, "a later event to be sent")
        assert time.monotonic() - start < 1
        eventually(lambda: min(row.attempts for row in core.rows(database, outbox_table)) > 0, "attempts to count")

    # then: named with the broker's reply
    problems = {call.kwargs["message_id"]: call.kwargs["problem"] for call in log.calls if "problem" in call.kwargs}
    assert problems.keys() == {message.message_id for message in refused}
    for name in names:
        assert PROBLEMS.get(name, name) in problems[f"refused-{name}"]
    copies = Counter(message.properties.message_id for message in wire.take())
    assert len(copies) == 200
    assert max(copies.values()) < 15


def test_refusal_of_a_whole_lane_ends_when_the_broker_accepts(
    database: Database, wire: Wire, relaying: Start, eventually: Eventually, log: Log
) -> None:
    message = refused_at_once("404")

    with relaying():
        eventually(lambda: log.count("relaying"), "the relay to find its exchanges")
        refuse(wire, "404")
        core.add_to_outbox(database, [message._replace(message_id=f"m-{number}") for number in range(600)])
        eventually(lambda: any(row.attempts for row in core.rows(database, outbox_table)), "a refusal")
        with wire.channel() as channel:
            topology.declare_exchanges(channel)
            channel.queue_declare("listener", durable=True)
            channel.queue_bind("listener", topology.DEAD_LETTER_EXCHANGE, message.routing_key)
        eventually(lambda: not left(database), "all to be sent")

    assert len({sent.properties.message_id for sent in wire.take()}) == 600


def test_returned_event_of_an_ended_order_is_dropped_but_an_unconfirmed_one_is_sent_again(database: Database) -> None:
    # given
    ids = core.place(database, 2)
    claim = claims.Claim(database, 100)
    returned, unconfirmed = (row.id for row in claim.rows)
    for order_id in ids:
        core.cancel(database, order_id)

    # when
    claim.settle(claims.Outcomes(failed=[returned], postponed={unconfirmed: 5}))

    # then
    created = [row for row in core.rows(database, outbox_table) if row.type == "OrderCreated"]
    assert [(row.id, row.attempts) for row in created] == [(unconfirmed, 0)]
    assert created[0].due_at > NOW


@contextmanager
def undeletable_rows(database: Database) -> Iterator[None]:
    """No transaction that deletes outbox rows can be committed, as on a full disk."""
    if database.is_sqlite:
        end = ["drop trigger full"]
        begin = [
            "create trigger full before delete on outbox begin select raise(fail, 'database or disk is full'); end"
        ]
    else:
        end = ["drop trigger if exists full_disk on outbox"]
        begin = [
            "create function no_space() returns trigger language plpgsql"
            " as $$ begin raise 'could not extend file' using errcode = '53100'; end $$",
            "create constraint trigger full_disk after delete on outbox deferrable initially deferred"
            " for each row execute function no_space()",
        ]
    for statements in (begin, end):
        with database.writing() as connection:
            for statement in statements:
                connection.exec_driver_sql(statement)
        if statements is begin:
            yield


def test_rows_that_cannot_be_deleted_are_not_published_again(
    database: Database, wire: Wire, relaying: Start, eventually: Eventually, log: Log
) -> None:
    # given
    wire.listen("order.created")
    core.add_to_outbox(database, builders.outgoing(6))
    warning = "the outcome of published rows could not be recorded, retrying"

    # when
    with relaying():
        with undeletable_rows(database):
            core.add_to_outbox(database, builders.outgoing(1))
            eventually(lambda: log.count(warning) >= 3, "the relay to try again")
            published = len(wire.take())
        eventually(lambda: not left(database), "the rows to be deleted")

    # then
    assert published <= 7
    assert log.count(warning) < 20
    assert len(wire.take()) <= 1


@core.POSTGRESQL_ONLY
def test_open_snapshot_does_not_make_claims_walk_over_deleted_rows(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given: rows that were deleted after the snapshot
    monkeypatch.setattr(claims, "START_LAG_SECONDS", 0)
    monkeypatch.setattr(claims, "FULL_CLAIM_SECONDS", 60)
    position = claims.Position()

    def claim_one() -> float:
        core.add_to_outbox(database, builders.outgoing(1))
        start = time.monotonic()
        claim = position.claim(database, 1, without=[])
        seconds = time.monotonic() - start
        claim.settle(claims.Outcomes(sent=[row.id for row in claim.rows]))
        return seconds

    with psycopg.connect(database.url) as snapshot:
        snapshot.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        snapshot.execute("select count(*) from outbox").fetchall()
        core.add_to_outbox(database, builders.outgoing(60_000))
        core.clear_outbox(database)

        # when
        first, *later = [claim_one() for _ in range(10)]

    # then
    assert sorted(later)[4] < first / 3, (first, later)


@pytest.mark.parametrize("value", ["garbage", "infinity"])
def test_row_that_cannot_be_decoded_delays_only_itself(
    value: str, database: Database, wire: Wire, relaying: Start, eventually: Eventually, log: Log
) -> None:
    # given
    if value == "garbage" and not database.is_sqlite:
        pytest.skip("PostgreSQL stores no such value")
    wire.listen("order.created")
    core.add_to_outbox(database, builders.outgoing(5))
    with database.writing() as connection:
        connection.exec_driver_sql(f"update outbox set created_at = '{value}' where id = 2")

    # when
    with relaying():
        eventually(lambda: core.count(database, outbox_table) == 1, "the other rows to be sent")
        core.add_to_outbox(database, builders.outgoing(1))
        eventually(lambda: core.count(database, outbox_table) == 1, "a later row to be sent")

    # then
    assert {error["outbox_id"] for error in log.errors()} == {2}
    assert not log.count("unexpected error, restarting")


def test_row_that_cannot_be_decoded_is_found_behind_many_of_another_route(database: Database) -> None:
    # given: rows of a route that fails stay due, and are not claimed
    waiting = builders.outgoing(5)
    core.add_to_outbox(database, [*waiting, *(each._replace(routing_key="order.paid") for each in waiting[:2])])
    [*_, last] = core.rows(database, outbox_table)
    with database.writing() as connection:
        value = "garbage" if database.is_sqlite else "infinity"
        connection.exec_driver_sql(f"update outbox set created_at = '{value}' where id = {last.id}")

    assert list(claims.unreadable_rows(database, 3, known=[])) == [last.id]
    assert claims.unreadable_rows(database, 3, known=[last.id]) == {}


def test_events_are_dropped_at_the_end_of_a_lifetime_only_if_they_reached_no_queue(database: Database) -> None:
    # given
    core.add_to_outbox(database, builders.outgoing(4))
    claim = claims.Claim(database, 3)
    sent, returned, unconfirmed = (row.id for row in claim.rows)
    claim.settle(claims.Outcomes(sent=[sent], failed=[returned], postponed={unconfirmed: 0}))

    # when
    with database.writing() as connection:
        outbox.drop_unsent(connection, range(sent, unconfirmed + 2))

    # then
    assert [row.id for row in core.rows(database, outbox_table)] == [unconfirmed]
