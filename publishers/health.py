"""The health of a route: whether its messages are published together with all others, or apart from them."""

import time
from dataclasses import dataclass

from order_service.backoff import Backoff

#: The most rows that are claimed and published together.
WINDOW = 500
#: The most rows of a route whose last messages were not confirmed.
SLOW_WINDOW = 50
#: How long unconfirmed rows wait until they are published again, and a refused route until its next attempt.
ROUTE_BACKOFF = Backoff(first=1, longest=15)


@dataclass
class Health:
    """The last failures of a route; they outlive the connection."""

    window: int = WINDOW
    failures: int = 0
    #: When the next attempt may start, on the monotonic clock.
    resumes_at: float = 0.0
    is_nacked: bool = False

    @property
    def is_good(self) -> bool:
        return self.window >= WINDOW and not self.failures

    def note_failure(self, *, pause: float | None = None) -> float:
        """Record a failure of all messages, and pause; return the delay for the rows concerned, in seconds."""
        self.failures += 1
        delay = ROUTE_BACKOFF.delay(self.failures)
        self.resumes_at = time.monotonic() + (delay if pause is None else pause)
        return delay

    def note_slowness(self, *, pause: float) -> float:
        """Record that messages were not confirmed; return the delay for the rows concerned, in seconds."""
        self.window = min(self.window, SLOW_WINDOW)
        return self.note_failure(pause=pause)

    def note_idle(self) -> None:
        """Record that all messages of the last attempt have an outcome: without a nack, it was a success."""
        if not self.is_nacked:
            self.window, self.failures = min(self.window * 2, WINDOW), 0
        self.is_nacked = False

    def shrink(self, count: int) -> None:
        """Publish half as many together: one of the last `count` messages was refused."""
        self.window = max(1, min(count, WINDOW) // 2)
