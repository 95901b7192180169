"""`python -m benchmarks`: measure, show, and write down; `make bench` is the same in its own venv."""

import contextlib
import json
import os
import platform
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import click

from benchmarks import acceptance, chart, report
from benchmarks.result import FULL, QUICK, Result
from benchmarks.runs import MEASURES, Runs
from benchmarks.stage import House
from benchmarks.systems import MISSING, SYSTEMS, named
from sandbox.processes import PROJECT_DIR, interrupt_once
from sandbox.servers import broker, postgres
from sandbox.servers.sources import Unavailable
from sandbox.servers.sources import print_line as say_aloud

OUT = PROJECT_DIR / "var" / "benchmarks"


@click.command(help="Measure the service next to other systems, and to the limit.")
@click.option("--measure", "measures", default="all", show_default=True, help=f"Some of {','.join(MEASURES)}, or all.")
@click.option(
    "--systems", default="all", show_default=True, help=f"Some of {','.join(s.name for s in SYSTEMS)}, or all."
)
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(1), help="Each runs all systems by turns.")
@click.option("--database", type=click.Choice(["postgresql", "sqlite", "both"]), default="both", show_default=True,
              help="SQLite is for end-to-end, and for the systems that know it.")  # fmt: skip
@click.option("--quick", is_flag=True, help="Short runs, to see that everything works; the figures are worth little.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default=OUT, help="Where the results go.")
def main(measures: str, systems: str, rounds: int, database: str, quick: bool, out: Path) -> None:
    interrupt_once()
    out = out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    if MISSING:
        say_aloud(f"Without the peers: there is no {MISSING} here. `make bench` installs what they need.")
    book = Book(out, about=_about(rounds=rounds, quick=quick))
    databases = ("postgresql", "sqlite") if database == "both" else (database,)
    try:
        wanted = _chosen(measures, MEASURES)
        chosen = [named(name) for name in _chosen(systems, tuple(each.name for each in SYSTEMS))]
        with _house(out) as house:
            book.about |= {"broker": house.broker.how, "database": house.postgres.how}
            runs = Runs(house, QUICK if quick else FULL, rounds, databases, say_aloud)
            book.failures = runs.failures
            for result in runs.all(wanted, chosen):
                book.add(result)
    except KeyboardInterrupt:
        say_aloud("Stopped; what was measured until now is kept.")
    except (Unavailable, LookupError) as trouble:
        raise click.ClickException(str(trouble)) from trouble
    book.close()


@dataclass
class Book:
    """The results so far, on disk after each run, so that an interrupted evening is not lost."""

    out: Path
    about: dict[str, str]
    results: list[Result] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def add(self, result: Result) -> None:
        self.results.append(result)
        document = {"about": self.about, "results": [each.as_json() for each in self.results]}
        (self.out / "results.json").write_text(json.dumps(document, indent=1))

    def close(self) -> None:
        """Write the report and the chart, and show the report."""
        if not self.results:
            return
        text = report.markdown(self.results, acceptance.check(self.results), self.about, self.failures)
        (self.out / "report.md").write_text(text)
        (self.out / "chart.svg").write_text(chart.svg(self.results))
        say_aloud(f"\n{text}\nAll of it is in {self.out}: results.json, report.md, chart.svg.")


@contextlib.contextmanager
def _house(out: Path) -> Iterator[House]:
    with broker.running(out / "broker") as found, postgres.running(out / "postgres", fsync=True) as server:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = listener.getsockname()[1]
        yield House(found, server, out, port)


def _chosen(text: str, known: tuple[str, ...]) -> list[str]:
    names = list(known) if text == "all" else [name.strip() for name in text.split(",")]
    if unknown := [name for name in names if name not in known]:
        raise LookupError(f"{', '.join(unknown)}: not one of {', '.join(known)}")
    return names


def _about(*, rounds: int, quick: bool) -> dict[str, str]:
    return {
        "at": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "machine": f"{_processor()}, {len(os.sched_getaffinity(0))} cores, Python {platform.python_version()}",
        "rounds": f"{rounds}{', quick: the figures are worth little' if quick else ''}",
    }


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


if __name__ == "__main__":
    sys.exit(main())
