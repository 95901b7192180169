"""The results as Markdown, with the goals first, and as a chart in SVG that is written without a library."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape

from benchmarks.results import Figure, Goal, Key, Result, kind_of, number, summarize

MET = {True: "met", False: "**missed**", None: "not measured"}
#: The panels of the chart: measure, figure, title.
PANELS = (
    ("end-to-end", "paid_per_second", "Orders per second, POST to paid (more is better)"),
    ("end-to-end", "cpu_seconds_per_1000", "CPU seconds of the service per 1,000 orders (less is better)"),
    ("worker", "replies_per_second", "Replies per second, one worker (more is better)"),
    ("worker", "cpu_us_per_reply", "Worker CPU per reply, microseconds (less is better)"),
    ("idle", "idle_p50_ms", "POST to paid at 50 orders per second, p50, ms (less is better)"),
    ("idle", "half_p99_ms", "POST to paid at half of full load, p99, ms (less is better)"),
)
#: Pixels.
WIDTH, LABEL_WIDTH, BAR_WIDTH, ROW_HEIGHT, TITLE_HEIGHT = 760, 170, 420, 24, 44
COLOURS = {"ours": "#0b6e4f", "variant": "#6aa58f", "probe": "#9a9a9a", "peer": "#c8791a"}


def markdown(
    results: Sequence[Result], goals: Iterable[Goal], about: Mapping[str, str], failures: Sequence[str]
) -> str:
    """Medians, with the ranges in brackets."""
    parts = ["# Benchmarks", "\n".join(f"- {name}: {text.splitlines()[0]}" for name, text in about.items())]
    parts += ["## Goals", _goals(goals)]
    summary = summarize(results)
    for measure in dict.fromkeys(key.measure for key in summary):
        rows = {key: figures for key, figures in summary.items() if key.measure == measure}
        parts += [f"## {measure}", _figures(rows)]
    if failures:
        parts += ["## Failed runs", "\n".join(f"- {failure}" for failure in failures)]
    return "\n\n".join(parts) + "\n"


def _goals(goals: Iterable[Goal]) -> str:
    rows = []
    for goal in goals:
        result = "-" if goal.result is None else f"{number(goal.result)} {goal.unit}"
        bound = f"{goal.relation} {number(goal.bound)} {goal.unit}"
        rows.append([goal.title, bound, result, goal.source, MET[goal.met]])
    return _table(["measure", "goal", "result", "from", ""], rows)


def _figures(rows: Mapping[Key, Mapping[str, Figure]]) -> str:
    """One line for each system; the columns are the figures, with their units in their names."""
    names = list(dict.fromkeys(name for figures in rows.values() for name in figures))
    lines = [
        [", ".join(filter(None, key[1:]))] + [str(figures[name]) if name in figures else "-" for name in names]
        for key, figures in rows.items()
    ]
    return _table(["", *(name.replace("_", " ") for name in names)], lines)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *rows])


def chart(results: Sequence[Result]) -> str:
    """One panel of bars, with their ranges, for each figure of PANELS that was measured."""
    summary = summarize(results)
    parts, top = [], 10
    for measure, name, title in PANELS:
        bars = [(key, figures[name]) for key, figures in summary.items() if key.measure == measure and name in figures]
        if bars:
            parts += list(_panel(title, bars, top))
            top += TITLE_HEIGHT + ROW_HEIGHT * len(bars)
    style = "<style>text{font:13px system-ui,sans-serif;fill:#222}.t{font-weight:600}</style>"
    size = f'width="{WIDTH}" height="{top}" viewBox="0 0 {WIDTH} {top}"'
    background = f'<rect width="{WIDTH}" height="{top}" fill="#fff"/>'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{style}{background}{"".join(parts)}</svg>\n'


def _panel(title: str, bars: Sequence[tuple[Key, Figure]], top: int) -> Iterator[str]:
    yield f'<text class="t" x="10" y="{top + 24}">{escape(title)}</text>'
    scale = BAR_WIDTH / (max(figure.high for _, figure in bars) or 1)
    for row, (key, figure) in enumerate(bars):
        label = key.system if key.database == "postgresql" else f"{key.system}, {key.database}"
        y = top + 34 + ROW_HEIGHT * row
        middle = y + ROW_HEIGHT / 2 - 2
        low, high, end = (LABEL_WIDTH + value * scale for value in (figure.low, figure.high, figure.median))
        colour, width = COLOURS[kind_of(key.system)], end - LABEL_WIDTH
        yield f'<text x="{LABEL_WIDTH - 8}" y="{y + 14}" text-anchor="end">{escape(label)}</text>'
        yield f'<rect x="{LABEL_WIDTH}" y="{y}" width="{width:.1f}" height="{ROW_HEIGHT - 6}" fill="{colour}"/>'
        yield f'<path d="M{low:.1f} {middle}H{high:.1f}" stroke="#222" stroke-width="1.5"/>'
        yield f'<text x="{max(high, end) + 8:.1f}" y="{y + 14}">{escape(number(figure.median))}</text>'
