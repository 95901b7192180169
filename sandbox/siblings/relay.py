"""Outbox -> broker: publishes what was committed, and deletes a row only when the broker has confirmed it.

A window of rows is published at once and its confirms are waited for together, because waiting for each alone
makes a few hundred events a second the ceiling. A row may go out twice (a confirm can be lost), never not at
all.
"""

import sqlite3
import time
from functools import partial
from typing import Any

import structlog
from pika import SelectConnection
from pika.adapters.select_connection import IOLoop
from pika.channel import Channel
from pika.exchange_type import ExchangeType
from pika.frame import Method
from pika.spec import Basic, BasicProperties

from sandbox.siblings.consumer import Service
from sandbox.siblings.events import EXCHANGE, ROUTING_KEYS, properties
from sandbox.siblings.link import Link, parameters, pause_seconds
from sandbox.siblings.store import connect, transaction

log = structlog.get_logger()

#: Rows in a window: enough to hide the round trip, few enough to resend after a lost connection.
WINDOW_ROWS = 200
#: How often to look for rows that fell due, in seconds. New ones wake the relay.
TICK_SECONDS = 0.2
#: Seconds without a confirm after which the connection is given up: a queue leader that hangs says nothing.
CONFIRM_SECONDS = 8.0


class Relay:
    """Runs in a thread and over a connection of its own until stopped, however often the broker goes.

    Everything but `wake` and `stop` runs in that thread, as a callback of the one loop.
    """

    def __init__(self, service: Service, amqp_url: str) -> None:
        self._service = service
        self._amqp_url = amqp_url
        self._loop = IOLoop()
        self._stopping = False
        self._connection: SelectConnection | None = None
        self._channel: Channel | None = None
        self._published = 0
        self._unconfirmed: set[int] = set()
        self._window: list[sqlite3.Row] = []
        self._returned: set[str] = set()
        self._overdue_at = 0.0
        self._reason: Any = None
        self.link = Link(f"{service.name} relay")

    def wake(self) -> None:
        """Something was committed. Callable from any thread."""
        self._loop.add_callback_threadsafe(self._turn)

    def stop(self) -> None:
        """End. What has not gone out stays in the outbox. Callable from any thread."""
        self._loop.add_callback_threadsafe(self._shut_down)

    def run(self) -> None:
        """Publish until stopped."""
        self._db = connect(self._service.database)
        self._connect()
        self._tick()
        while not self._stopping:
            try:
                self._loop.start()
            except Exception as error:
                log.exception("relay failed", connection=self.link.connection_name)
                self._drop(error)
        self._db.close()

    def _connect(self) -> None:
        self._connection = SelectConnection(
            parameters(self._amqp_url, self.link.connection_name),
            on_open_callback=lambda connection: connection.channel(on_open_callback=self._declare),
            on_open_error_callback=self._lost,
            on_close_callback=self._lost,
            custom_ioloop=self._loop,
        )

    def _declare(self, channel: Channel) -> None:
        channel.add_on_close_callback(lambda _, reason: self._drop(reason))
        channel.add_on_return_callback(self._on_return)
        ready = partial(self._ready, channel)
        channel.exchange_declare(EXCHANGE, ExchangeType.topic, durable=True, callback=ready)

    def _ready(self, channel: Channel, _: Any) -> None:
        channel.confirm_delivery(self._on_confirm)
        self._channel, self._published = channel, 0
        self._turn()

    def _lost(self, _: SelectConnection, error: BaseException) -> None:
        self._forget()
        if self._stopping:
            self._loop.stop()
            return
        pause = self.link.broke(self._reason or error)
        self._reason = None
        self._loop.call_later(pause, self._connect)

    def _drop(self, reason: Any) -> None:
        """Give the connection up; `_lost` takes it from there."""
        self._forget()
        self._reason = reason
        if self._connection is not None and self._connection.is_open:
            self._connection.close()

    def _forget(self) -> None:
        """What was not confirmed may or may not have arrived: it all goes out again, under the same ids."""
        self._channel = None
        self._unconfirmed, self._window, self._returned = set(), [], set()

    def _shut_down(self) -> None:
        self._stopping = True
        if self._connection is not None and self._connection.is_open:
            self._connection.close()
        else:
            self._loop.stop()

    def _tick(self) -> None:
        self._loop.call_later(TICK_SECONDS, self._tick)
        if self._unconfirmed and time.monotonic() > self._overdue_at:
            self._drop(f"no confirm for {CONFIRM_SECONDS} s")
        self._turn()

    def _turn(self) -> None:
        """Once every row of the window is confirmed: settle it, publish the next."""
        if self._channel is None or self._unconfirmed:
            return
        try:
            self._settle()
            self._publish(self._channel)
        except sqlite3.Error as error:
            self._drop(error)
        else:
            if not self._unconfirmed:
                self.link.works()

    def _settle(self) -> None:
        """Delete the rows that arrived; put off those that came back, as their listener is not there yet."""
        if not self._window:
            return
        returned = [row for row in self._window if row["message_id"] in self._returned]
        arrived = [row for row in self._window if row["message_id"] not in self._returned]
        with transaction(self._db):
            self._db.executemany("DELETE FROM outbox WHERE seq = ?", [(row["seq"],) for row in arrived])
            for row in returned:
                self._put_off(row)
        if first := [row["type"] for row in returned if row["attempts"] == 0]:
            log.warning("no queue takes these, still trying", count=len(first), types=sorted(set(first)))
        self._window, self._returned = [], set()
        self.link.works()

    def _put_off(self, row: sqlite3.Row) -> None:
        attempts = row["attempts"] + 1
        self._db.execute(
            "UPDATE outbox SET attempts = ?, due_at = ? WHERE seq = ?",
            (attempts, time.time() + pause_seconds(attempts), row["seq"]),
        )

    def _publish(self, channel: Channel) -> None:
        query = "SELECT * FROM outbox WHERE due_at <= ? ORDER BY seq LIMIT ?"
        rows = self._db.execute(query, (time.time(), WINDOW_ROWS)).fetchall()
        self._overdue_at = time.monotonic() + CONFIRM_SECONDS
        for row in rows:
            self._published += 1
            self._unconfirmed.add(self._published)
            self._window.append(row)
            channel.basic_publish(
                EXCHANGE,
                ROUTING_KEYS[row["type"]],
                row["body"].encode(),
                properties(self._service.name, row),
                mandatory=True,
            )

    def _on_return(self, _: Channel, __: Basic.Return, returned: BasicProperties, ___: bytes) -> None:
        """Comes before the confirm of the same message, which the broker gives all the same."""
        self._returned.add(str(returned.message_id))

    def _on_confirm(self, frame: Method[Basic.Ack | Basic.Nack]) -> None:
        tag, multiple = frame.method.delivery_tag, frame.method.multiple
        if isinstance(frame.method, Basic.Nack):
            # A channel that met a queue between two leaders keeps refusing long after: a new one does not.
            self._drop("the broker refused a message")
            return
        confirmed = {known for known in self._unconfirmed if known <= tag} if multiple else {tag}
        self._unconfirmed -= confirmed
        self._turn()
