"""The order of the runs: round by round, in each every system by turns, each on a fresh vhost and database."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from benchmarks import backlog, database, end_to_end, growth, idle, load, waiting, worker
from benchmarks.ours import OURS
from benchmarks.result import Effort, Result
from benchmarks.stage import Failed, House, Stage, complete, prepared
from benchmarks.system import System
from sandbox.servers.sources import Say

#: What is measured on a stage where everything runs, and on one where nothing does yet.
ON_COMPLETE = {"end-to-end": end_to_end.measure, "wait": waiting.measure, "idle": idle.measure}
ON_PREPARED = {"worker": worker.measure}
OURS_ONLY = ("wait", "growth")
ON_SQLITE_TOO = ("end-to-end",)
MEASURES = (*ON_COMPLETE, *ON_PREPARED, "growth")

Figures = dict[str, float]


@dataclass
class Runs:
    """Runs measures and yields their results; a run that fails is said, noted and left out."""

    house: House
    effort: Effort
    rounds: int
    databases: Sequence[str]
    say: Say
    failures: list[str] = field(default_factory=list)

    def all(self, measures: Sequence[str], systems: Sequence[System]) -> Iterator[Result]:
        for measure in measures:
            concerned = [each for each in systems if measure not in OURS_ONLY or each is OURS]
            if measure == "growth":
                if concerned:
                    yield from self._growth()
                continue
            for round in range(1, self.rounds + 1):
                for kind, system in self._pairs(measure, concerned):
                    yield from self._one(measure, system, kind, round)

    def _pairs(self, measure: str, systems: Sequence[System]) -> Iterator[tuple[str, System]]:
        for kind in self.databases:
            if kind == "sqlite" and measure not in ON_SQLITE_TOO:
                continue
            yield from ((kind, system) for system in systems if kind in system.databases)

    def _one(self, measure: str, system: System, kind: str, round: int) -> Iterator[Result]:
        def run() -> Figures:
            with database.fresh(kind, self.house.postgres, self.house.out) as url:
                if measure in ON_PREPARED:
                    with prepared(system, self.house, url) as stage:
                        return ON_PREPARED[measure](stage, self.effort)
                with complete(system, self.house, url) as stage:
                    return ON_COMPLETE[measure](stage, self.effort)

        yield from self._noted(Result(measure, system.name, kind, "", round, {}), run)

    def _growth(self) -> Iterator[Result]:
        for round in range(1, self.rounds + 1):
            for copies in self.effort.copies:
                for measure, name, run in self._backlogs(copies):
                    yield from self._noted(Result(measure, OURS.name, "postgresql", name, round, {}), run)
        rounds: dict[str, int] = {}
        try:
            for variant, figures in growth.measure(self.house, self.effort, rounds=self.rounds, say=self.say):
                rounds[variant] = rounds.get(variant, 0) + 1
                result = Result("growth", OURS.name, "postgresql", variant, rounds[variant], {})
                yield from self._noted(result, lambda figures=figures: figures)  # type: ignore[misc]
        except (Failed, load.NoAnswer, OSError) as error:
            self._fail(f"growth: {error}")

    def _backlogs(self, copies: int) -> Iterator[tuple[str, str, Callable[[], Figures]]]:
        backlog_size = self.effort.backlog

        def replies() -> Figures:
            return self._alone(lambda stage: backlog.replies(stage, backlog=backlog_size, workers=copies))

        def rows() -> Figures:
            return self._alone(lambda stage: backlog.rows(stage, backlog=backlog_size, relays=copies))

        yield "backlog-of-replies", f"{backlog_size:,}, consumers: {copies}", replies
        yield "backlog-of-outbox-rows", f"{backlog_size:,}, relays: {copies}", rows

    def _alone(self, measure: Callable[[Stage], Figures]) -> Figures:
        with (
            database.fresh("postgresql", self.house.postgres, self.house.out) as url,
            prepared(OURS, self.house, url) as stage,
        ):
            return measure(stage)

    def _noted(self, result: Result, run: Callable[[], Figures]) -> Iterator[Result]:
        title = " ".join(filter(None, [result.measure, result.system, result.database, result.variant]))
        try:
            figures = {name: value for name, value in run().items() if not math.isnan(value)}
        except (Failed, load.NoAnswer, OSError) as error:
            self._fail(f"round {result.round} {title}: {error}")
            return
        shown = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
        self.say(f"[{result.round}/{self.rounds}] {title}: {shown}")
        yield Result(result.measure, result.system, result.database, result.variant, result.round, figures)

    def _fail(self, problem: str) -> None:
        # What the log ends with is the error; the rest was on the screen.
        lines = [line.strip() for line in problem.splitlines() if line.strip()]
        self.failures.append(": ".join(dict.fromkeys([lines[0].rstrip(":"), lines[-1]])))
        self.say(f"FAILED {problem}")
