"""The JSON Schemas of the events, generated from the models in events.py."""

from functools import cache
from typing import Any

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode

from order_service.contract.envelope import MAX_SHORT_STRING_BYTES, SOURCE, schema_name
from order_service.contract.events import EVENTS, INCOMING, OUTGOING

Schema = dict[str, Any]
ORDER_ID = "The order's id, as text."


class UntitledFields(GenerateJsonSchema):
    """Omits pydantic's title of each field, which only repeats the field's name."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


@cache
def data_schema(event_type: str) -> Schema:
    """The self-contained JSON Schema of an event's data: what is accepted if incoming, guaranteed if outgoing."""
    model = EVENTS[event_type]
    mode: JsonSchemaMode = "validation" if event_type in INCOMING else "serialization"
    generated = model.model_json_schema(mode=mode, schema_generator=UntitledFields)
    labels = {"title": event_type, "description": model.description}
    head: Schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": schema_name(event_type), **labels}
    body: Schema = _inlined(generated, generated.pop("$defs", {}))
    return head | body | labels


def _inlined(schema: Any, definitions: Schema) -> Any:
    """The schema with each reference replaced by its definition."""
    if isinstance(schema, list):
        return [_inlined(each, definitions) for each in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return _inlined(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    return {name: _inlined(value, definitions) for name, value in schema.items()}


def event_schema(event_type: str) -> Schema:
    """The JSON Schema of a whole CloudEvent."""
    is_outgoing, name = event_type in OUTGOING, schema_name(event_type)
    properties: Schema = {
        "specversion": {"const": "1.0"},
        "id": text("Events with the same id are duplicates.", minLength=1, maxLength=MAX_SHORT_STRING_BYTES),
        "source": {"const": SOURCE} if is_outgoing else text("The sending service, such as /menu-service."),
        "type": {"const": event_type},
        "subject": text(ORDER_ID),
        "time": text("When it happened.", format="date-time"),
        "datacontenttype": {"const": "application/json"},
        "dataschema": {"const": name} if is_outgoing else text(f"{name}; if absent, the current version."),
        "correlationid": text(ORDER_ID),
        "traceparent": text("W3C trace context, as the client sent it; a reply may continue it."),
        "tracestate": text("The tracestate that belongs to traceparent."),
        "data": {key: value for key, value in data_schema(event_type).items() if not key.startswith("$")},
    }
    required = ["specversion", "id", "source", "type", "data"]
    if is_outgoing:
        required += ["time", "datacontenttype", "dataschema"]
    if is_outgoing and "order_id" in EVENTS[event_type].model_fields:
        description = "The order's version in ten digits: a text that sorts as the events of the order do."
        properties["sequence"] = text(description, pattern="^[0-9]{10}$")
        required += ["subject", "correlationid", "sequence"]
    return {"type": "object", "required": required, "properties": properties}


def text(description: str, **constraints: Any) -> Schema:
    return {"type": "string", "description": description, **constraints}
