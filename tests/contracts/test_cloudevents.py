"""The CloudEvents SDK writes events that the service reads, in both modes, and reads the service's own."""

import json
from pathlib import Path
from typing import Any

import pytest
from cloudevents.core.bindings import amqp, rabbitmq
from cloudevents.core.v1.event import CloudEvent

from order_service.contract import events, samples
from order_service.contract.envelope import CONTENT_TYPE, Delivery, Rejection, read

HERE = Path(__file__).parent


def cloud_event(event_type: str, data: Any = None, **attributes: Any) -> CloudEvent:
    """A sample event as a program with the SDK makes it; the SDK sets `time`."""
    required = {"type": event_type, "source": "/sibling", "id": "ce-1", "specversion": "1.0"}
    return CloudEvent(required | attributes, data or samples.DATA[event_type])


def in_amqp(message: amqp.AMQPMessage) -> Delivery:
    properties = {"content_type": message.properties.get("content-type"), "headers": message.application_properties}
    return delivery(message.application_data, **properties)


def with_colons(message: amqp.AMQPMessage) -> Delivery:
    headers = {name.replace("_", ":"): value for name, value in message.application_properties.items()}
    return delivery(message.application_data, content_type="application/json", headers=headers)


def in_rabbitmq(message: rabbitmq.RabbitMQMessage) -> Delivery:
    return delivery(message.body, content_type=message.content_type, headers=message.headers)


def delivery(body: bytes, **properties: Any) -> Delivery:
    """A message whose routing key implies another type than its attributes name."""
    given = {name: value for name, value in properties.items() if value is not None}
    return Delivery("order-service.menu", "menu.rejected", body, {"message_id": "amqp-1"} | given)


MODES = {
    "structured": lambda event: in_amqp(amqp.to_structured_event(event)),
    "binary": lambda event: in_amqp(amqp.to_binary_event(event)),
    "binary with colons": lambda event: with_colons(amqp.to_binary_event(event)),
    "structured for RabbitMQ": lambda event: in_rabbitmq(rabbitmq.to_structured_event(event)),
    "binary for RabbitMQ": lambda event: in_rabbitmq(rabbitmq.to_binary_event(event)),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("event_type", events.INCOMING)
def test_an_event_written_by_the_sdk_is_read_in_every_mode(event_type: str, mode: str) -> None:
    expected = events.INCOMING[event_type].model_validate(samples.DATA[event_type]).to_message()

    reply = read(MODES[mode](cloud_event(event_type, datacontenttype="application/json")))

    assert (reply.type, reply.message_id, reply.message) == (event_type, "ce-1", expected)


@pytest.mark.parametrize("mode", MODES)
def test_data_written_as_bytes_is_read_in_every_mode(mode: str) -> None:
    data = json.dumps(samples.DATA["PaymentCompleted"]).encode()
    event = cloud_event("PaymentCompleted", data, datacontenttype="application/octet-stream")

    assert read(MODES[mode](event)).message == read(MODES[mode](cloud_event("PaymentCompleted"))).message


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("attributes", "code", "field"),
    [
        ({"type": "com.example.StockCounted"}, "unknown_type", "type"),
        ({"dataschema": "urn:restaurant:schema:MenuReserved:2"}, "newer_version", "dataschema"),
        ({"id": "x" * 256}, "invalid", "id"),
    ],
    ids=["type", "dataschema", "id"],
)
def test_an_attribute_decides_in_every_mode(mode: str, attributes: dict[str, str], code: str, field: str) -> None:
    event = cloud_event("MenuReserved", **attributes)

    with pytest.raises(Rejection) as raised:
        read(MODES[mode](event))

    assert (raised.value.code, [error.field for error in raised.value.errors]) == (code, [field])


@pytest.mark.parametrize("event_type", events.OUTGOING)
def test_the_sdk_reads_every_event_of_the_service(event_type: str) -> None:
    body = (HERE / f"{event_type}.json").read_bytes()

    event = amqp.from_amqp_event(amqp.AMQPMessage({"content-type": CONTENT_TYPE}, {}, body))

    assert (event.get_type(), event.get_data()) == (event_type, json.loads(body)["data"])
