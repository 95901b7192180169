"""The arithmetic of the benchmarks: what the report states must follow from the runs."""

import math

from benchmarks import report
from benchmarks.results import Key, Result, check, percentile, summarize


def _worker(system: str, *rates: float) -> list[Result]:
    return [
        Result(Key("worker", system, "postgresql"), number, {"replies_per_second": rate})
        for number, rate in enumerate(rates, start=1)
    ]


def test_a_figure_is_the_median_with_its_range() -> None:
    figure = summarize(_worker("ours", 400, 100, 300))["worker", "ours", "postgresql", ""]["replies_per_second"]

    assert (figure.median, figure.low, figure.high) == (300, 100, 400)
    assert str(figure) == "300 (100 to 400)"


def test_goals_compare_with_the_best_peer_and_the_best_probe() -> None:
    results = _worker("ours", 6000) + _worker("slow", 100) + _worker("quick", 500) + _worker("probe-granian", 10_000)

    to_peer, to_probe, *others = check(results)

    assert (to_peer.result, to_peer.met) == (12, False)
    assert (to_probe.result, to_probe.met) == (0.6, False)
    assert {other.met for other in others} == {None}


def test_the_lowest_cost_of_a_peer_is_the_best_one() -> None:
    costs = {"ours": 1.0, "cheap": 4.0, "expensive": 8.0}
    results = [
        Result(Key("end-to-end", name, "postgresql"), 1, {"cpu_seconds_per_1000": cost}) for name, cost in costs.items()
    ]

    cost = next(goal for goal in check(results) if "CPU s per 1,000 orders" in goal.title)

    assert (cost.result, cost.met, cost.source) == (0.25, True, "1.00, cheap 4.00")


def test_sqlite_is_compared_with_ours_on_postgresql() -> None:
    rates = {"postgresql": 400.0, "sqlite": 300.0}
    results = [Result(Key("end-to-end", "ours", name), 1, {"paid_per_second": rate}) for name, rate in rates.items()]

    sqlite = next(goal for goal in check(results) if "SQLite" in goal.title)

    assert (sqlite.result, sqlite.met, sqlite.source) == (0.75, True, "300, PostgreSQL 400")


def test_growth_is_compared_with_the_empty_tables_of_the_same_minutes() -> None:
    costs = {"empty tables beside 10": 1.0, "10 old orders": 9.0, "empty tables beside 50": 4.0, "50 old orders": 4.4}
    results = [
        Result(Key("growth", "ours", "postgresql", name), 1, {"cost_per_1000": cost}) for name, cost in costs.items()
    ]

    growth = next(goal for goal in check(results) if "50 old orders" in goal.title)

    assert growth.met
    assert growth.result is not None
    assert math.isclose(growth.result, 1.1)


def test_a_percentile_is_one_of_the_values() -> None:
    assert percentile([3, 1, 2], 50) == 2
    assert percentile(range(1, 101), 99) == 99
    assert math.isnan(percentile([], 50))


def test_report_and_chart_show_every_system_and_what_failed() -> None:
    results = _worker("ours", 6000, 7000) + _worker("quick", 500)

    text = report.markdown(results, check(results), {"machine": "two cores"}, ["round 1 worker slow: ended"])

    assert "| ours, postgresql | 6,500 (6,000 to 7,000) |" in text
    assert "round 1 worker slow: ended" in text
    assert "quick" in report.chart(results)
