"""The order of the runs: round by round, and in each round every system once, each on a fresh vhost and database."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial

from benchmarks import growth, measures
from benchmarks.deployment import Deployment, prepared, started
from benchmarks.growth import Run
from benchmarks.measures import Effort
from benchmarks.results import Figures, Key
from benchmarks.servers import Servers
from benchmarks.system import System


@dataclass(frozen=True)
class Measure:
    """A measure, the deployment that it starts from, and the systems and databases that it is for."""

    execute: Callable[[Deployment, Effort], Figures]
    deploy: Callable[[System, Servers, str], AbstractContextManager[Deployment]] = started
    ours_only: bool = False
    databases: frozenset[str] = frozenset({"postgresql"})


MEASURES = {
    "end-to-end": Measure(measures.end_to_end, databases=frozenset({"postgresql", "sqlite"})),
    "wait": Measure(measures.wait, ours_only=True),
    "idle": Measure(measures.idle),
    "worker": Measure(measures.worker, deploy=prepared),
}
MEASURE_NAMES = (*MEASURES, "growth")


@dataclass(frozen=True)
class Plan:
    """What is run: measures and systems by their order, and how much of them."""

    measures: Sequence[str]
    systems: Sequence[System]
    databases: Sequence[str]
    rounds: int
    effort: Effort

    def runs(self, servers: Servers) -> Iterator[Run]:
        for name in self.measures:
            if name in MEASURES:
                yield from self._interleaved(name, MEASURES[name], servers)
            elif any(system.name == "ours" for system in self.systems):
                yield from growth.runs(servers, self.effort, rounds=self.rounds)

    def _interleaved(self, name: str, measure: Measure, servers: Servers) -> Iterator[Run]:
        for number in range(1, self.rounds + 1):
            for database in self.databases:
                for system in self.systems:
                    if measure.ours_only and system.name != "ours":
                        continue
                    if system.measures is not None and name not in system.measures:
                        continue
                    if database in measure.databases & system.databases:
                        run = partial(_run, measure, servers, system, database, self.effort)
                        yield Key(name, system.name, database), number, run


def _run(measure: Measure, servers: Servers, system: System, database: str, effort: Effort) -> Figures:
    with servers.fresh_database(database) as url, measure.deploy(system, servers, url) as deployment:
        return measure.execute(deployment, effort)
