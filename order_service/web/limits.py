"""How many orders a client may place in a period, how many may be pending, and how many streams it may keep open.

The header fields of a limited request are those of draft 11 of
https://datatracker.ietf.org/doc/draft-ietf-httpapi-ratelimit-headers/.
"""

import math
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import structlog
from flask import Response, after_this_request

from order_service.config import Settings
from order_service.process import RECONNECT, AccessRefused, Outage, first_line
from order_service.web.audit import refused
from order_service.web.caller import caller
from order_service.web.problems import RETRY_AFTER_SECONDS, Problem

log = structlog.get_logger(__name__)
#: The most clients whose requests are counted in memory, about 25 MB; with more, those counted longest are forgotten.
MOST_CLIENTS = 100_000
#: How long a request waits for an answer of Redis before it is served without a limit, in seconds.
REDIS_SECONDS = 0.2
#: After how many seconds a client whose orders are pending may try again: they wait for a payment.
PENDING_RETRY_SECONDS = 30


@dataclass(slots=True)
class _Period:
    end: float
    count: int = 0


class MemoryHits:
    """Counts requests by client in this process. All periods have the same length, so the oldest one ends first."""

    def __init__(self, seconds: float, most_clients: int = MOST_CLIENTS) -> None:
        self._seconds, self._most_clients = seconds, most_clients
        self._periods: OrderedDict[str, _Period] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """How many clients it remembers."""
        return len(self._periods)

    def add(self, key: str) -> tuple[int, float]:
        """Count a request; return how many there are and the seconds until the period ends.

        The period begins with the client's first request.
        """
        with self._lock:
            now = time.monotonic()
            while self._periods and next(iter(self._periods.values())).end <= now:
                self._periods.popitem(last=False)
            period = self._periods.get(key)
            if period is None:
                if len(self._periods) >= self._most_clients:
                    self._periods.popitem(last=False)
                period = self._periods[key] = _Period(now + self._seconds)
            period.count += 1
            return period.count, min(period.end - now, self._seconds)  # the difference of floats may be greater


class RedisHits:
    """The same in Redis, for all processes; None while it does not answer, which is logged."""

    def __init__(self, url: str, seconds: int) -> None:
        # Imported here, because the libraries take half a second to load.
        from limits.storage import RedisStorage
        from redis import ConnectionPool, RedisError
        from redis.backoff import NoBackoff
        from redis.exceptions import AuthenticationError, AuthorizationError, NoPermissionError
        from redis.retry import Retry

        self._seconds = seconds
        pool = ConnectionPool.from_url(
            url, socket_timeout=REDIS_SECONDS, socket_connect_timeout=REDIS_SECONDS, retry=Retry(NoBackoff(), 0)
        )
        self._storage = RedisStorage(url, pool, key_prefix="order-service")
        # The name of a host may also be one that cannot be looked up: ValueError.
        self._unreachable = RedisError, OSError, ValueError
        self._refused = AuthenticationError, AuthorizationError, NoPermissionError
        self._outage, self._lock = Outage("the storage of the rate limit"), threading.Lock()
        #: When the next request may try again after a failure, on the monotonic clock.
        self._resumes_at = 0.0

    def add(self, key: str) -> tuple[int, float] | None:
        with self._lock:
            is_failing, now = self._resumes_at > 0, time.monotonic()
            if now < self._resumes_at:
                return None
            if is_failing:  # Only this request tries.
                self._resumes_at = now + RECONNECT.longest
        try:
            count = self._storage.incr(key, self._seconds)
            # Redis rounds to seconds.
            left = min(self._storage.get_expiry(key) - time.time() + 1, self._seconds)
        except self._unreachable as error:
            refused = AccessRefused(first_line(error)) if isinstance(error, self._refused) else None
            with self._lock:
                self._outage.note(refused or error)
                self._resumes_at = time.monotonic() + self._outage.pause()
            return None
        if is_failing:
            with self._lock:
                self._outage.end()
                self._resumes_at = 0.0
        return count, left


class RateLimit:
    """At most `quota` requests of a client in a period of `seconds`."""

    def __init__(self, quota: int, seconds: int, hits: MemoryHits | RedisHits) -> None:
        self._quota, self._hits = quota, hits
        self._policy = f'"orders";q={quota};w={seconds}'

    def count(self) -> None:
        """Count the current request, and add the header fields to its response. Raises Problem 429 over the limit."""
        found = self._hits.add(caller().key)
        if found is None:
            return
        count, left = found
        reset = max(math.ceil(left), 1)
        limit = f'"orders";r={max(self._quota - count, 0)};t={reset}'
        if count > self._quota:
            raise refused("rate_limited", headers=_fields(self._policy, limit, reset))

        def add_fields(response: Response) -> Response:
            # A problem has those of the limit that it is about.
            if "RateLimit" not in response.headers:
                response.headers.update({"RateLimit-Policy": self._policy, "RateLimit": limit})
            return response

        after_this_request(add_fields)


class Places:
    """The places that a client occupies at the moment, at most `limit`; 0 is no limit."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._taken: Counter[str] = Counter()
        self._lock = threading.Lock()

    def take(self) -> Callable[[], None]:
        """Take a place for the client of the current request; return how to give it back. Raises Problem 429."""
        key = caller().key
        with self._lock:
            if 0 < self._limit <= self._taken[key]:
                policy = f'"streams";q={self._limit};qu="concurrent-requests"'
                raise refused("too_many_own_streams", headers=_fields(policy, '"streams";r=0', RETRY_AFTER_SECONDS))
            self._taken[key] += 1

        def give_back() -> None:
            with self._lock:
                self._taken[key] -= 1
                if not self._taken[key]:
                    del self._taken[key]

        return give_back


def too_many_pending(limit: int) -> Problem:
    """The problem that a user has this many pending orders, which is logged."""
    fields = _fields(f'"pending";q={limit}', '"pending";r=0', PENDING_RETRY_SECONDS)
    return refused("too_many_pending", {"limit": limit}, headers=fields)


def rate_limit(settings: Settings) -> RateLimit | None:
    """The rate limit of the settings, if there is one."""
    rate = settings.rate
    if rate is None:
        return None
    quota, seconds = rate.amount, rate.get_expiry()
    if settings.rate_limit_storage == "memory":
        if settings.api_workers > 1:
            log.info("each API process counts requests for itself: ORDER_RATE_LIMIT_STORAGE is memory")
        return RateLimit(quota, seconds, MemoryHits(seconds))
    return RateLimit(quota, seconds, RedisHits(settings.rate_limit_storage, seconds))


def _fields(policy: str, limit: str, retry_after_seconds: int) -> Mapping[str, str]:
    return {"RateLimit-Policy": policy, "RateLimit": limit, "Retry-After": str(retry_after_seconds)}
