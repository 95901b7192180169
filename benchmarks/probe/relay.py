"""Outbox rows -> pipelined confirmed publishes -> rows gone, with the commit that follows the last confirm.

The rows are deleted first, in a transaction that stays open until the broker has confirmed them all: one statement a
batch, and a crash at any point rolls back to rows that go out again.
"""

import os
import signal
from typing import Any

import pika
import psycopg
from pika.adapters.select_connection import PollEvents
from pika.channel import Channel
from pika.frame import Method
from pika.spec import BasicProperties

from benchmarks.probe import CHANNEL, EXCHANGE, PLANS

WINDOW = 500
LOOK_SECONDS = 0.5

CLAIM = """
delete from outbox where id = any (array (select id from outbox order by id limit %s for update skip locked))
returning id, routing_key, message_id::text, body
"""


class Relay:
    """Publishes until SIGTERM. All of it runs in pika's loop."""

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
        self._loop.add_handler(self._listener.fileno(), self._woken, PollEvents.READ)
        channel.confirm_delivery(self._note_confirm, callback=lambda _: self._next())

    def _woken(self, *_: object) -> None:
        for _notice in self._listener.notifies(timeout=0):
            pass
        if not self._unconfirmed:
            self._next()

    def _next(self) -> None:
        """Claim and publish the next batch, or rest until there may be one."""
        if self._timer:
            self._loop.remove_timeout(self._timer)
            self._timer = None
        rows = self._database.execute(CLAIM, [WINDOW], prepare=True).fetchall()
        if not rows:
            self._database.rollback()
            self._timer = self._loop.call_later(LOOK_SECONDS, self._next)
            return
        for _, routing_key, message_id, body in sorted(rows):
            properties = BasicProperties(message_id=message_id, delivery_mode=pika.DeliveryMode.Persistent.value)
            self._tag += 1
            self._unconfirmed.add(self._tag)
            self._channel.basic_publish(EXCHANGE, routing_key, body, properties, mandatory=True)

    def _note_confirm(self, frame: Method[Any]) -> None:
        if isinstance(frame.method, pika.spec.Basic.Nack):
            raise SystemExit("the broker refused a message")
        tag = frame.method.delivery_tag
        if frame.method.multiple:
            self._unconfirmed = {each for each in self._unconfirmed if each > tag}
        else:
            self._unconfirmed.discard(tag)
        if not self._unconfirmed:
            self._database.commit()
            self._next()


if __name__ == "__main__":
    Relay(os.environ["DATABASE_URL"], os.environ["RABBITMQ_URL"]).run()
