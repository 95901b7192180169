"""The results as Markdown: the goals first, then a table for each measure."""

from collections.abc import Iterable, Mapping, Sequence

from benchmarks.acceptance import Verdict
from benchmarks.result import Result
from benchmarks.summary import Figure, Key, number, summarize

MET = {True: "met", False: "**missed**", None: "not measured"}


def markdown(
    results: Sequence[Result], verdicts: Iterable[Verdict], about: Mapping[str, str], failures: Sequence[str]
) -> str:
    """Medians, with the ranges in brackets."""
    parts = ["# Benchmarks", "\n".join(f"- {name}: {text.splitlines()[0]}" for name, text in about.items())]
    parts += ["## Goals", _goals(verdicts)]
    summary = summarize(results)
    for measure in dict.fromkeys(key[0] for key in summary):
        rows = {key: figures for key, figures in summary.items() if key[0] == measure}
        parts += [f"## {measure}", _measured(rows)]
    if failures:
        parts += ["## Runs that failed", "\n".join(f"- {each}" for each in failures)]
    return "\n\n".join(parts) + "\n"


def _goals(verdicts: Iterable[Verdict]) -> str:
    rows = [
        [
            verdict.measure,
            f"{verdict.relation} {number(verdict.goal)} {verdict.unit}",
            "-" if verdict.result is None else f"{number(verdict.result)} {verdict.unit}",
            verdict.because,
            MET[verdict.met],
        ]
        for verdict in verdicts
    ]
    return _table(["measure", "goal", "result", "from", ""], rows)


def _measured(rows: Mapping[Key, Mapping[str, Figure]]) -> str:
    """One line for each system; the columns are the figures, with their units in their names."""
    names = list(dict.fromkeys(name for figures in rows.values() for name in figures))
    lines = [
        [", ".join(filter(None, [system, database, variant]))]
        + [str(figures[name]) if name in figures else "-" for name in names]
        for (_, system, database, variant), figures in rows.items()
    ]
    return _table(["", *(name.replace("_", " ") for name in names)], lines)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
