"""The goals, as ratios of what one interleaved run found."""

import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from benchmarks.ours import OURS
from benchmarks.result import Result
from benchmarks.summary import Figure, number, summarize
from benchmarks.systems import LIMITS

LIMIT_NAMES = tuple(each.name for each in LIMITS)
COMPARE = {"at least": operator.ge, "at most": operator.le}


@dataclass(frozen=True)
class Verdict:
    """One goal and what came out; nothing, where what it needs was not measured."""

    measure: str
    relation: str
    goal: float
    unit: str
    result: float | None
    #: Next to what: the figures behind the ratio.
    because: str = ""

    @property
    def met(self) -> bool | None:
        return None if self.result is None else bool(COMPARE[self.relation](self.result, self.goal))


@dataclass(frozen=True)
class _Found:
    """The medians, by what one asks of them."""

    results: Sequence[Result]

    def of(self, measure: str, name: str, system: str = OURS.name, *, database: str = "postgresql") -> float | None:
        found = self._figures(measure, name, database)
        return found[system].median if system in found else None

    def best_peer(self, measure: str, name: str, best: Callable[..., tuple[str, float]]) -> tuple[str, float] | None:
        peers = self._figures(measure, name, "postgresql")
        medians = [(who, figure.median) for who, figure in peers.items() if who not in (OURS.name, *LIMIT_NAMES)]
        return best(medians, key=operator.itemgetter(1)) if medians else None

    def best_limit(self, measure: str, name: str) -> tuple[str, float] | None:
        limits = self._figures(measure, name, "postgresql")
        medians = [(who, figure.median) for who, figure in limits.items() if who in LIMIT_NAMES]
        return max(medians, key=operator.itemgetter(1)) if medians else None

    def variants(self, measure: str, name: str) -> dict[str, float]:
        return {key[3]: figures[name].median for key, figures in self._all() if key[0] == measure and name in figures}

    def _figures(self, measure: str, name: str, database: str) -> dict[str, Figure]:
        return {
            key[1]: figures[name]
            for key, figures in self._all()
            if key[0] == measure and key[2] == database and name in figures
        }

    def _all(self) -> Iterable[tuple[tuple[str, str, str, str], dict[str, Figure]]]:
        return summarize(self.results).items()


def check(results: Sequence[Result]) -> list[Verdict]:
    """Every goal, in the order of the table."""
    found = _Found(results)
    return [*_worker(found), *_end_to_end(found), *_latency(found), *_wait(found), *_growth(found)]


def _worker(found: _Found) -> Iterator[Verdict]:
    ours = found.of("worker", "replies_per_second")
    peer = found.best_peer("worker", "replies_per_second", max)
    limit = found.best_limit("worker", "replies_per_second")
    yield _ratio("replies/s of one consumer, to the best peer", "at least", 15, ours, peer)
    yield _ratio("replies/s of one consumer, to the probe", "at least", 0.75, ours, limit)


def _end_to_end(found: _Found) -> Iterator[Verdict]:
    name = "paid_per_second"
    ours, peer = found.of("end-to-end", name), found.best_peer("end-to-end", name, max)
    granian = found.of("end-to-end", name, "probe-granian")
    yield _ratio("orders/s, POST to paid, to the best peer", "at least", 4, ours, peer)
    limit = None if granian is None else ("probe-granian", granian)
    yield _ratio("orders/s, POST to paid, to the probe on granian", "at least", 0.85, ours, limit)
    cpu = "cpu_seconds_per_1000"
    cheapest = found.best_peer("end-to-end", cpu, min)
    yield _ratio("CPU s per 1,000 orders, to the best peer", "at most", 0.25, found.of("end-to-end", cpu), cheapest)
    sqlite = found.of("end-to-end", name, database="sqlite")
    on_postgresql = None if ours is None else ("PostgreSQL", ours)
    yield _ratio("orders/s on SQLite, to PostgreSQL", "at least", 0.6, sqlite, on_postgresql)


def _latency(found: _Found) -> Iterator[Verdict]:
    peer = found.best_peer("idle", "idle_p50_ms", min)
    yield _ratio(
        "POST to paid, p50 at 50 orders/s, to the best peer", "at most", 1, found.of("idle", "idle_p50_ms"), peer
    )
    p99 = found.of("idle", "half_p99_ms")
    yield Verdict("POST to paid, p99 at half of full load", "at most", 150, "ms", p99)


def _wait(found: _Found) -> Iterator[Verdict]:
    share, ratio = found.of("wait", "share_of_201"), found.of("wait", "wait_to_respond_async")
    yield Verdict("answered 201 with the default wait, 64 connections", "at least", 0.99, "of all", share)
    yield Verdict("orders/s with the default wait, to respond-async", "at least", 0.6, "x", ratio)


def _growth(found: _Found) -> Iterator[Verdict]:
    costs = list(found.variants("growth", "cost_per_1000").items())
    pair = costs[-2:] if len(costs) > 1 else None
    name = f"cost per order, {pair[1][0]}" if pair else "cost per order with many old orders"
    yield _ratio(name, "at most", 1.15, pair[1][1] if pair else None, ("empty tables", pair[0][1]) if pair else None)
    memory = next(iter(found.variants("backlog-of-replies", "memory_growth_mib").items()), None)
    name = f"consumer memory above idle, backlog of {memory[0]}" if memory else "consumer memory above idle"
    yield Verdict(name, "at most", 30, "MiB", memory[1] if memory else None)


def _ratio(measure: str, relation: str, goal: float, ours: float | None, other: tuple[str, float] | None) -> Verdict:
    if ours is None or other is None:
        return Verdict(measure, relation, goal, "x", None)
    return Verdict(measure, relation, goal, "x", ours / other[1], f"{number(ours)}, {other[0]} {number(other[1])}")
