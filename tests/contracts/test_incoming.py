"""The golden sample of each incoming event, and the message it is decoded to."""

import json
from decimal import Decimal
from pathlib import Path

import pytest

from order_service.contract import events
from order_service.contract.envelope import Delivery, Reply, read
from order_service.domain.messages import (
    Item,
    MenuRejected,
    MenuReserved,
    Message,
    PaymentCompleted,
    PaymentFailed,
    PaymentRefunded,
    StockReleased,
)

HERE = Path(__file__).parent
ITEMS = (Item(2, "Kwetiau Goreng", Decimal(20000), 6), Item(1, "Nasi Ayam Bakar", Decimal("17999.5"), 13))
DECODED: dict[str, Message] = {
    "MenuReserved": MenuReserved(ITEMS, "R1"),
    "MenuRejected": MenuRejected("out_of_stock", 2),
    "StockReleased": StockReleased("9b3e4a35-7a62-5b0c-8d55-0d1a5d0c7a01"),
    "PaymentCompleted": PaymentCompleted("41", Decimal(55999)),
    "PaymentFailed": PaymentFailed("kartu ditolak"),
    "PaymentRefunded": PaymentRefunded("5c1b39c0-52f4-5f6e-9a43-d1a8a7f4b902"),
}


def golden(event_type: str) -> bytes:
    return (HERE / f"{event_type}.json").read_bytes()


def test_every_incoming_event_has_a_golden_sample() -> None:
    assert DECODED.keys() == events.INCOMING.keys()


def test_every_golden_sample_is_of_a_known_event() -> None:
    assert {path.stem for path in HERE.glob("*.json")} == {*events.INCOMING, *events.OUTGOING}


@pytest.mark.parametrize("event_type", DECODED)
def test_an_incoming_golden_sample_is_decoded(event_type: str) -> None:
    body = golden(event_type)

    delivery = Delivery("order-service.any", "any.key", body)

    reply = read(delivery)

    assert reply == Reply(json.loads(body)["id"], 7, event_type, DECODED[event_type], delivery)


@pytest.mark.parametrize("event_type", DECODED)
def test_its_data_without_an_envelope_is_decoded_to_the_same_message(event_type: str) -> None:
    data = json.dumps(json.loads(golden(event_type))["data"]).encode()

    delivery = Delivery("order-service.any", events.INCOMING[event_type].routing_key, data, {"message_id": "m-1"})

    reply = read(delivery)

    assert reply == Reply("m-1", 7, event_type, DECODED[event_type], delivery)


@pytest.mark.parametrize("event_type", DECODED)
def test_a_golden_sample_is_a_whole_cloudevent(event_type: str) -> None:
    event = json.loads(golden(event_type))

    assert {"specversion", "id", "source", "type", "time", "data"} <= event.keys()
    assert (event["specversion"], event["type"]) == ("1.0", event_type)
