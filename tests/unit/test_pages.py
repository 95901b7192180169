"""The generated pages of docs are up to date, and docs/saga.md shows the whole decision table."""

from collections.abc import Callable
from itertools import takewhile
from pathlib import Path

import pytest

from order_service.cli.documents import metrics_page, saga_page, settings_page
from order_service.contract.event_tables import events_page
from order_service.domain.order import State
from order_service.domain.saga import DECISIONS

DOCS = Path(__file__).parents[2] / "docs"
PAGES: dict[str, Callable[[], str]] = {
    "saga": saga_page, "settings": settings_page, "metrics": metrics_page, "events page": events_page,
}  # fmt: skip


@pytest.mark.parametrize("command", PAGES)
def test_the_committed_page_is_up_to_date_and_names_its_command(command: str) -> None:
    page = f"{command.split()[0]}.md"
    committed = (DOCS / page).read_text(encoding="utf-8")

    printed = PAGES[command]()

    regenerate = f"python -m order_service {command} > docs/{page}"
    assert committed == printed, f"docs/{page} is out of date; run: {regenerate}"
    assert regenerate in committed


def test_the_page_has_a_row_for_every_message_and_a_cell_with_its_outcome_for_every_state() -> None:
    expected = [
        [f"{rule.text} ({rule.outcome})" if rule.outcome else rule.text for rule in rules]
        for rules in DECISIONS.values()
    ]

    page = saga_page()

    table = takewhile(str.strip, page[page.index("| message |") :].splitlines())
    head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    assert head == ["message", *State]
    assert [row[1:] for row in rows] == expected


def test_the_diagram_has_exactly_the_transitions_that_the_rules_declare() -> None:
    declared = {
        (f"    {before}", str(after))
        for rules in DECISIONS.values()
        for before, rule in zip(State, rules, strict=True)
        for after in rule.to
        if after is not before
    }

    diagram = saga_page().split("```mermaid")[1].split("```")[0]

    drawn = {tuple(line.split(" : ")[0].split(" --> ")) for line in diagram.splitlines() if " --> " in line}
    first_and_last = {("    [*]", "awaiting_menu"), *((f"    {end}", "[*]") for end in ("paid", "failed", "cancelled"))}
    assert len(declared) == 11
    assert drawn == declared | first_and_last
