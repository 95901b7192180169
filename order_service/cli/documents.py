"""The commands that print or write the generated documents; those of pages fill the files in templates/."""

import json
from collections.abc import Callable
from pathlib import Path

import click

from order_service.config import Settings
from order_service.contract.asyncapi import document
from order_service.contract.compatibility import breaking_changes
from order_service.contract.event_tables import events_page, filled, table
from order_service.contract.events import EVENTS, INCOMING
from order_service.contract.schemas import Schema, data_schema
from order_service.domain.messages import Message
from order_service.domain.order import FINAL, MAX_PAYMENTS, MAX_RESERVATIONS, State
from order_service.domain.saga import DECISIONS, Rule
from order_service.metrics import METRICS

MEANINGS = {
    State.AWAITING_MENU: "placed, waiting for the menu's reply",
    State.AWAITING_MENU_PREPAID: "paid before the menu replied",
    State.AWAITING_PAYMENT: "stock reserved and priced, waiting for the payment",
    State.PAID: "stock reserved, and paid with the right amount",
    State.FAILED: "cannot be served, for the reason in `reason`; stock and payments are compensated",
    State.CANCELLED: "cancelled by the client; stock and payments are compensated",
}
#: The documented names of messages that are not events.
NAMES = {
    "ReportPaid": "PUT paid", "ReportFailed": "PUT failed", "ReportPending": "PUT pending", "Cancel": "cancel (DELETE)",
    "MenuDeadline": "menu deadline", "PaymentDeadline": "payment deadline",
}  # fmt: skip
TEMPLATES = Path(__file__).parent / "templates"


def saga_page() -> str:
    """The text of docs/saga.md."""
    states = ([f"`{state}`", state.status, MEANINGS[state]] for state in State)
    cells = ([_name(message), *map(_cell, rules)] for message, rules in DECISIONS.items())
    return filled(
        TEMPLATES / "saga.md",
        states=table(["state", "status", "meaning"], states),
        decisions=table(["message", *State], cells),
        transitions=_diagram(),
        max_reservations=MAX_RESERVATIONS,
        max_payments=MAX_PAYMENTS,
    )


def settings_page() -> str:
    """The text of docs/settings.md."""
    rows = []
    for field in Settings.model_fields.values():
        default = "" if field.default in (None, "") else f"`{field.default}`"
        rows.append([f"`{field.validation_alias}`", default, " ".join((field.description or "").split())])
    return filled(TEMPLATES / "settings.md", settings=table(["variable", "default", "meaning"], rows))


def metrics_page() -> str:
    """The text of docs/metrics.md."""
    rows = (
        [f"`{metric.name}`", metric.kind, ", ".join(f"`{label}`" for label in metric.labels), metric.processes,
         metric.meaning]
        for metric in METRICS
    )  # fmt: skip
    return filled(TEMPLATES / "metrics.md", metrics=table(["metric", "type", "labels", "processes", "meaning"], rows))


def _name(message: type[Message]) -> str:
    return NAMES.get(message.__name__, message.__name__)


def _cell(rule: Rule) -> str:
    return f"{rule.text} ({rule.outcome})" if rule.outcome else rule.text


def _diagram() -> str:
    arrows: dict[tuple[State, State], list[str]] = {}
    for message, rules in DECISIONS.items():
        for before, rule in zip(State, rules, strict=True):
            for after in rule.to:
                if after != before:
                    arrows.setdefault((before, after), []).append(_name(message))
    transitions = [f"{before} --> {after} : {', '.join(names)}" for (before, after), names in arrows.items()]
    ends = [f"{state} --> [*]" for state in State if state in FINAL]
    lines = [f"[*] --> {State.AWAITING_MENU} : POST /orders", *transitions, *ends]
    return "```mermaid\nstateDiagram-v2\n" + "".join(f"    {line}\n" for line in lines) + "```\n"


def _printing(name: str, text: Callable[[], str], help: str) -> click.Command:
    return click.Command(name, callback=lambda: click.echo(text(), nl=False), help=help)


saga = _printing("saga", saga_page, "Print docs/saga.md: the states and the decision table.")
settings = _printing("settings", settings_page, "Print docs/settings.md: every environment variable.")
metrics = _printing("metrics", metrics_page, "Print docs/metrics.md: every metric.")
events = _printing("page", events_page, "Print docs/events.md: every event and its fields.")
asyncapi = _printing("asyncapi", lambda: _as_json(document()), "Print the AsyncAPI document.")


@click.command()
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False))
def schemas(directory: Path) -> None:
    """Write the JSON Schemas to DIRECTORY. Writes nothing if a change would break a sibling."""
    directory.mkdir(parents=True, exist_ok=True)
    generated = {directory / f"{name}.json": data_schema(name) for name in EVENTS}
    if broken := [f"\n  {path.stem} {change}" for path, new in generated.items() for change in _changes(path, new)]:
        raise click.ClickException(
            f"nothing was written, because these changes break siblings:{''.join(broken)}\n"
            "Revert them, or raise SCHEMA_VERSION in order_service/contract/envelope.py and notify the sibling teams."
        )
    for path, schema in generated.items():
        path.write_text(_as_json(schema), encoding="utf-8")
    click.echo(f"Wrote {len(generated)} schemas to {directory}")


def _changes(path: Path, new: Schema) -> list[str]:
    if not path.exists():
        return []
    return breaking_changes(json.loads(path.read_text(encoding="utf-8")), new, incoming=path.stem in INCOMING)


def _as_json(document: Schema) -> str:
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"
