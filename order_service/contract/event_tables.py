"""The text of docs/events.md, and the descriptions of events that the page at /asyncapi also shows."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from order_service.contract import samples
from order_service.contract.asyncapi import DELIVERY, EXCHANGES
from order_service.contract.envelope import REJECTIONS
from order_service.contract.events import DECIMALS, EVENTS, INCOMING, OUTGOING
from order_service.contract.schemas import Schema, data_schema
from order_service.contract.topology import BY_NAME, published_on

TEMPLATE = Path(__file__).parent / "events.md"


@dataclass(frozen=True)
class EventDescription:
    """The description of one event in the documentation."""

    name: str
    exchange: str
    routing_key: str
    description: str
    replies: tuple[str, ...]
    #: Path, type in words, whether it is required, and meaning.
    fields: tuple[tuple[str, str, bool, str], ...]
    #: A whole CloudEvent, as indented JSON.
    example: str


def _described(name: str) -> EventDescription:
    model, fields = EVENTS[name], tuple(_fields(data_schema(name)))
    example = json.dumps(samples.event(name), indent=2, ensure_ascii=False)
    return EventDescription(
        name, published_on(name), model.routing_key, model.description, model.replies, fields, example
    )


def groups() -> Mapping[str, list[EventDescription]]:
    """Every event, under the heading it belongs to."""
    return {"Events we publish": [*map(_described, OUTGOING)], "Events we consume": [*map(_described, INCOMING)]}


def events_page() -> str:
    """The text of docs/events.md."""
    published, consumed = groups().values()
    return filled(
        TEMPLATE,
        exchanges=EXCHANGES,
        delivery=DELIVERY,
        published=_summary(published),
        consumed=_summary(consumed),
        queues=_queues(),
        rejections=_rejections(),
        data="\n".join(map(_event, [*published, *consumed])),
    )


def filled(template: Path, **parts: object) -> str:
    """The text of a template, with these parts in their places."""
    return template.read_text(encoding="utf-8").format(**{key: str(part).rstrip("\n") for key, part in parts.items()})


def table(head: list[str], rows: Iterable[list[str]]) -> str:
    """A table in Markdown."""
    return "".join(f"| {' | '.join(row)} |\n" for row in [head, ["---"] * len(head), *rows])


def _fields(schema: Schema, path: str = "") -> Iterator[tuple[str, str, bool, str]]:
    for name, inner in schema.get("properties", {}).items():
        yield path + name, _in_words(inner), name in schema.get("required", []), inner["description"]
        yield from _fields(inner.get("items", {}), f"{path}{name}[].")


def _in_words(schema: Schema) -> str:
    if "anyOf" in schema:
        return " or ".join(map(_in_words, schema["anyOf"]))
    if "enum" in schema:
        return " or ".join(f"`{each}`" for each in schema["enum"])
    if schema.get("format") == "date-time":
        return "time, RFC 3339 in UTC"
    if schema["type"] == "array":
        inner = schema["items"]
        entries = "objects" if inner["type"] == "object" else f"{_in_words(inner)}s"
        return f"list of {entries}" + (f", at most {schema['maxItems']}" if "maxItems" in schema else "")
    types = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    limit = f" of at most {schema['maxLength']} characters" if "maxLength" in schema else ""
    words = " or ".join(f"text{limit}" if each == "string" else str(each) for each in types)
    return f"{words} with {DECIMALS}" if schema["type"] == "number" else words


def _summary(events: Iterable[EventDescription]) -> str:
    rows = (
        [f"[{each.name}](#{each.name.lower()})", f"`{each.exchange}`", f"`{each.routing_key}`", each.description]
        for each in events
    )
    return table(["type", "exchange", "routing key", "meaning"], rows)


def _queues() -> str:
    cells = (
        [queue.name, ", ".join(queue.exchanges), ", ".join(queue.routing_keys), queue.dead_letters]
        for queue in BY_NAME.values()
    )
    head = ["queue", "exchanges", "routing keys", "dead-letter queue"]
    return table(head, ([f"`{cell}`" for cell in row] for row in cells))


def _rejections() -> str:
    return table(["code", "meaning"], ([f"`{code}`", meaning] for code, meaning in REJECTIONS.items()))


def _event(event: EventDescription) -> str:
    rows = (
        [f"`{path}`", words, "" if required else "optional", meaning] for path, words, required, meaning in event.fields
    )
    replies = f" Answer with {' or '.join(event.replies)}." if event.replies else ""
    return f"### {event.name}\n\n{event.description}{replies}\n\n" + table(["field", "type", "", "meaning"], rows)
