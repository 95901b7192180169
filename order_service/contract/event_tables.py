"""The text of docs/events.md, and the descriptions of events that the page at /asyncapi also shows."""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from order_service.contract import samples
from order_service.contract.asyncapi import DELIVERY, EXCHANGES
from order_service.contract.envelope import REJECTIONS
from order_service.contract.events import DECIMALS, EVENTS, INCOMING, OUTGOING, EventData
from order_service.contract.schemas import Schema, data_schema
from order_service.contract.topology import BY_NAME, published_on

TEMPLATE = Path(__file__).parent / "events.md"


#: Every event, under the heading it belongs to.
GROUPS: Mapping[str, Mapping[str, type[EventData]]] = {"Events we publish": OUTGOING, "Events we consume": INCOMING}


def events_page() -> str:
    """The text of docs/events.md."""
    return filled(
        TEMPLATE,
        exchanges=EXCHANGES,
        delivery=DELIVERY,
        published=_summary(OUTGOING),
        consumed=_summary(INCOMING),
        queues=_queues(),
        rejections=table(["code", "meaning"], ([f"`{code}`", meaning] for code, meaning in REJECTIONS.items())),
        data="\n".join(map(_event, EVENTS)),
    )


def example(event_type: str) -> str:
    """A whole CloudEvent, as indented JSON."""
    return json.dumps(samples.event(event_type), indent=2, ensure_ascii=False)


def filled(template: Path, **parts: object) -> str:
    """The text of a template, with these parts in their places."""
    return template.read_text(encoding="utf-8").format(**{key: str(part).rstrip("\n") for key, part in parts.items()})


def table(head: list[str], rows: Iterable[list[str]]) -> str:
    """A table in Markdown."""
    return "".join(f"| {' | '.join(row)} |\n" for row in [head, ["---"] * len(head), *rows])


def fields(schema: Schema, path: str = "") -> Iterator[tuple[str, str, bool, str]]:
    """The path of each field of an event's data, its type in words, whether it is required, and its meaning."""
    for name, inner in schema.get("properties", {}).items():
        yield path + name, _in_words(inner), name in schema.get("required", []), inner["description"]
        yield from fields(inner.get("items", {}), f"{path}{name}[].")


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


def _summary(events: Mapping[str, type[EventData]]) -> str:
    rows = (
        [f"[{name}](#{name.lower()})", f"`{published_on(name)}`", f"`{model.routing_key}`", model.description]
        for name, model in events.items()
    )
    return table(["type", "exchange", "routing key", "meaning"], rows)


def _queues() -> str:
    cells = (
        [queue.name, ", ".join(queue.exchanges), ", ".join(queue.routing_keys), queue.dead_letters]
        for queue in BY_NAME.values()
    )
    head = ["queue", "exchanges", "routing keys", "dead-letter queue"]
    return table(head, ([f"`{cell}`" for cell in row] for row in cells))


def _event(name: str) -> str:
    model = EVENTS[name]
    rows = (
        [f"`{path}`", words, "" if required else "optional", meaning]
        for path, words, required, meaning in fields(data_schema(name))
    )
    replies = f" Answer with {' or '.join(model.replies)}." if model.replies else ""
    return f"### {name}\n\n{model.description}{replies}\n\n" + table(["field", "type", "", "meaning"], rows)
