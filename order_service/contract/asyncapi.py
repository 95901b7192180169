"""The AsyncAPI 3 document, generated from events.py and topology.py.

https://www.asyncapi.com/docs/reference/specification/v3.0.0
"""

from collections.abc import Iterable
from functools import cache

from order_service.contract import samples
from order_service.contract.envelope import APP_ID, CONTENT_TYPE, MAX_BODY_BYTES, SCHEMA_VERSION
from order_service.contract.events import EVENTS, OUTGOING
from order_service.contract.schemas import ORDER_ID, Schema, event_schema, text
from order_service.contract.topology import BY_NAME, EXCHANGE, MENU_EXCHANGE, MENU_HTTP, PAYMENT_EXCHANGE, published_on

_NOT_MANDATORY = [name for name, model in OUTGOING.items() if not model.mandatory]
#: How the events that the service publishes are delivered.
DELIVERY = f"""Published events are persistent and confirmed. Most are mandatory: they are retried while no queue is
bound to their routing key. {", ".join(_NOT_MANDATORY[:-1])} and {_NOT_MANDATORY[-1]} are not mandatory:
they are dropped if no queue is bound."""
#: Who publishes where.
EXCHANGES = f"""Each publisher has a durable topic exchange of its own: the Order Service publishes to
`{EXCHANGE}`, the Menu Service to `{MENU_EXCHANGE}`, the Payment Service to `{PAYMENT_EXCHANGE}`.
Replies on `{EXCHANGE}` are accepted too, but a broker with rights lets only the Order Service publish there."""
DESCRIPTION = f"""The events of the Order Service, in RabbitMQ. {EXCHANGES}
Every message is a CloudEvent 1.0 in structured JSON (`{CONTENT_TYPE}`).
{DELIVERY}
Delivery is at least once and in no guaranteed order: process an event once for each `id`, and send the same
reply to a duplicate. Ignore unknown fields, as the Order Service does.

A sibling may also publish in CloudEvents' binary mode: the attributes in headers that start with `cloudEvents:`,
`cloudEvents_` or `ce-`, the data as the body. Or it publishes the bare `data` object without attributes, for example by
hand from RabbitMQ's management console. The event's type is then the AMQP `type` if that is the name of an event, or is
derived from the routing key; its id is the AMQP `message_id`, or is derived from its content.

A body has at most {MAX_BODY_BYTES} bytes. A message that cannot be processed goes to a dead-letter queue with the
reason in its headers, and MessageRejected reports it to its sender."""


@cache
def document() -> Schema:
    """The AsyncAPI document: the events the service publishes and consumes, their channels and the server."""
    return {
        "asyncapi": "3.0.0",
        "info": {"title": "Order Service events", "version": f"{SCHEMA_VERSION}.0.0", "description": DESCRIPTION},
        "defaultContentType": CONTENT_TYPE,
        "servers": {
            "rabbitmq": {
                "host": "localhost:5672",
                "protocol": "amqp",
                "protocolVersion": "0-9-1",
                "description": "RabbitMQ 3.10 or later, at RABBITMQ_URL.",
            }
        },
        "channels": {model.routing_key: _event_channel(name) for name, model in EVENTS.items()}
        | {name: _queue_channel(name) for name in BY_NAME},
        "operations": {f"{_action(name)}{name}": _operation(name) for name in EVENTS},
        "components": {"messages": {name: _message(name) for name in EVENTS}},
    }


def _action(event_type: str) -> str:
    return "send" if event_type in OUTGOING else "receive"


def _event_channel(event_type: str) -> Schema:
    exchange = {"name": published_on(event_type), "type": "topic", "durable": True, "autoDelete": False, "vhost": "/"}
    return {
        "address": EVENTS[event_type].routing_key,
        "title": event_type,
        "description": "The address is the routing key.",
        "messages": _messages([event_type]),
        "bindings": {"amqp": {"is": "routingKey", "exchange": exchange, "bindingVersion": "0.3.0"}},
    }


def _queue_channel(name: str) -> Schema:
    queue = BY_NAME[name]
    binding = {"name": name, "durable": True, "exclusive": False, "autoDelete": False, "vhost": "/"}
    return {
        "address": name,
        "description": f"A queue of the Order Service, bound to {', '.join(queue.routing_keys)}. A message that cannot "
        f"be processed goes to {queue.dead_letters}. Publish to {queue.publisher}, not to this queue."
        + (" It exists only if MENU_SERVICE_URL is set." if queue is MENU_HTTP else ""),
        "messages": _messages(each for each in EVENTS if each in queue.accepts),
        "bindings": {"amqp": {"is": "queue", "queue": binding, "bindingVersion": "0.3.0"}},
        "x-queue-arguments": queue.arguments,
    }


def _messages(names: Iterable[str]) -> Schema:
    return {name: {"$ref": f"#/components/messages/{name}"} for name in names}


def _operation(event_type: str) -> Schema:
    model, is_outgoing = EVENTS[event_type], event_type in OUTGOING
    binding = {"deliveryMode": 2, "mandatory": model.mandatory, "timestamp": True} if is_outgoing else {"ack": True}
    operation: Schema = {
        "action": _action(event_type),
        "summary": model.description,
        **_on_channel(model.routing_key, [event_type]),
        "bindings": {"amqp": {**binding, "bindingVersion": "0.3.0"}},
    }
    if model.replies:
        [queue] = [queue for queue in BY_NAME.values() if queue.accepts.issuperset(model.replies)]
        operation["reply"] = _on_channel(queue.name, model.replies)
    return operation


def _on_channel(name: str, event_types: Iterable[str]) -> Schema:
    channel = f"#/channels/{name}"
    return {"channel": {"$ref": channel}, "messages": [{"$ref": f"{channel}/messages/{each}"} for each in event_types]}


def _message(event_type: str) -> Schema:
    return {
        "name": event_type,
        "title": event_type,
        "summary": EVENTS[event_type].description,
        "contentType": CONTENT_TYPE,
        "correlationId": {"location": "$message.payload#/correlationid", "description": ORDER_ID},
        "headers": {
            "type": "object",
            "properties": {
                name: text("W3C trace context, the same as in the envelope.") for name in ("traceparent", "tracestate")
            },
        },
        "payload": event_schema(event_type),
        "bindings": {"amqp": {"messageType": event_type, "bindingVersion": "0.3.0"}},
        "examples": [{"name": event_type, "payload": samples.event(event_type)}],
        "x-amqp-properties": {
            "type": event_type,
            "message_id": "the event's id",
            "correlation_id": "the order's id, as text",
            "app_id": APP_ID if event_type in OUTGOING else "the name of the sending service",
            "timestamp": "seconds since 1970",
            "content_type": CONTENT_TYPE,
            "delivery_mode": 2,
        },
    }
