"""Each workaround in order_service/vendor.py works, and is needed: the library alone still has the fault.

When a test of a library alone fails, the library is mended and its workaround can go.
"""

import contextlib
import errno
import importlib.util
import inspect
import math
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pika
import pika.data
import psycopg
import pytest
import sqlalchemy as sa
from pika.channel import Channel
from pika.exceptions import AMQPConnectionError, UnsupportedAMQPFieldException
from prometheus_client import CollectorRegistry, Histogram, generate_latest, multiprocess
from prometheus_client.multiprocess import MultiProcessCollector

from order_service import vendor
from order_service.ops import Loop
from order_service.process import StopFlag
from order_service.storage.database import CHANNEL, Database
from order_service.storage.errors import OutcomeUnknown, is_transient
from order_service.storage.tables import outbox
from publishers.pipeline import Memory, Pipeline
from publishers.relay import Relay
from tests import builders
from tests.e2e.proxy import TcpProxy
from tests.integration import core
from tests.integration.core import Eventually, Log, Start, Wire, reserved

# early_reset_as_lost_connection


@pytest.fixture
def resetting_broker(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of a server that accepts connections and resets them, with what the kernel answers once that is known."""

    def disconnected(_: socket.socket) -> None:
        raise OSError(errno.ENOTCONN, "Transport endpoint is not connected")

    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"amqp://guest:guest@127.0.0.1:{server.getsockname()[1]}/"
        monkeypatch.setattr(socket.socket, "getpeername", disconnected)
        yield url


@core.SQLITE_ONLY
@pytest.mark.parametrize("make", [core.worker, lambda settings, db: lambda stop: Relay(settings, db, stop)])
def test_a_reset_just_after_the_broker_accepted_a_connection_is_a_lost_connection(
    make: Any, resetting_broker: str, database: Database, eventually: Eventually, log: Log
) -> None:
    with core.running(make(core.settings(resetting_broker, database.url), database)):
        eventually(lambda: log.count("the broker is unreachable, retrying"), "the lost connection")

    assert log.count("unexpected error, restarting") == 0


def test_a_pipeline_that_is_reset_loses_its_connection(resetting_broker: str, tmp_path: Path) -> None:
    with core.opened(f"sqlite:///{tmp_path}/orders.db") as database, pytest.raises(AMQPConnectionError):
        Pipeline(
            pika.URLParameters(resetting_broker),
            database,
            StopFlag(),
            Memory(),
            loop=Loop("relay"),
            on_first_confirm=lambda: None,
        ).run()


def test_pika_alone_raises_a_value_error_for_an_early_reset(resetting_broker: str) -> None:
    with pytest.raises(ValueError, match="getpeername"):
        pika.BlockingConnection(pika.URLParameters(resetting_broker))


# tolerate_unusual_headers

#: Headers that pika cannot decode, as AMQP bytes.
UNDECODABLE = [
    pytest.param(b"T" + struct.pack(">Q", 1_772_000_000_000), id="time in milliseconds"),
    pytest.param(b"T" + struct.pack(">q", -1), id="time before 1970, as Java writes it"),
    pytest.param(b"\1a".join(b"F" + struct.pack(">I", 7 * depth) for depth in range(3000, -1, -1)), id="deep nesting"),
]


@pytest.mark.usefixtures("raw_headers")
@pytest.mark.parametrize("header", UNDECODABLE)
@core.SQLITE_ONLY
def test_message_with_an_undecodable_header_is_applied(
    header: bytes, database: Database, wire: Wire, consuming: Start, eventually: Eventually
) -> None:
    first, second = ids = core.place_sent(database, 2)
    wire.send_raw(
        "menu.reserved", builders.event(reserved(first)), headers={"x-odd": core.RawHeader(header), "x-next": 1}
    )
    wire.send(reserved(second))

    with consuming():
        eventually(lambda: core.states(database, ids) == {"awaiting_payment"}, "it and the next message to be applied")

    assert wire.depth() == 0


@pytest.mark.parametrize("header", UNDECODABLE)
def test_pika_alone_cannot_decode_such_a_header(header: bytes) -> None:
    table = b"\5x-odd" + header

    with pytest.raises((ValueError, OverflowError, OSError, RecursionError)):
        unpatched_pika_data().decode_table(struct.pack(">I", len(table)) + table, 0)


@pytest.mark.parametrize("number", [1.5, -0.25, 1e300, math.inf])
def test_float_in_a_header_is_read_and_written(number: float) -> None:
    vendor.tolerate_unusual_headers()
    pieces: list[bytes] = []

    pika.data.encode_table(pieces, {"double": number, "list": [{"nested": number}]})

    read, _ = pika.data.decode_table(b"".join(pieces), 0)
    assert read == {"double": number, "list": [{"nested": number}]}
    assert pika.data.decode_value(b"f" + struct.pack(">f", 1.5), 0) == (1.5, 5)


def test_pika_alone_cuts_floats_and_writes_none() -> None:
    alone = unpatched_pika_data()

    assert alone.decode_value(b"d" + struct.pack(">d", 1.5), 0) == (1, 9)
    with pytest.raises(UnsupportedAMQPFieldException):
        alone.encode_value([], 1.5)


def unpatched_pika_data() -> Any:
    found = importlib.util.find_spec("pika.data")
    assert found
    assert found.loader
    unpatched = importlib.util.module_from_spec(found)
    found.loader.exec_module(unpatched)
    return unpatched


# GatheringConnection

MESSAGES = 200


@pytest.fixture
def sends(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The bytes of each system call that sends to a socket of this process."""
    sizes: list[int] = []
    send = socket.socket.send

    def record(self: socket.socket, data: bytes, *flags: int) -> int:
        sizes.append(len(data))
        return send(self, data, *flags)

    monkeypatch.setattr(socket.socket, "send", record)
    return sizes


def test_relay_sends_a_batch_in_few_system_calls(
    database: Database, wire: Wire, relaying: Start, eventually: Eventually, sends: list[int]
) -> None:
    wire.listen("order.created")
    core.add_to_outbox(database, builders.outgoing(MESSAGES))
    sends.clear()

    with relaying():
        eventually(lambda: core.count(database, outbox) == 0, "all rows to be published")

    assert len(sends) < MESSAGES / 4, sends
    assert len(wire.take()) == MESSAGES


def test_pika_alone_sends_each_message_in_several_system_calls(amqp_url: str, sends: list[int]) -> None:
    def publish(channel: Channel) -> None:
        channel.add_on_close_callback(lambda *_: connection.close())
        sends.clear()
        for _ in range(MESSAGES):
            channel.basic_publish("", "no-queue", b"body")
        channel.close()

    connection = pika.SelectConnection(
        pika.URLParameters(amqp_url),
        on_open_callback=lambda opened: opened.channel(on_open_callback=publish),
        on_close_callback=lambda closed, _: closed.ioloop.stop(),
    )
    connection.ioloop.start()
    connection.ioloop.close()

    assert len(sends) > 2 * MESSAGES


# begin_with_time


@core.POSTGRESQL_ONLY
def test_begin_with_the_time_of_the_server_takes_one_round_trip(
    database: Database, round_trips: core.RoundTrips
) -> None:
    with psycopg.connect(database.url, autocommit=True) as connection:
        round_trips.trace(connection)

        at = vendor.begin_with_time(connection)

        connection.pgconn.untrace()
        assert round_trips.count() <= 1
        assert connection.info.transaction_status == psycopg.pq.TransactionStatus.INTRANS
        assert connection.execute("SELECT clock_timestamp() - %s < '10 s'", [at]).fetchone() == (True,)


@core.POSTGRESQL_ONLY
def test_begin_on_a_lost_connection_raises_an_error(database: Database) -> None:
    with contextlib.closing(psycopg.connect(database.url, autocommit=True)) as connection:
        core.end_connections(database.url)

        with pytest.raises(psycopg.OperationalError):
            vendor.begin_with_time(connection)

        assert connection.closed


@core.POSTGRESQL_ONLY
def test_psycopg_alone_waits_between_begin_and_a_statement(database: Database, round_trips: core.RoundTrips) -> None:
    with psycopg.connect(database.url) as connection:
        round_trips.trace(connection)

        connection.execute("SELECT clock_timestamp()")

        connection.pgconn.untrace()
        assert round_trips.count() > 1


@core.POSTGRESQL_ONLY
def test_begin_takes_one_round_trip_and_sets_for_the_transaction_only(
    database_url: str, round_trips: core.RoundTrips
) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        round_trips.trace(connection)

        vendor.begin_with_time(connection, b"SET LOCAL jit TO off; SET LOCAL lock_timeout TO '3s'; ")

        assert connection.execute("SHOW lock_timeout").fetchone() == ("3s",)
        assert round_trips.count() <= 2
        connection.pgconn.untrace()
        connection.commit()
        assert connection.execute("SHOW lock_timeout").fetchone() == ("0",)


@core.POSTGRESQL_ONLY
def test_failed_setting_is_an_error(database_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        with pytest.raises(psycopg.errors.UndefinedObject):
            vendor.begin_with_time(connection, b"SET LOCAL no_such_setting TO off; SET LOCAL jit TO off; ")
        connection.rollback()


# commit_then_notify


@core.POSTGRESQL_ONLY
def test_commit_and_notification_take_one_round_trip(database: Database, round_trips: core.RoundTrips) -> None:
    listener = database.listen()
    assert listener
    with contextlib.closing(listener), psycopg.connect(database.url) as connection:
        for _ in range(2):
            connection.execute("DELETE FROM outbox")
            round_trips.trace(connection)

            vendor.commit_then_notify(connection, CHANNEL)

            assert round_trips.count() <= 1
            assert list(listener.notifies(timeout=5, stop_after=1))
            connection.pgconn.untrace()


@core.POSTGRESQL_ONLY
@pytest.mark.parametrize(
    ("statement", "channel", "error", "committed"),
    [
        pytest.param("SELECT 1", f"outbox, '{'too long' * 2000}'", None, True, id="failed NOTIFY"),
        pytest.param("SELECT 1 / 0", CHANNEL, psycopg.Error, False, id="failed transaction"),
    ],
)
def test_error_is_raised_only_if_the_commit_failed(
    statement: str, channel: str, error: Any, committed: bool, database: Database
) -> None:
    with psycopg.connect(database.url) as connection:
        connection.execute("INSERT INTO suspects VALUES ('key', 1)")
        with contextlib.suppress(psycopg.Error):
            connection.execute(statement)

        with pytest.raises(error) if error else contextlib.nullcontext():
            vendor.commit_then_notify(connection, channel)

        assert connection.execute("SELECT count(*) FROM suspects").fetchone() == (int(committed),)


@core.POSTGRESQL_ONLY
def test_psycopg_alone_waits_between_a_commit_and_a_notification(
    database: Database, round_trips: core.RoundTrips
) -> None:
    with psycopg.connect(database.url) as connection:
        connection.execute("DELETE FROM outbox")
        round_trips.trace(connection)

        with connection.pipeline():
            connection.commit()
            connection.execute(f"NOTIFY {CHANNEL}")

        assert round_trips.count() > 1


# prometheus_metrics


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


def test_metrics_are_read_again_if_a_listed_file_has_been_merged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    listed = tmp_path / "counter_1.db"
    listed.symlink_to("absent")
    merged = threading.Timer(vendor.METRICS_PAUSE_SECONDS * 3, listed.unlink)
    merged.start()

    assert vendor.prometheus_metrics() == b""
    merged.join()


def test_metrics_file_that_stays_unreadable_is_an_error(empty_metrics_file: Path) -> None:
    with pytest.raises(struct.error):
        vendor.prometheus_metrics()


# merge_metrics_of_ended_worker

#: A worker that counts one request of each kind and is then killed.
COUNTING_WORKER = """
import os, signal
from prometheus_client import Counter, Histogram
Counter("requests", "Requests.", ["route"]).labels("/orders").inc()
Histogram("seconds", "Seconds.", buckets=[1, 2]).observe(1.5)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_ended_workers_keep_their_counts_in_two_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # when
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    for _ in range(3):
        with subprocess.Popen([sys.executable, "-c", COUNTING_WORKER]) as worker:
            worker.wait()
        vendor.merge_metrics_of_ended_worker(tmp_path, worker.pid)
    (tmp_path / "counter_999.db").touch()
    vendor.merge_metrics_of_ended_worker(tmp_path, 999)

    # then
    assert {path.name for path in tmp_path.iterdir()} == {"counter_ended.db", "histogram_ended.db"}
    metrics = vendor.prometheus_metrics().decode()
    for line in ('requests_total{route="/orders"} 3.0', 'seconds_bucket{le="1.0"} 0.0', 'seconds_bucket{le="2.0"} 3.0'):
        assert line in metrics
    assert "seconds_sum 4.5" in metrics


def test_library_alone_keeps_the_files_of_every_ended_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    with subprocess.Popen([sys.executable, "-c", COUNTING_WORKER]) as worker:
        worker.wait()

    multiprocess.mark_process_dead(worker.pid)

    assert len(list(tmp_path.iterdir())) == 2


# observe_all


def test_values_added_together_are_counted_as_those_added_one_by_one() -> None:
    together, singly = CollectorRegistry(), CollectorRegistry()
    values = [0.05, 0.1, 0.2, 0.2, 1, 7.5, 100]
    vendor.observe_all(Histogram("seconds", "Some.", buckets=(0.1, 1, 10), registry=together), values)
    histogram = Histogram("seconds", "Some.", buckets=(0.1, 1, 10), registry=singly)
    for value in values:
        histogram.observe(value)
    assert samples(together) == samples(singly)
    assert samples(together)["seconds_bucket", "0.1"] == 2


def samples(registry: CollectorRegistry) -> dict[tuple[str, str], float]:
    found = [each for metric in registry.collect() for each in metric.samples if not each.name.endswith("_created")]
    return {(each.name, each.labels.get("le", "")): each.value for each in found}


def test_library_adds_one_value_at_a_time() -> None:
    assert list(inspect.signature(Histogram.observe).parameters) == ["self", "amount", "exemplar"]


@core.POSTGRESQL_ONLY
def test_a_server_that_accepts_everything_and_answers_nothing_ends_a_transaction(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vendor, "ANSWER_SECONDS", 0.5)
    with TcpProxy(database_url) as proxy:
        proxy.open()
        database = Database(proxy.url, pre_ping=False, role="a test")
        with database.writing() as connection:
            connection.execute(sa.text("SELECT 1"))

        # when
        proxy.discard()
        with pytest.raises(sa.exc.OperationalError, match="not answered") as begun, database.writing():
            pass
        proxy.forward()

        def lose_commit() -> None:
            with database.writing() as connection:
                connection.execute(sa.text("SELECT 1"))
                proxy.discard()

        with pytest.raises(OutcomeUnknown, match="not answered"):
            lose_commit()
        proxy.forward()

        # then
        assert (is_transient(begun.value), isinstance(begun.value, OutcomeUnknown)) == (True, False)
        with database.writing() as connection:
            connection.execute(sa.text("SELECT 1"))
        database.dispose()
