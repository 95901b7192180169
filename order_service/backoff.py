"""The one backoff: how long to wait before the next attempt, doubling up to a limit."""

import random
import time
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from itertools import count
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)


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


class Postponed(Generic[Key]):
    """What failed, for example the ids of rows that cannot be decoded; each is postponed by a growing delay."""

    def __init__(self, backoff: Backoff) -> None:
        self._backoff = backoff
        #: By key: the failures so far, and the end of the delay on the monotonic clock.
        self._failed: dict[Key, tuple[int, float]] = {}

    def current(self) -> list[Key]:
        """The keys whose delay is not over."""
        now = time.monotonic()
        return [key for key, (_, end) in self._failed.items() if end > now]

    def add(self, key: Key) -> bool:
        """Postpone a key that has failed again; return False and change nothing if it is postponed already."""
        now = time.monotonic()
        failures, end = self._failed.get(key, (0, 0.0))
        if end > now:
            return False
        # Without those that have not failed again for long. A new dict, because other threads may read the old one.
        kept = {key: each for key, each in self._failed.items() if each[1] + self._backoff.longest > now}
        self._failed = kept | {key: (failures + 1, now + self._backoff.delay(failures + 1))}
        return True
