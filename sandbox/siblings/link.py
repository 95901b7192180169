"""What both ways of the broker need: how to connect, and how to bear that nobody answers."""

import random
from typing import Any

import pika
import structlog

log = structlog.get_logger()

#: Longest pause, in seconds, between two attempts at the broker, or at one event that has no listener yet.
PAUSE_SECONDS = 5.0


def pause_seconds(attempts: int) -> float:
    """How long to wait after so many attempts: growing, and jittered lest services return in step."""
    longest = min(PAUSE_SECONDS, 0.1 * 2 ** min(attempts, 10))
    return random.uniform(0.1, longest)  # noqa: S311 (spreads load, hides nothing)


def parameters(amqp_url: str, connection_name: str) -> pika.URLParameters:
    """The URL, with what keeps a dead or blocked connection from being mistaken for a quiet one."""
    chosen = pika.URLParameters(amqp_url)
    chosen.heartbeat = 30
    chosen.blocked_connection_timeout = 30
    chosen.socket_timeout = 5
    chosen.stack_timeout = 5
    chosen.client_properties = {"connection_name": connection_name}
    return chosen


class Link:
    """Whether one thread has its broker. Says in the log when that changes, once, however often it tries."""

    def __init__(self, connection_name: str) -> None:
        self.connection_name = connection_name
        self.up = False
        self._attempts = 0

    def works(self) -> None:
        """Something was just done over the connection."""
        if not self.up:
            log.info("at the broker", connection=self.connection_name)
        self.up, self._attempts = True, 0

    def broke(self, error: Any) -> float:
        """The connection failed, or could not be had. Returns the seconds to wait before the next attempt."""
        if self.up or self._attempts == 0:
            log.warning("not at the broker, still trying", connection=self.connection_name, error=repr(error))
        self.up = False
        self._attempts += 1
        return pause_seconds(self._attempts)
