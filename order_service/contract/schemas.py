"""The JSON Schemas of the events, generated from the models in events.py."""

from copy import deepcopy
from functools import cache
from typing import Any

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode

from order_service.contract.envelope import MAX_SHORT_STRING_BYTES, SOURCE, schema_name
from order_service.contract.events import EVENTS, INCOMING, OUTGOING

Schema = dict[str, Any]
ORDER_ID = "The order's id, as text."


#: What each field means, by its name; where that differs, by the title of its object and its name.
MEANINGS = {
    "order_id": "The order.",
    "user_id": "The user who placed the order.",
    "menu_ids": "The dishes as they were ordered, with repeats.",
    "lines": "Each distinct dish of the order, with its quantity.",
    "menu_id": "The dish.",
    "quantity": "How many portions of the dish were ordered.",
    "created_at": "When the order was placed.",
    "reply_by": "When the order expires unless the menu has replied.",
    "amount": "How much to charge, in rupiah.",
    "PaymentCompleted.amount": "How much was charged, in rupiah.",
    "RefundRequested.amount": "How much to refund, in rupiah; null if it is not known: then all that was paid.",
    "pay_by": "When the order expires unless it is paid.",
    "total_price": "The sum of the prices, in rupiah.",
    "payment_id": "The payment, as the Payment Service names it.",
    "OrderPaid.payment_id": "The payment, as the Payment Service names it; null if it has no name.",
    "RefundRequested.payment_id": "The payment to refund; null: everything paid for the order.",
    "paid_at": "When the order became paid.",
    "reason": "Why it is requested.",
    "OrderFailed.reason": "Why the order failed, for programs.",
    "MenuRejected.reason": "Why the order cannot be served.",
    "PaymentFailed.reason": "Why the payment failed, for people.",
    "detail": "Why the order failed, for people.",
    "release_id": "The request to release, which the confirmation repeats.",
    "refund_id": "The request to refund, which the confirmation repeats.",
    "reservation_id": "The reservation, as the Menu Service names it.",
    "StockReleaseRequested.reservation_id": "The reservation to release; null: all stock held for the order.",
    "items": "Each distinct dish of the order, as it is reserved.",
    "id": "The dish.",
    "name": "The dish's name.",
    "price": "The price of one portion, in rupiah.",
    "stock": "How many portions are left after the reservation.",
    "message_id": "The id of the rejected message, if it has one.",
    "type": "The type of the rejected message, if it is known.",
    "errors": "What is wrong with the rejected message.",
    "field": "The path of the wrong field.",
    "problem": "What the field must be.",
    "received_at": "When the message was rejected.",
}


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
    body: Schema = _inlined(generated, generated.pop("$defs", {})) | labels
    _describe(body)
    return head | body


def _describe(schema: Schema) -> None:
    """Give each field of an object, and of the objects in it, its meaning; a description it has is appended."""
    for name, field in schema.get("properties", {}).items():
        meaning = MEANINGS.get(f"{schema['title']}.{name}") or MEANINGS[name]
        field["description"] = f"{meaning} {field['description'].capitalize()}." if "description" in field else meaning
        _describe(field.get("items", {}))


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
    if is_outgoing:
        sender, version = constant(SOURCE, "The sending service."), constant(name, "The schema of data.")
    else:
        sender = text("The sending service, such as /menu-service.")
        version = text(f"{name}; if absent, the current version.")
    properties: Schema = {
        "specversion": constant("1.0", "The version of CloudEvents."),
        "id": text("Events with the same id are duplicates.", minLength=1, maxLength=MAX_SHORT_STRING_BYTES),
        "source": sender,
        "type": constant(event_type, "The event's type."),
        "subject": text(ORDER_ID),
        "time": text("When it happened.", format="date-time"),
        "datacontenttype": constant("application/json", "The format of data."),
        "dataschema": version,
        "correlationid": text(ORDER_ID),
        "traceparent": text("W3C trace context, as the client sent it; a reply may continue it."),
        "tracestate": text("The tracestate that belongs to traceparent."),
        "data": {key: deepcopy(value) for key, value in data_schema(event_type).items() if not key.startswith("$")},
    }
    for field, schema in properties.items():
        _name_model(schema, event_type + field.capitalize())
    required = ["specversion", "id", "source", "type", "data"]
    if is_outgoing:
        required += ["time", "datacontenttype", "dataschema"]
    if is_outgoing and "order_id" in EVENTS[event_type].model_fields:
        description = "The order's version in ten digits: a text that sorts as the events of the order do."
        properties["sequence"] = text(description, pattern="^[0-9]{10}$")
        required += ["subject", "correlationid", "sequence"]
    return {"title": event_type, "type": "object", "required": required, "properties": properties}


def _name_model(schema: Schema, title: str) -> None:
    """Title the schemas of which code generators make a type, where they have no title or the envelope's."""
    if {"properties", "enum", "const", "anyOf", "items"} & schema.keys():
        schema["title"] = title if "properties" not in schema or title.endswith("Data") else schema.get("title", title)
    for name, field in schema.get("properties", {}).items():
        _name_model(field, title.removesuffix("Data") + "".join(map(str.capitalize, name.split("_"))))
    if "items" in schema:
        _name_model(schema["items"], f"{title}Entry")


def text(description: str, **constraints: Any) -> Schema:
    return {"type": "string", "description": description, **constraints}


def constant(value: str, description: str) -> Schema:
    return {"const": value, "description": description}
