"""Workarounds for libraries: each states what it works around, the upstream issue, and when it can be removed.

tests/integration/test_vendor.py fails when one of them stops working, or is no longer needed.
"""

import os
import shutil
import struct
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pika
import pika.data
import psycopg
from pika.exceptions import AMQPConnectionError
from psycopg import generators

#: How many times the files of all workers are read before a scrape fails, and the pause between two reads.
METRICS_READS, METRICS_PAUSE_SECONDS = 10, 0.02
#: How long a server may take to answer a statement, in seconds; all statements but those of migrations take far less.
ANSWER_SECONDS = 20.0
#: GatheringConnection hands this many bytes to the socket at once: pika copies the rest after each system call.
PIECE_BYTES = 64 * 1024

_decode_value, _encode_value = pika.data.decode_value, pika.data.encode_value
#: The AMQP types of floats, with their formats.
_FLOATS = {b"f": ">f", b"d": ">d"}


def tolerate_unusual_headers() -> None:
    """Make pika read and write floats in message headers, and read what it cannot represent as None. May be repeated.

    Works around: pika 1.4.4 raises on a timestamp beyond the year 9999 (a sender's milliseconds, or a time before
    1970) and on deep nesting, and treats that as a lost connection: the message is never acked, is delivered again,
    and closes the next connection too. It cuts a float to an integer, which it may then be unable to write, and writes
    no floats.
    Upstream: https://github.com/pika/pika/issues/1698, fixed after 1.4.4 for timestamps; the others are not reported.
    Remove when pika delivers a message with such a header, and reads and writes floats.
    """
    pika.data.decode_value = _decoded_or_none
    if pika.data.encode_value is _encode_value:
        pika.data.encode_value = _encoded


def _encoded(pieces: list[bytes], value: Any) -> int:
    if not isinstance(value, float):
        return _encode_value(pieces, value)
    pieces.append(struct.pack(">cd", b"d", value))
    return 9


def _decoded_or_none(encoded: bytes, offset: int) -> tuple[Any, int]:
    if form := _FLOATS.get(encoded[offset : offset + 1]):
        return struct.unpack_from(form, encoded, offset + 1)[0], offset + 1 + struct.calcsize(form)
    try:
        return _decode_value(encoded, offset)
    except (ValueError, OverflowError, OSError, RecursionError):
        # Timestamps and doubles have eight bytes, floats four; lists and tables start with their length.
        kind = encoded[offset : offset + 1]
        size = 8 if kind in (b"T", b"d") else 4
        if kind in (b"A", b"F"):
            size += struct.unpack_from(">I", encoded, offset + 1)[0]
        return None, offset + 1 + size


@contextmanager
def early_reset_as_lost_connection() -> Iterator[None]:
    """Raise AMQPConnectionError in the block for a connection that is reset just after it was accepted.

    Works around: pika 1.4.4 then raises the ValueError of a programming error, because getpeername() fails.
    Upstream: not reported. Remove when pika raises an AMQPError, or passes it to on_open_error_callback.
    """
    try:
        yield
    except ValueError as error:
        if not isinstance(error.__context__, OSError) or "getpeername" not in str(error):
            raise
        raise AMQPConnectionError(error.__context__) from error


class GatheringConnection(pika.SelectConnection):
    """A SelectConnection that sends everything published within `gathering` in large pieces.

    Works around: pika sends each message in three system calls (method, header, body), and the broker wakes up for
    each. Overrides `_adapter_emit_data`, the method by which every adapter hands frames to its transport.
    Upstream: not reported. Remove when pika writes the frames of one loop iteration together.
    """

    def __init__(self, *args: Any, **named: Any) -> None:
        self._gathered: bytearray | None = None
        super().__init__(*args, **named)

    @contextmanager
    def gathering(self) -> Iterator[None]:
        """Collect what is published in the block, and send the last piece at its end. May be nested."""
        if self._gathered is not None:
            yield
            return
        self._gathered = bytearray()
        try:
            yield
        finally:
            self._emit_gathered()
            self._gathered = None

    def _adapter_emit_data(self, data: bytes) -> None:
        if self._gathered is None:
            super()._adapter_emit_data(data)  # type: ignore[misc]
            return
        self._gathered += data
        if len(self._gathered) >= PIECE_BYTES:
            self._emit_gathered()

    def _emit_gathered(self) -> None:
        if self._gathered:
            gathered, self._gathered = bytes(self._gathered), bytearray()
            super()._adapter_emit_data(gathered)  # type: ignore[misc]


class ImpatientConnection(psycopg.Connection[Any]):
    """A connection that ends if the server does not answer within ANSWER_SECONDS.

    Works around: libpq waits for an answer without a limit. The kernel notices a server that acknowledges nothing, but
    not one that is suspended (docker pause), nor a proxy that has lost its other side: the transaction would never end,
    and all that waits for it neither. The limit is psycopg's own, which only its private methods set.
    Upstream: not reported. Remove when psycopg has a parameter for it.
    """

    def wait(self, gen: Any, interval: float = 0.1, timeout: float | None = None) -> Any:
        try:
            return super().wait(gen, interval, ANSWER_SECONDS if timeout is None else timeout)
        except psycopg.errors._WaitTimeout as error:
            if timeout is not None:
                raise
            self.close()
            raise psycopg.OperationalError(f"the server has not answered within {ANSWER_SECONDS:g} s") from error


def begin_with_time(connection: psycopg.Connection[Any], settings: bytes = b"") -> datetime:
    """Begin a transaction, apply settings, and return the server's time, in one round trip.

    `settings`: SET LOCAL statements, each with a semicolon. Raises psycopg.Error if one of the statements failed.
    Works around: psycopg's own BEGIN has no place for settings and returns nothing, and a cursor takes several times as
    much CPU to send the same text.
    Upstream: not reported. Remove when psycopg accepts statements to send with its BEGIN.
    """
    # As a number, whose text does not depend on the session's time zone and date style.
    now = b"SELECT extract(epoch FROM clock_timestamp())"
    last = _run(connection, b"BEGIN; " + settings + now)[-1]  # the failed one, if one has failed
    if last.status != psycopg.pq.ExecStatus.TUPLES_OK:
        raise psycopg.errors.error_from_result(last)
    return datetime.fromtimestamp(float(last.get_value(0, 0) or 0), UTC)


def _run(connection: psycopg.Connection[Any], statements: bytes) -> list[Any]:
    """The results of statements sent together; those after a failed one have none."""
    connection.pgconn.send_query(statements)
    return connection.wait(generators.execute(connection.pgconn))


def commit_then_notify(connection: psycopg.Connection[Any], channel: str) -> None:
    """Commit, then NOTIFY in a transaction of its own, in one round trip. Raises psycopg.Error if the COMMIT failed.

    Works around: psycopg's `commit()` sends only the COMMIT, so the NOTIFY would cost a second round trip. It must
    not be part of the transaction: PostgreSQL holds a lock on the whole database from a notifying transaction's
    commit record to the end of its flush, so committing transactions would wait for each other; one that only
    notifies has nothing to flush. https://www.postgresql.org/docs/current/sql-notify.html
    Upstream: psycopg's pipeline mode waits for a commit before it sends more, so that an error is raised in time:
    https://github.com/psycopg/psycopg/issues/296. Remove when a commit and a statement after it take one round trip.
    """
    committed, *_ = _run(connection, f"COMMIT; NOTIFY {channel}".encode())
    # The transaction is over even if the NOTIFY failed; if it had failed before, the result is ROLLBACK.
    if committed.command_status != b"COMMIT":
        raise psycopg.errors.error_from_result(committed)


def merge_metrics_of_ended_worker(directory: Path, pid: int) -> None:
    """Add what a worker counted to the files of all ended workers, and remove its own.

    Works around: prometheus_client keeps the files of each process that ever ran, and reads all of them at a scrape.
    Upstream: https://github.com/prometheus/client_python/issues/443. Remove when mark_process_dead() merges counters.
    """
    # Imported late, as in prometheus_metrics().
    from prometheus_client.mmap_dict import MmapedDict

    for kind in ("counter", "histogram"):
        own, total, merged = (directory / f"{kind}_{name}" for name in (f"{pid}.db", "ended.db", "ended.new"))
        with suppress(FileNotFoundError):
            shutil.copyfile(total, merged)
        with suppress(FileNotFoundError, struct.error):  # a worker that was killed first may have an empty file
            counted = list(MmapedDict.read_all_values_from_file(str(own)))  # type: ignore[no-untyped-call]
            values = MmapedDict(str(merged))  # type: ignore[no-untyped-call]
            for key, value, timestamp, _ in counted:
                values.write_value(key, values.read_value(key)[0] + value, timestamp)  # type: ignore[no-untyped-call]
            values.close()  # type: ignore[no-untyped-call]
            merged.replace(total)
        own.unlink(missing_ok=True)
        merged.unlink(missing_ok=True)


def observe_all(histogram: Any, values: Sequence[float]) -> None:
    """Add values to a histogram of prometheus_client.

    Works around: its `observe` looks through the buckets and locks twice for each value, which takes as long as to
    decode a message. Upstream: not reported. Remove when a histogram accepts several values, or a number of times.
    """
    histogram._sum.inc(sum(values))
    for index, number in Counter(bisect_left(histogram._upper_bounds, value) for value in values).items():
        histogram._buckets[index].inc(number)


def prometheus_metrics() -> bytes:
    """The metrics of all API processes in Prometheus's text format.

    Works around: prometheus_client creates the file of a worker empty and sizes it a moment later; a scrape in between
    raises struct.error or RuntimeError. It raises FileNotFoundError if merge_metrics_of_ended_worker removes a listed
    file.
    Upstream: https://github.com/prometheus/client_python/issues/1199. Remove the retry when that is fixed.
    """
    # Imported late: the library reads PROMETHEUS_MULTIPROC_DIR, which deploy/gunicorn.conf.py sets, at import.
    from prometheus_client import REGISTRY, CollectorRegistry, generate_latest
    from prometheus_client.multiprocess import MultiProcessCollector

    registry = REGISTRY
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    for _ in range(METRICS_READS - 1):
        with suppress(struct.error, RuntimeError, FileNotFoundError):
            return generate_latest(registry)
        time.sleep(METRICS_PAUSE_SECONDS)
    return generate_latest(registry)
