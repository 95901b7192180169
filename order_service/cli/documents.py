"""The commands that print or write the generated documents."""

import json
from collections.abc import Callable
from pathlib import Path

import click

from order_service.cli import pages
from order_service.contract import event_tables
from order_service.contract.asyncapi import document
from order_service.contract.compatibility import breaking_changes
from order_service.contract.events import EVENTS, INCOMING
from order_service.contract.schemas import Schema, data_schema


def _printing(name: str, text: Callable[[], str], help: str) -> click.Command:
    return click.Command(name, callback=lambda: click.echo(text(), nl=False), help=help)


saga = _printing("saga", pages.saga_page, "Print docs/saga.md: the states and the decision table.")
settings = _printing("settings", pages.settings_page, "Print docs/settings.md: every environment variable.")
metrics = _printing("metrics", pages.metrics_page, "Print docs/metrics.md: every metric.")
events_page = _printing("page", event_tables.events_page, "Print docs/events.md: every event and its fields.")
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
