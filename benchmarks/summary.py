"""Many runs as one figure: the median, with the range it comes from."""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from benchmarks.result import Result

#: What was measured: measure, system, database, variant.
Key = tuple[str, str, str, str]


@dataclass(frozen=True)
class Figure:
    """One value of several runs."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        if math.isnan(self.median):
            return "-"
        spread = "" if self.low == self.high else f" ({number(self.low)} to {number(self.high)})"
        return number(self.median) + spread


def number(value: float) -> str:
    """Three significant digits, and never an exponent."""
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2 if abs(value) >= 1 else 3
    return f"{value:,.{digits}f}"


def key(result: Result) -> Key:
    return result.measure, result.system, result.database, result.variant


def summarize(results: Iterable[Result]) -> dict[Key, dict[str, Figure]]:
    """The figures of everything that was measured, in the order in which it first came."""
    gathered: dict[Key, list[Result]] = {}
    for result in results:
        gathered.setdefault(key(result), []).append(result)
    return {each: _figures(runs) for each, runs in gathered.items()}


def _figures(runs: Sequence[Result]) -> dict[str, Figure]:
    figures = {}
    for name in runs[0].values:
        values = [run.values[name] for run in runs if name in run.values]
        figures[name] = Figure(statistics.median(values), min(values), max(values))
    return figures
