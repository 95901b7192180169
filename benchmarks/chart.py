"""The results as one picture: bars with their ranges, a panel for each measure. SVG by hand, so it needs nothing."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

from benchmarks.ours import OURS
from benchmarks.result import Result
from benchmarks.summary import Figure, number, summarize
from benchmarks.systems import LIMITS


@dataclass(frozen=True)
class Panel:
    """One figure of one measure, compared between the systems."""

    measure: str
    name: str
    title: str


PANELS = (
    Panel("end-to-end", "paid_per_second", "Orders per second, POST to paid (more is better)"),
    Panel("end-to-end", "cpu_seconds_per_1000", "CPU seconds of the service per 1,000 orders (less is better)"),
    Panel("worker", "replies_per_second", "Replies per second, one worker (more is better)"),
    Panel("worker", "cpu_us_per_reply", "Worker CPU per reply, microseconds (less is better)"),
    Panel("idle", "idle_p50_ms", "POST to paid at 50 orders per second, p50, ms (less is better)"),
    Panel("idle", "half_p99_ms", "POST to paid at half of full load, p99, ms (less is better)"),
)
WIDTH, LABELS, BARS, ROW, HEAD = 760, 170, 420, 24, 44
COLOURS = {"ours": "#0b6e4f", "limit": "#9a9a9a", "peer": "#c8791a"}

Bar = tuple[str, Figure]


def svg(results: Sequence[Result]) -> str:
    """All panels that have something to show, one below the other."""
    panels = [(panel, bars) for panel in PANELS if (bars := _bars(results, panel))]
    parts, top = [], 10
    for panel, bars in panels:
        parts += list(_panel(panel, bars, top))
        top += HEAD + ROW * len(bars)
    style = "<style>text{font:13px system-ui,sans-serif;fill:#222}.t{font-weight:600}</style>"
    size = f'width="{WIDTH}" height="{top}" viewBox="0 0 {WIDTH} {top}"'
    back = f'<rect width="{WIDTH}" height="{top}" fill="#fff"/>'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{style}{back}{"".join(parts)}</svg>\n'


def _bars(results: Sequence[Result], panel: Panel) -> list[Bar]:
    summary = summarize(result for result in results if result.measure == panel.measure)
    return [
        (system if database == "postgresql" else f"{system}, {database}", figures[panel.name])
        for (_, system, database, _), figures in summary.items()
        if panel.name in figures
    ]


def _panel(panel: Panel, bars: Sequence[Bar], top: int) -> Iterator[str]:
    yield f'<text class="t" x="10" y="{top + 24}">{escape(panel.title)}</text>'
    scale = BARS / (max(figure.high for _, figure in bars) or 1)
    for row, (label, figure) in enumerate(bars):
        y = top + 34 + ROW * row
        middle = y + ROW / 2 - 2
        low, high, end = (LABELS + value * scale for value in (figure.low, figure.high, figure.median))
        yield f'<text x="{LABELS - 8}" y="{y + 14}" text-anchor="end">{escape(label)}</text>'
        yield f'<rect x="{LABELS}" y="{y}" width="{end - LABELS:.1f}" height="{ROW - 6}" fill="{_colour(label)}"/>'
        yield f'<path d="M{low:.1f} {middle}H{high:.1f}" stroke="#222" stroke-width="1.5"/>'
        yield f'<text x="{max(high, end) + 8:.1f}" y="{y + 14}">{escape(number(figure.median))}</text>'


def _colour(label: str) -> str:
    system = label.partition(",")[0]
    if system == OURS.name:
        return COLOURS["ours"]
    return COLOURS["limit" if system in {each.name for each in LIMITS} else "peer"]
