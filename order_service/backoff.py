"""The one backoff: how long to wait before the next attempt, doubling up to a limit."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count


@dataclass(frozen=True, slots=True)
class Backoff:
    """Delays in seconds that double from `first` to `longest` with each failed attempt."""

    first: float
    longest: float

    def delay(self, failures: int) -> float:
        """The delay after this many failures, at least one, in seconds."""
        return min(self.first * 2.0 ** min(failures - 1, 60), self.longest)

    def jittered(self) -> Iterator[float]:
        """Endless delays for one run of attempts, each uniformly random below the doubling limit (full jitter).

        https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
        """
        for failures in count(1):
            yield random.uniform(0, self.delay(failures))  # noqa: S311 - spreads load, protects no secret
