"""docs/saga.md and docs/settings.md are up to date."""

from pathlib import Path

from order_service.cli.pages import saga_page, settings_page
from order_service.domain.order import State
from order_service.domain.saga import DECISIONS

PAGE = Path(__file__).parents[2] / "docs" / "saga.md"
COMMAND = "python -m order_service saga > docs/saga.md"


def test_the_committed_saga_page_is_up_to_date():
    committed = PAGE.read_text(encoding="utf-8")

    printed = saga_page()

    assert committed == printed, f"docs/saga.md is out of date; run: {COMMAND}"


def test_the_page_names_the_command_that_generates_it():
    assert COMMAND in saga_page()


def test_the_page_has_a_row_for_every_message_and_a_cell_for_every_state():
    table = saga_page().split("## Decisions")[1].split("##")[0].strip().splitlines()

    head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]

    assert head == ["message", *State]
    assert len(rows) == len(DECISIONS)
    assert [row[1:] for row in rows] == [[rule.text for rule in rules] for rules in DECISIONS.values()]


def test_the_diagram_has_exactly_the_transitions_that_the_rules_declare():
    diagram = saga_page().split("```mermaid")[1].split("```")[0]

    drawn = {tuple(line.split(" : ")[0].split(" --> ")) for line in diagram.splitlines() if " --> " in line}

    assert drawn == {
        ("    [*]", "awaiting_menu"),
        ("    awaiting_menu", "awaiting_menu_prepaid"),
        ("    awaiting_menu", "awaiting_payment"),
        ("    awaiting_menu", "failed"),
        ("    awaiting_menu", "cancelled"),
        ("    awaiting_menu_prepaid", "paid"),
        ("    awaiting_menu_prepaid", "failed"),
        ("    awaiting_menu_prepaid", "cancelled"),
        ("    awaiting_payment", "paid"),
        ("    awaiting_payment", "failed"),
        ("    awaiting_payment", "cancelled"),
        ("    paid", "[*]"),
        ("    failed", "[*]"),
        ("    cancelled", "[*]"),
    }


def test_the_committed_settings_page_is_up_to_date():
    committed = PAGE.with_name("settings.md").read_text(encoding="utf-8")

    assert committed == settings_page(), (
        "docs/settings.md is out of date; run: python -m order_service settings > docs/settings.md"
    )
