"""Publish outbox rows with pipelined confirms until SIGTERM.

The rows are deleted first, in a transaction that stays open until the broker has confirmed all of them: one statement
per batch, and a crash at any point rolls back to rows that are published again.
"""

import os
import signal
from typing import Any

import pika
import psycopg
from pika.adapters.select_connection import PollEvents
from pika.channel import Channel
from pika.frame import Method

from benchmarks.probe import CHANNEL, EXCHANGE, PLANS, SQL
from benchmarks.system import persistent

BATCH = 500
POLL_SECONDS = 0.5


class Relay:
    """Runs entirely in pika's event loop."""

    def __init__(self, database_url: str, rabbitmq_url: str) -> None:
        self._database = psycopg.connect(database_url, options=PLANS)
        self._listener = psycopg.connect(database_url, autocommit=True, options=PLANS)
        self._unconfirmed: set[int] = set()
        self._tag = 0
        self._timer: Any = None
        self._connection = pika.SelectConnection(
            pika.URLParameters(rabbitmq_url),
            on_open_callback=lambda connection: connection.channel(on_open_callback=self._prepare),
        )
        self._loop = self._connection.ioloop

    def run(self) -> None:
        signal.signal(signal.SIGTERM, lambda *_: self._loop.add_callback_threadsafe(self._loop.stop))
        self._loop.start()

    def _prepare(self, channel: Channel) -> None:
        self._channel = channel
        self._listener.execute(f"listen {CHANNEL}")
        self._loop.add_handler(self._listener.fileno(), self._on_notify, PollEvents.READ)
        channel.confirm_delivery(self._on_confirm, callback=lambda _: self._publish_batch())

    def _on_notify(self, *_: object) -> None:
        for _notification in self._listener.notifies(timeout=0):
            pass
        if not self._unconfirmed:
            self._publish_batch()

    def _publish_batch(self) -> None:
        """Claim and publish the next batch, or wait until there may be one."""
        if self._timer:
            self._loop.remove_timeout(self._timer)
            self._timer = None
        rows = self._database.execute(SQL["claim"], [BATCH], prepare=True).fetchall()
        if not rows:
            self._database.rollback()
            self._timer = self._loop.call_later(POLL_SECONDS, self._publish_batch)
        for _, routing_key, message_id, body in sorted(rows):
            self._tag += 1
            self._unconfirmed.add(self._tag)
            self._channel.basic_publish(EXCHANGE, routing_key, body, persistent(message_id), mandatory=True)

    def _on_confirm(self, frame: Method[Any]) -> None:
        if isinstance(frame.method, pika.spec.Basic.Nack):
            raise SystemExit("the broker rejected a message")
        tag = frame.method.delivery_tag
        if frame.method.multiple:
            self._unconfirmed = {each for each in self._unconfirmed if each > tag}
        else:
            self._unconfirmed.discard(tag)
        if not self._unconfirmed:
            self._database.commit()
            self._publish_batch()


if __name__ == "__main__":
    Relay(os.environ["DATABASE_URL"], os.environ["RABBITMQ_URL"]).run()
