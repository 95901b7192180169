"""The Menu and the Payment Service in one process: every question is answered at once, and always with yes.

`python -m benchmarks.stubs SYSTEM` with RABBITMQ_URL. It must never be what limits a run, so it does nothing twice: no
confirms, one ack for many messages, no transaction. Its own CPU time is part of every result, so that one can see it.
"""

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import pika
from pika.channel import Channel
from pika.spec import Basic, BasicProperties

from benchmarks.system import Wire
from benchmarks.systems import named

#: Unacked messages that the broker hands over; far more than are answered between two acks.
PREFETCH = 2000
#: Acks go out after so many messages, or after so many seconds.
ACK_EVERY = 200
ACK_SECONDS = 0.02


class Stubs:
    """One connection; each message is answered in the callback that brings it."""

    def __init__(self, wire: Wire, amqp_url: str) -> None:
        self._wire = wire
        self._unacked = 0
        self._tag = 0
        parameters = pika.URLParameters(amqp_url)
        self._connection = pika.SelectConnection(
            parameters,
            on_open_callback=lambda connection: connection.channel(on_open_callback=self._consume),
            on_open_error_callback=lambda _, error: sys.exit(f"stubs: {error}"),
            on_close_callback=lambda connection, _: connection.ioloop.stop(),
        )

    def run(self) -> None:
        """Answer until SIGTERM or the end of the connection."""
        loop = self._connection.ioloop
        signal.signal(signal.SIGTERM, lambda *_: loop.add_callback_threadsafe(loop.stop))
        loop.start()

    def _consume(self, channel: Channel) -> None:
        self._channel = channel
        channel.basic_qos(prefetch_count=PREFETCH)
        for queue, _, _ in self._wire.queues:
            channel.basic_consume(queue, self._answer)
        self._ack_later()

    def _answer(self, channel: Channel, method: Basic.Deliver, properties: BasicProperties, body: bytes) -> None:
        ask = self._wire.asks(method, properties, body)
        if ask:
            reply = (self._wire.reserved if ask.kind == "menu" else self._wire.completed)(ask)
            channel.basic_publish(reply.exchange, reply.routing_key, reply.body, reply.properties)
        self._tag = method.delivery_tag or 0
        self._unacked += 1
        if self._unacked >= ACK_EVERY:
            self._ack()

    def _ack(self) -> None:
        if self._unacked:
            self._channel.basic_ack(self._tag, multiple=True)
            self._unacked = 0

    def _ack_later(self) -> None:
        self._ack()
        later: Callable[[float, Callable[[], None]], Any] = self._connection.ioloop.call_later
        later(ACK_SECONDS, self._ack_later)


if __name__ == "__main__":
    Stubs(named(sys.argv[1]).wire, os.environ["RABBITMQ_URL"]).run()
