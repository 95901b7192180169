"""docs/events.md, printed from the contract, and the tables that the page at /asyncapi shows as well."""

from collections.abc import Iterable, Iterator

from order_service.contract.asyncapi import ANSWERS, EVENTS, Schema, data_schema
from order_service.contract.events import INCOMING, OUTGOING
from order_service.contract.topology import EXCHANGE, QUEUES

INTRO = f"""# The events

Everything the Order Service says and hears on the topic exchange `{EXCHANGE}`. This page is printed from the code and
not written by hand: `python -m order_service events page > docs/events.md`. How to implement a sibling, and what the
envelope around this data looks like: [siblings.md](siblings.md). The same for machines: `/asyncapi.json`, and a JSON
Schema for each event under [schemas](schemas).
"""


def events_page() -> str:
    """The whole page, ending with a newline."""
    parts = [INTRO, "## What we send\n", _summary(list(OUTGOING)), "## What we take\n", _summary(list(INCOMING))]
    parts += ["## Our queues\n", _queues(), "## Their data\n", *map(_event, EVENTS)]
    return "\n".join(parts)


def table(head: list[str], rows: Iterable[list[str]]) -> str:
    """A table in Markdown."""
    return "".join(f"| {' | '.join(row)} |\n" for row in [head, ["---"] * len(head), *rows])


def fields(schema: Schema, path: str = "") -> Iterator[tuple[str, str, bool]]:
    """Name, type in words, and whether it must be there, of every field; those of a list's entries after the list."""
    for name, inner in schema.get("properties", {}).items():
        yield path + name, in_words(inner), name in schema.get("required", [])
        yield from fields(inner.get("items", {}), f"{path}{name}[].")


def in_words(schema: Schema) -> str:
    """What a value may be, for people."""
    if "anyOf" in schema:
        return " or ".join(map(in_words, schema["anyOf"]))
    if "enum" in schema:
        return " or ".join(f"`{each}`" for each in schema["enum"])
    if schema.get("format") == "date-time":
        return "time, RFC 3339 in UTC"
    if schema["type"] == "array":
        inner = schema["items"]
        of = "objects" if inner["type"] == "object" else f"{in_words(inner)}s"
        return f"list of {of}" + (f", at most {schema['maxItems']}" if "maxItems" in schema else "")
    types = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    limit = f" of at most {schema['maxLength']} characters" if "maxLength" in schema else ""
    words = " or ".join(f"text{limit}" if each == "string" else str(each) for each in types)
    return f"{words}, {schema['description']}" if "description" in schema else words


def _summary(names: list[str]) -> str:
    rows = ([f"[{name}](#{name.lower()})", f"`{EVENTS[name].routing_key}`", EVENTS[name].says] for name in names)
    return table(["type", "routing key", "what it says"], rows)


def _queues() -> str:
    rows = ([queue.name, ", ".join(queue.routing_keys), queue.dead_letters] for queue in QUEUES)
    return table(["queue", "bound to", "dead letters"], ([f"`{cell}`" for cell in row] for row in rows))


def _event(name: str) -> str:
    rows = ([f"`{path}`", words, "" if must else "may be absent"] for path, words, must in fields(data_schema(name)))
    answers = f" To be answered with {' or '.join(ANSWERS[name])}." if name in ANSWERS else ""
    return f"### {name}\n\n{EVENTS[name].says}{answers}\n\n" + table(["field", "type", ""], rows)
