"""The API: Flask, and a publishing connection for each of gunicorn's threads, which may not share one."""

import os
import threading
from typing import Any

import pika
from flask import Flask
from pika.adapters.blocking_connection import BlockingChannel
from pika.exceptions import AMQPError

from orders.web import create_app
from pika_peer import events


class Publisher(threading.local):
    """A connection per thread, opened when it is first needed and again when it is lost."""

    def __init__(self) -> None:
        self.channel: BlockingChannel | None = None

    def open_channel(self) -> BlockingChannel:
        if self.channel is None or self.channel.is_closed:
            parameters = pika.URLParameters(os.environ["RABBITMQ_URL"])
            parameters.heartbeat = 0  # A thread without requests answers no heartbeats either.
            self.channel = pika.BlockingConnection(parameters).channel()
        return self.channel

    def publish(self, routing_key: str, event: dict[str, Any]) -> None:
        try:
            events.publish(self.open_channel(), routing_key, event)
        except AMQPError:
            events.publish(self.open_channel(), routing_key, event)


def app() -> Flask:
    return create_app(Publisher().publish)
