"""The relay: outbox rows -> pipelined confirmed publishes -> rows gone.

A row goes only after its confirm, so a crash at any point means a repeat under the same id, never a loss.
https://www.rabbitmq.com/docs/confirms#publisher-confirms
"""

import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

import pika
import psycopg
import sqlalchemy as sa
import structlog
from pika.adapters.select_connection import IOLoop, PollEvents
from pika.channel import Channel
from pika.exceptions import AMQPError
from pika.frame import Method
from pika.spec import Basic, BasicProperties

from order_service import process as startup
from order_service.config import Settings
from order_service.contract import topology
from order_service.storage.database import Database
from order_service.storage.outbox import Claim, is_mandatory
from publishers.gathering import GatheringConnection
from publishers.wire import properties_of

log = structlog.get_logger(__name__)
#: Without a confirm for so long the connection is given up, never a row: where a queue lost its leader, only a new
#: channel helps.
CONFIRM_SECONDS = 8.0
#: How long a closing handshake may take before the connection is simply left.
CLOSE_SECONDS = 2.0
#: How often the outbox is looked at even when nothing wakes the relay: a wake-up may be lost, a backoff may end.
LOOK_SECONDS = 0.5
#: SQLite wakes nobody, so there it is looked at this often.
SQLITE_LOOK_SECONDS = 0.02
#: How many rows are claimed and published together.
WINDOW = 500
#: While fewer rows than this are in flight, new ones do not wait for their confirms; beyond it waiting makes batches.
FEW = 20
#: How many batches may be in flight; each holds a database connection.
BATCHES = 4


class Relay:
    """Publishes what is in the outbox until stopped. All of it runs in the thread that calls `run`."""

    def __init__(self, settings: Settings, database: Database, stop: threading.Event) -> None:
        """`database` must have BATCHES + 1 connections for it: it waits for them in the thread that would free them."""
        self._settings, self._database, self._stop = settings, database, stop
        self._away = False

    def run(self) -> None:
        """Return once stopped and the rows in flight are settled. Exits with 2 if nothing is declared."""
        self._wait_for_turn()
        pauses = startup.pauses()
        while not self._stop.is_set():
            try:
                session = _Session(self._reachable_node(), self._database, self._stop)
                try:
                    session.run()
                finally:
                    if session.confirmed:
                        self._away, pauses = False, startup.pauses()
            except topology.UNREACHABLE as error:
                if not self._away:
                    log.warning("the broker is away, waiting for it", error=startup.first_line(error))
                self._away = True
                self._stop.wait(next(pauses))
            except Exception:
                log.exception("the relay failed, starting it anew")
                self._stop.wait(next(pauses))

    def _wait_for_turn(self) -> None:
        if not self._database.sole("relay"):
            log.info("another relay works on this SQLite file; standing by")
            while not self._stop.wait(LOOK_SECONDS) and not self._database.sole("relay"):
                pass

    def _reachable_node(self) -> pika.URLParameters:
        """A node of the broker that answers and has everything of ours. Raises the last node's error if none does."""
        last: Exception = AMQPError("no broker is named in RABBITMQ_URL")
        for node in topology.connection_parameters(self._settings.rabbitmq_url, name="order-service relay"):
            # The session itself waits out an alarm, as long as it takes.
            node.blocked_connection_timeout = None
            try:
                with pika.BlockingConnection(node) as connection:
                    topology.check(connection.channel())
                return node
            except topology.NotDeclared as error:
                startup.refuse(f"{error}: run `python -m order_service topology` first")
            except topology.UNREACHABLE as error:
                last = error
        raise last


@dataclass
class _Batch:
    """Rows claimed and published together, and settled together once the broker has spoken of each."""

    claim: Claim
    #: When its confirms began to be waited for, on the monotonic clock.
    since: float
    sent: list[int] = field(default_factory=list)
    failed: list[int] = field(default_factory=list)

    @property
    def is_complete(self) -> bool:
        return len(self.sent) + len(self.failed) == len(self.claim.rows)


class _Session:
    """One connection, one channel, a few claimed batches at a time. pika calls these methods from its loop."""

    def __init__(self, node: pika.URLParameters, database: Database, stop: threading.Event) -> None:
        self._database, self._stop = database, stop
        self._error: BaseException | None = None
        self._batches: list[_Batch] = []
        # On SQLite reading rows is claiming them: a second claim would read the same ones.
        self._most_batches = 1 if database.is_sqlite else BATCHES
        self._in_flight: dict[int, tuple[_Batch, sa.Row[Any]]] = {}
        self._returned: Counter[tuple[str | None, str | None, bytes]] = Counter()
        self._nacked = self._blocked = False
        self._tag = 0
        #: Whether the broker has taken anything: the next failure is then a new one.
        self.confirmed = False
        self._listener: psycopg.Connection[Any] | None = None
        self._connection = GatheringConnection(
            node,
            on_open_callback=lambda connection: connection.channel(on_open_callback=self._prepare),
            on_open_error_callback=lambda _, error: self._end(error),
            on_close_callback=lambda _, error: self._end(error),
        )
        self._connection.add_on_connection_blocked_callback(lambda *_: self._note_alarm(True))
        self._connection.add_on_connection_unblocked_callback(lambda *_: self._note_alarm(False))
        self._loop: IOLoop = self._connection.ioloop

    def run(self) -> None:
        """Publish until stopped or the connection ends; raises what ended it."""
        try:
            self._loop.start()
        finally:
            for batch in list(self._batches):
                self._settle(batch)
            if self._listener:
                self._listener.close()
            # Its poller and the socket pair that wakes it would otherwise wait for the garbage collector.
            self._loop.close()
        if self._error and not self._stop.is_set():
            raise self._error

    def _end(self, error: BaseException) -> None:
        self._error = self._error or error
        self._loop.stop()

    def _prepare(self, channel: Channel) -> None:
        self._channel = channel
        channel.add_on_close_callback(lambda _, error: self._leave(error))
        channel.add_on_return_callback(self._note_return)
        channel.confirm_delivery(self._note_confirm, callback=lambda _: self._look())
        log.info("relaying")

    def _leave(self, error: BaseException) -> None:
        """Close the connection, and do not wait for a broker that does not answer."""
        self._error = self._error or error
        self._loop.call_later(CLOSE_SECONDS, self._loop.stop)
        if self._connection.is_open:
            self._connection.close()

    def _look(self) -> None:
        """Now and then, whether or not anything wakes us."""
        pause = LOOK_SECONDS if self._listen() else SQLITE_LOOK_SECONDS
        self._give_up_the_unconfirmed()
        if not self._next():
            pause = LOOK_SECONDS
        if not self._error:
            self._loop.call_later(pause, self._look)

    def _listen(self) -> bool:
        """True while PostgreSQL wakes us."""
        if self._listener is None and not self._database.is_sqlite:
            with suppress(sa.exc.SQLAlchemyError, psycopg.Error):
                self._listener = self._database.listen()
                self._loop.add_handler(self._listener.fileno(), self._woken, PollEvents.READ | PollEvents.ERROR)
        return self._listener is not None

    def _woken(self, fileno: int, _events: int) -> None:
        assert self._listener is not None  # noqa: S101 - the loop calls this for the listener's socket only
        try:
            for _ in self._listener.notifies(timeout=0):
                pass
        except psycopg.Error:
            with suppress(OSError):  # libpq may have closed the socket already
                self._loop.remove_handler(fileno)
            self._listener = None
        self._next()

    def _next(self) -> bool:
        """Claim and publish what is due, unless enough is in flight; False if the outbox cannot be read."""
        if self._error:
            return True
        if self._stop.is_set() or self._nacked:
            if not self._batches:
                # A channel whose queue lost its leader goes on refusing long after a new one would work.
                self._leave(AMQPError("the broker refused messages" if self._nacked else "stopped"))
            return True
        if len(self._in_flight) >= FEW or len(self._batches) >= self._most_batches:
            return True
        try:
            claim = Claim(self._database, WINDOW, startup.utc_now())
        except sa.exc.SQLAlchemyError as error:
            log.warning("the outbox cannot be read, trying again", error=startup.first_line(error))
            return False
        if claim.rows:
            self._publish(claim)
        return True

    def _publish(self, claim: Claim) -> None:
        batch = _Batch(claim, time.monotonic())
        self._batches.append(batch)
        with self._connection.gathering():
            for row in claim.rows:
                self._tag += 1
                self._in_flight[self._tag] = batch, row
                properties = properties_of(row)
                self._channel.basic_publish(row.exchange, row.routing_key, row.body, properties, is_mandatory(row))

    def _note_alarm(self, blocked: bool) -> None:
        if blocked:
            log.warning("the broker blocks publishers: it is short of memory or disk, see its console")
        self._blocked = blocked

    def _give_up_the_unconfirmed(self) -> None:
        """The outcome of what is in flight is unknown: it goes out again, under the same ids, on a new connection."""
        now = time.monotonic()
        if self._blocked and not self._stop.is_set():
            # A new connection would be blocked as well, and all of it would be enqueued once more.
            for batch in self._batches:
                batch.since = now
        elif not self._error and any(now - batch.since > CONFIRM_SECONDS for batch in self._batches):
            log.warning("no confirm in time, leaving this connection", rows=len(self._in_flight))
            # Put off: where one queue has lost its leader, what goes to the others is to have its turn.
            for batch, row in self._in_flight.values():
                batch.failed.append(row.id)
            self._in_flight.clear()
            self._leave(AMQPError("no confirm in time"))

    def _note_return(self, _: Channel, method: Basic.Return, properties: BasicProperties, body: bytes) -> None:
        """Nothing is bound to take this message. The broker says so before it confirms it."""
        self._returned[properties.message_id, method.routing_key, body] += 1

    def _note_confirm(self, frame: Method[Basic.Ack | Basic.Nack]) -> None:
        self.confirmed = True
        tag, is_ack = frame.method.delivery_tag, isinstance(frame.method, Basic.Ack)
        # Tags were given in this order.
        tags = list(takewhile(lambda known: known <= tag, self._in_flight)) if frame.method.multiple else [tag]
        for confirmed in tags:
            if confirmed not in self._in_flight:
                continue  # Given up a moment ago; it is sent again.
            batch, row = self._in_flight.pop(confirmed)
            if is_ack and not self._was_returned(row):
                batch.sent.append(row.id)
            else:
                batch.failed.append(row.id)
                self._nacked = self._nacked or not is_ack
                problem = "returned: no queue is bound for it" if is_ack else "refused by the broker"
                log.warning("message not delivered, trying again", type=row.type, order_id=row.order_id,
                            message_id=row.message_id, routing_key=row.routing_key, problem=problem,
                            attempts=row.attempts + 1)  # fmt: skip
            if batch.is_complete:
                self._settle(batch)
                self._next()

    def _was_returned(self, row: sa.Row[Any]) -> bool:
        message = row.message_id, row.routing_key, row.body
        if not self._returned or message not in self._returned:
            return False
        # Counted, because a reminder may be under way twice.
        self._returned -= Counter([message])
        return True

    def _settle(self, batch: _Batch) -> None:
        self._batches.remove(batch)
        try:
            batch.claim.settle(sent=batch.sent, failed=batch.failed, now=startup.utc_now())
        except sa.exc.SQLAlchemyError as error:
            log.warning("sent rows could not be removed, they go out again", error=startup.first_line(error))
