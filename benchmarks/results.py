"""The results of the runs, their medians and ranges, and the goals, most of which are ratios between systems."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import Literal, NamedTuple

Figures = dict[str, float]


class Key(NamedTuple):
    """What was measured. The variant is empty unless a measure compares a system with itself."""

    measure: str
    system: str
    database: str
    variant: str = ""


@dataclass(frozen=True)
class Result:
    """The figures of one run of one system."""

    key: Key
    round: int
    values: Mapping[str, float]


@dataclass(frozen=True)
class Figure:
    """One value of several runs."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        spread = "" if self.low == self.high else f" ({number(self.low)} to {number(self.high)})"
        return number(self.median) + spread


Summary = dict[Key, dict[str, Figure]]


def summarize(results: Iterable[Result]) -> Summary:
    """The figures of everything that was measured, in the order in which it was first measured."""
    runs_by_key: dict[Key, list[Mapping[str, float]]] = {}
    for each in results:
        runs_by_key.setdefault(each.key, []).append(each.values)
    return {
        key: {name: _figure([values[name] for values in runs if name in values]) for name in runs[0]}
        for key, runs in runs_by_key.items()
    }


def _figure(values: list[float]) -> Figure:
    return Figure(statistics.median(values), min(values), max(values))


def number(value: float) -> str:
    """Three significant digits, without an exponent."""
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2 if abs(value) >= 1 else 3
    return f"{value:,.{digits}f}"


def percentile(values: Iterable[float], percent: float) -> float:
    """The smallest value that is not exceeded by this percentage of the values; NaN if there are none."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)] if ordered else math.nan


def kind_of(system: str) -> Literal["ours", "variant", "probe", "peer"]:
    if system.startswith("ours"):
        return "ours" if system == "ours" else "variant"
    return "probe" if system.startswith("probe-") else "peer"


@dataclass(frozen=True)
class Goal:
    """The required value of a figure of the service, alone or as a ratio to another system's, and what was measured."""

    title: str
    measure: str
    figure: str
    relation: Literal["at least", "at most"]
    bound: float
    #: A system, or a kind of system, of which the best one counts. None: the figure itself is the result.
    compared_with: str | None = None
    database: str = "postgresql"
    unit: str = "x"
    #: None if a figure that the goal needs was not measured.
    result: float | None = None
    #: The figures that the ratio was computed from.
    source: str = ""

    @property
    def met(self) -> bool | None:
        if self.result is None:
            return None
        return self.result >= self.bound if self.relation == "at least" else self.result <= self.bound


REPLIES, ORDERS, CPU = "replies_per_second", "paid_per_second", "cpu_seconds_per_1000"
POSTS = "accepted_per_second"
GOALS = (
    Goal("replies/s of one consumer, to the best peer", "worker", REPLIES, "at least", 15, "peer"),
    Goal("replies/s of one consumer, to the probe", "worker", REPLIES, "at least", 0.75, "probe"),
    Goal("orders/s, POST to paid, to the best peer", "end-to-end", ORDERS, "at least", 4, "peer"),
    Goal("orders/s, POST to paid, to the probe on granian", "end-to-end", ORDERS, "at least", 0.85, "probe-granian"),
    Goal("CPU s per 1,000 orders, to the best peer", "end-to-end", CPU, "at most", 0.25, "peer"),
    Goal("POSTs/s, to those with tokens and limits", "end-to-end", POSTS, "at most", 1 / 0.85, "ours-access"),
    Goal("orders/s, to those with metrics and logs", "end-to-end", ORDERS, "at most", 1 / 0.95, "ours-observed"),
    Goal("orders/s, to those with ten viewers of the board", "end-to-end", ORDERS, "at most", 1 / 0.97, "ours-watched"),
    Goal("orders/s on SQLite, to PostgreSQL", "end-to-end", ORDERS, "at least", 0.6, "ours", "sqlite"),
    Goal("POST to paid, p50 at 50 orders/s, to the best peer", "idle", "idle_p50_ms", "at most", 1, "peer"),
    Goal("POST to paid, p99 at half of full load", "idle", "half_p99_ms", "at most", 150, unit="ms"),
    Goal("answered 201 with the default wait, 64 connections", "wait", "share_of_201", "at least", 0.99, unit="of all"),
    Goal("orders/s with the default wait, to respond-async", "wait", "wait_to_respond_async", "at least", 0.6),
)
COST = Goal("cost per order with many old orders", "growth", "cost_per_1000", "at most", 1.15)
MEMORY = Goal("consumer memory above idle", "backlog-of-replies", "memory_growth_mib", "at most", 30, unit="MiB")


def check(results: Sequence[Result]) -> list[Goal]:
    """All goals with their results, in the order of the report."""
    summary = summarize(results)
    return [*(_checked(summary, goal) for goal in GOALS), _checked_cost(summary), _checked_memory(summary)]


def _medians(summary: Summary, goal: Goal) -> list[tuple[Key, float]]:
    return [
        (key, figures[goal.figure].median)
        for key, figures in summary.items()
        if key.measure == goal.measure and goal.figure in figures
    ]


def _checked(summary: Summary, goal: Goal) -> Goal:
    medians = {key[1:3]: median for key, median in _medians(summary, goal)}
    ours = medians.get(("ours", goal.database))
    if ours is None or goal.compared_with is None:
        return replace(goal, result=ours)
    others = [
        (system, median)
        for (system, database), median in medians.items()
        if database == "postgresql" and goal.compared_with in (system, kind_of(system))
    ]
    best = max if goal.relation == "at least" else min
    return _with_ratio(goal, ours, *best(others, key=itemgetter(1))) if others else goal


def _with_ratio(goal: Goal, ours: float, system: str, other: float) -> Goal:
    name = "PostgreSQL" if system == "ours" else system
    return replace(goal, result=ours / other, source=f"{number(ours)}, {name} {number(other)}")


def _checked_cost(summary: Summary) -> Goal:
    """The cost with the largest tables, compared with the empty tables that were measured alternately with them."""
    medians = _medians(summary, COST)
    if len(medians) < 2:
        return COST
    (_, empty), (largest, cost) = medians[-2:]
    return _with_ratio(replace(COST, title=f"cost per order, {largest.variant}"), cost, "empty tables", empty)


def _checked_memory(summary: Summary) -> Goal:
    for key, mib in _medians(summary, MEMORY):
        return replace(MEMORY, title=f"{MEMORY.title}, backlog of {key.variant}", result=mib)
    return MEMORY
