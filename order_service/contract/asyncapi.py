"""The contract as documents: a JSON Schema for each event, and the AsyncAPI 3 document that ties them to the broker.

Pure, and made from events.py and topology.py alone, so they cannot say anything else than the code does.
https://www.asyncapi.com/docs/reference/specification/v3.0.0
"""

from functools import cache
from typing import Any

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode

from order_service.contract import samples
from order_service.contract.envelope import (
    APP_ID,
    CONTENT_TYPE,
    MAX_BODY_BYTES,
    MAX_MESSAGE_ID_BYTES,
    SCHEMA_VERSION,
    SOURCE,
    schema_name,
)
from order_service.contract.events import INCOMING, OUTGOING
from order_service.contract.topology import EXCHANGE, QUEUES, Queue, arguments

Schema = dict[str, Any]
EVENTS = OUTGOING | INCOMING
#: What we ask, and what may be answered.
ANSWERS = {
    "OrderCreated": ("MenuReserved", "MenuRejected"),
    "PaymentRequested": ("PaymentCompleted", "PaymentFailed"),
    "StockReleaseRequested": ("StockReleased",),
    "RefundRequested": ("PaymentRefunded",),
}
ABOUT = f"""The events of the Order Service, on the durable topic exchange `{EXCHANGE}`.
Every message is a CloudEvent 1.0 in structured JSON (`{CONTENT_TYPE}`), persistent, published mandatory and confirmed.
It comes at least once, and in no certain order: apply an event once for its `id`, and answer a repeat again. Ignore
fields you do not know, as we do.

From siblings we also take the bare `data` object without an envelope, as it is published by hand from RabbitMQ's
console: its type is then the AMQP `type` or else follows from the routing key, its id the AMQP `message_id` or else
follows from its content. A body holds at most {MAX_BODY_BYTES} bytes. What we cannot use goes to a dead-letter queue
with the reason in its headers, and MessageRejected tells its sender."""


class _Plain(GenerateJsonSchema):
    """pydantic's schemas without a title for every field, which only repeats its name."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


@cache
def data_schema(event_type: str) -> Schema:
    """The JSON Schema of an event's data: what we accept of an incoming one, what we promise of an outgoing one."""
    model = EVENTS[event_type]
    mode: JsonSchemaMode = "validation" if event_type in INCOMING else "serialization"
    made = model.model_json_schema(mode=mode, schema_generator=_Plain)
    about = {"title": event_type, "description": model.says}
    head: Schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": schema_name(event_type), **about}
    head.update(_inlined(made, made.pop("$defs", {})), **about)
    return head


def _inlined(schema: Any, shared: Schema) -> Any:
    """The schema with references replaced by what they name: it can be read, copied and embedded as it stands."""
    if isinstance(schema, list):
        return [_inlined(each, shared) for each in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return _inlined(shared[schema["$ref"].rpartition("/")[2]], shared)
    # AsyncAPI has a discriminator of its own, a text, and refuses OpenAPI's object.
    return {name: _inlined(value, shared) for name, value in schema.items() if name != "discriminator"}


def event_schema(event_type: str) -> Schema:
    """The JSON Schema of a whole CloudEvent."""
    outgoing, of_order = event_type in OUTGOING, event_type != "MessageRejected"
    schema = schema_name(event_type)
    properties: Schema = {
        "specversion": {"const": "1.0"},
        "id": _text("The same id means the same event.", minLength=1, maxLength=MAX_MESSAGE_ID_BYTES),
        "source": {"const": SOURCE} if outgoing else _text("Who sends it, such as /menu-service."),
        "type": {"const": event_type},
        "subject": _text("The order's id, as text."),
        "time": _text("When it happened.", format="date-time"),
        "datacontenttype": {"const": "application/json"},
        "dataschema": {"const": schema} if outgoing else _text(f"{schema}; absent means the current version."),
        "correlationid": _text("The order's id, as text."),
        "traceparent": _text("W3C trace context; an answer may continue it."),
        "data": {name: value for name, value in data_schema(event_type).items() if not name.startswith("$")},
    }
    required = ["specversion", "id", "source", "type", "data"]
    if outgoing:
        required += ["time", "datacontenttype", "dataschema"]
    if outgoing and of_order:
        about = "The order's version, which puts its events in order."
        properties["sequence"] = {"type": "integer", "minimum": 1, "description": about}
        required += ["subject", "correlationid", "sequence"]
    return {"type": "object", "required": required, "properties": properties}


def _text(description: str, **more: Any) -> Schema:
    return {"type": "string", "description": description, **more}


@cache
def document() -> Schema:
    """The AsyncAPI document: what we send, what we receive, and over what."""
    return {
        "asyncapi": "3.0.0",
        "info": {"title": "Order Service events", "version": f"{SCHEMA_VERSION}.0.0", "description": ABOUT},
        "defaultContentType": CONTENT_TYPE,
        "servers": {
            "rabbitmq": {
                "host": "localhost:5672",
                "protocol": "amqp",
                "protocolVersion": "0-9-1",
                "description": "RabbitMQ 3.10 or later; RABBITMQ_URL names it.",
            }
        },
        "channels": {_channel_name(name): _event_channel(name) for name in EVENTS}
        | {queue.name: _queue_channel(queue) for queue in QUEUES},
        "operations": {_operation_name(name): _operation(name) for name in EVENTS},
        "components": {"messages": {name: _message(name) for name in EVENTS}},
    }


def _channel_name(event_type: str) -> str:
    return EVENTS[event_type].routing_key


def _operation_name(event_type: str) -> str:
    return f"{'send' if event_type in OUTGOING else 'receive'}{event_type}"


def _event_channel(event_type: str) -> Schema:
    exchange = {"name": EXCHANGE, "type": "topic", "durable": True, "autoDelete": False, "vhost": "/"}
    return {
        "address": EVENTS[event_type].routing_key,
        "title": event_type,
        "description": "The address is the routing key.",
        "messages": _messages([event_type]),
        "bindings": {"amqp": {"is": "routingKey", "exchange": exchange, "bindingVersion": "0.3.0"}},
    }


def _queue_channel(queue: Queue) -> Schema:
    names = [name for name, model in INCOMING.items() if model.routing_key in queue.routing_keys]
    what = {"name": queue.name, "durable": True, "exclusive": False, "autoDelete": False, "vhost": "/"}
    return {
        "address": queue.name,
        "description": f"Our queue, bound to {', '.join(queue.routing_keys)}; what cannot be used is in "
        f"{queue.dead_letters}. Publish to {EXCHANGE}, not here.",
        "messages": _messages(names),
        "bindings": {"amqp": {"is": "queue", "queue": what, "bindingVersion": "0.3.0"}},
        "x-queue-arguments": arguments(queue),
    }


def _messages(names: list[str]) -> Schema:
    return {name: {"$ref": f"#/components/messages/{name}"} for name in names}


def _operation(event_type: str) -> Schema:
    outgoing = event_type in OUTGOING
    sending = {"deliveryMode": 2, "mandatory": True, "timestamp": True}
    channel = f"#/channels/{_channel_name(event_type)}"
    operation: Schema = {
        "action": "send" if outgoing else "receive",
        "summary": EVENTS[event_type].says,
        "channel": {"$ref": channel},
        "messages": [{"$ref": f"{channel}/messages/{event_type}"}],
        "bindings": {"amqp": {**(sending if outgoing else {"ack": True}), "bindingVersion": "0.3.0"}},
    }
    if answers := ANSWERS.get(event_type):
        [queue] = [queue for queue in QUEUES if INCOMING[answers[0]].routing_key in queue.routing_keys]
        channel = f"#/channels/{queue.name}"
        messages = [{"$ref": f"{channel}/messages/{answer}"} for answer in answers]
        operation["reply"] = {"channel": {"$ref": channel}, "messages": messages}
    return operation


def _message(event_type: str) -> Schema:
    model = EVENTS[event_type]
    example = samples.event(event_type, id="f3d1c2a1-5f0e-4b59-9d0c-2d3c6f5b7e10")
    trace = {"traceparent": _text("W3C trace context, as in the envelope.")}
    return {
        "name": event_type,
        "title": event_type,
        "summary": model.says,
        "contentType": CONTENT_TYPE,
        "correlationId": {"location": "$message.payload#/correlationid", "description": "The order's id, as text."},
        "headers": {"type": "object", "properties": trace},
        "payload": event_schema(event_type),
        "bindings": {"amqp": {"messageType": event_type, "bindingVersion": "0.3.0"}},
        "examples": [{"name": event_type, "payload": example}],
        "x-amqp-properties": {
            "type": event_type,
            "message_id": "the event's id",
            "correlation_id": "the order's id, as text",
            "app_id": APP_ID if event_type in OUTGOING else "your service's name",
            "timestamp": "seconds since 1970",
            "content_type": CONTENT_TYPE,
            "delivery_mode": 2,
        },
    }
