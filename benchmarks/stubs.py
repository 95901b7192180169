"""The Menu Service and the Payment Service in one process, which replies to every request at once and positively.

`python -m benchmarks.stubs SYSTEM`, with RABBITMQ_URL. It must not limit a run, so it uses no confirms, one ack for
many messages, no transaction and no deduplication. Its CPU time is part of every result.
"""

import os
import signal
import sys

import pika
from pika.channel import Channel
from pika.spec import Basic, BasicProperties

from benchmarks.system import STUB_QUEUES, Protocol
from benchmarks.systems import SYSTEMS

#: Unacked messages that the broker delivers; far more than are answered between two acks.
PREFETCH = 2000
#: Messages, and seconds, after which an ack is sent.
ACK_EVERY = 200
ACK_SECONDS = 0.02


class Stubs:
    """One connection; each request is answered in the callback that delivers it."""

    def __init__(self, protocol: Protocol, amqp_url: str) -> None:
        self._protocol = protocol
        self._unacked = self._tag = 0
        self._connection = pika.SelectConnection(
            pika.URLParameters(amqp_url),
            on_open_callback=lambda connection: connection.channel(on_open_callback=self._consume),
            on_open_error_callback=lambda _, error: sys.exit(f"stubs: {error}"),
            on_close_callback=lambda connection, _: connection.ioloop.stop(),
        )

    def run(self) -> None:
        """Reply to requests until SIGTERM or until the connection is closed."""
        loop = self._connection.ioloop
        signal.signal(signal.SIGTERM, lambda *_: loop.add_callback_threadsafe(loop.stop))
        loop.start()

    def _consume(self, channel: Channel) -> None:
        self._channel = channel
        channel.basic_qos(prefetch_count=PREFETCH)
        for queue in STUB_QUEUES:
            channel.basic_consume(queue, self._reply)
        self._ack_regularly()

    def _reply(self, channel: Channel, method: Basic.Deliver, _: BasicProperties, body: bytes) -> None:
        channel.basic_publish(*self._protocol.reply_to(method.routing_key or "", body))
        self._tag = method.delivery_tag or 0
        self._unacked += 1
        if self._unacked >= ACK_EVERY:
            self._ack()

    def _ack(self) -> None:
        if self._unacked:
            self._channel.basic_ack(self._tag, multiple=True)
            self._unacked = 0

    def _ack_regularly(self) -> None:
        self._ack()
        self._connection.ioloop.call_later(ACK_SECONDS, self._ack_regularly)


if __name__ == "__main__":
    Stubs(SYSTEMS[sys.argv[1]].protocol, os.environ["RABBITMQ_URL"]).run()
