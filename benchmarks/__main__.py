"""`python -m benchmarks`: measure, print a report and write the results; `make bench` does the same in its own venv."""

import contextlib
import json
import math
import os
import platform
import sys
from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import click

from benchmarks import report, results, servers
from benchmarks.deployment import RunFailed
from benchmarks.growth import Run
from benchmarks.load import NoResponse
from benchmarks.measures import FULL, QUICK
from benchmarks.ours import PROJECT_DIR
from benchmarks.results import Result
from benchmarks.runs import MEASURE_NAMES, Plan
from benchmarks.systems import MISSING, SYSTEMS
from sandbox.processes import interrupt_once
from sandbox.servers.sources import Unavailable

OUT = PROJECT_DIR / "var" / "benchmarks"


@click.command(help="Measure the service, compared with other systems and with the limit of the machine.")
@click.option("--measure", "measures", default="all", show_default=True,
              help=f"A comma-separated list of {','.join(MEASURE_NAMES)}, or all.")  # fmt: skip
@click.option("--systems", default="all", show_default=True,
              help=f"A comma-separated list of {','.join(SYSTEMS)}, or all.")  # fmt: skip
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(1), help="Each runs every system once.")
@click.option("--database", type=click.Choice(["postgresql", "sqlite", "both"]), default="both", show_default=True,
              help="SQLite applies to end-to-end, and to the systems that support it.")  # fmt: skip
@click.option("--quick", is_flag=True, help="Short runs that check that everything works; their figures mean little.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default=OUT, help="Directory of the results.")
def main(measures: str, systems: str, rounds: int, database: str, quick: bool, out: Path) -> None:
    if MISSING:
        click.echo(f"The peers are left out: {MISSING} is not installed. `make bench` installs what they need.")
    chosen = [SYSTEMS[name] for name in _chosen(systems, SYSTEMS)]
    databases = ("postgresql", "sqlite") if database == "both" else (database,)
    plan = Plan(_chosen(measures, MEASURE_NAMES), chosen, databases, rounds, QUICK if quick else FULL)
    interrupt_once()
    out = out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    record = Record(out, rounds, about=_about(rounds=rounds, quick=quick))
    try:
        with servers.running(out) as running:
            record.about |= {"broker": running.broker.how, "database": running.postgres.how}
            for run in plan.runs(running):
                record.execute(run)
    except KeyboardInterrupt:
        click.echo("Stopped; the results so far are kept.")
    except Unavailable as error:
        raise click.ClickException(str(error)) from error
    record.close()


@dataclass
class Record:
    """The results so far, written to disk after each run, so that an interruption loses none of them."""

    out: Path
    rounds: int
    about: dict[str, str]
    results: list[Result] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def execute(self, run: Run) -> None:
        """Execute the run, and print and record its result; a failed run is recorded as such."""
        key, round_number, measure = run
        title = " ".join(filter(None, key))
        try:
            figures = {name: value for name, value in measure().items() if not math.isnan(value)}
        except (RunFailed, NoResponse, OSError) as error:
            # The first line and the last, which is the error if the text ends with a log.
            lines = [line.strip() for line in f"round {round_number} {title}: {error}".splitlines() if line.strip()]
            self.failures.append(": ".join(dict.fromkeys([lines[0].rstrip(":"), lines[-1]])))
            click.echo(f"FAILED round {round_number} {title}: {error}")
            return
        shown = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
        click.echo(f"[{round_number}/{self.rounds}] {title}: {shown}")
        self.results.append(Result(key, round_number, figures))
        entries = [{**each.key._asdict(), "round": each.round, "values": each.values} for each in self.results]
        (self.out / "results.json").write_text(json.dumps({"about": self.about, "results": entries}, indent=1))

    def close(self) -> None:
        """Write the report and the chart, and print the report."""
        if not self.results:
            return
        text = report.markdown(self.results, results.check(self.results), self.about, self.failures)
        (self.out / "report.md").write_text(text)
        (self.out / "chart.svg").write_text(report.chart(self.results))
        click.echo(f"\n{text}\nThe results are in {self.out}: results.json, report.md, chart.svg.")


def _chosen(text: str, known: Collection[str]) -> list[str]:
    names = list(known) if text == "all" else [name.strip() for name in text.split(",")]
    if unknown := [name for name in names if name not in known]:
        raise click.ClickException(f"{', '.join(unknown)}: not one of {', '.join(known)}")
    return names


def _about(*, rounds: int, quick: bool) -> dict[str, str]:
    processor = platform.machine()
    with contextlib.suppress(OSError, IndexError):
        processor = Path("/proc/cpuinfo").read_text().split("model name\t: ")[1].splitlines()[0]
    return {
        "at": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "machine": f"{processor}, {len(os.sched_getaffinity(0))} cores, Python {platform.python_version()}",
        "rounds": f"{rounds}{', quick: the figures mean little' if quick else ''}",
    }


if __name__ == "__main__":
    sys.exit(main())
