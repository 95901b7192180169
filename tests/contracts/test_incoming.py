"""The golden sample of each incoming event, and the message it is decoded to."""

import json
from decimal import Decimal
from pathlib import Path

import pytest

from order_service.contract import events
from order_service.contract.envelope import Delivery, Reply, read
from order_service.domain.messages import Item, Message, PaymentRefunded, StockReleased
from tests.builders import KWETIAU, menu_rejected, menu_reserved, payment_completed, payment_failed

HERE = Path(__file__).parent
DECODED: dict[str, Message] = {
    "MenuReserved": menu_reserved("R1", Item(1, "Nasi Ayam Bakar", Decimal("17999.5"), 13), KWETIAU),
    "MenuRejected": menu_rejected("out_of_stock", 2),
    "StockReleased": StockReleased("9b3e4a35-7a62-5b0c-8d55-0d1a5d0c7a01"),
    "PaymentCompleted": payment_completed("41", 55999),
    "PaymentFailed": payment_failed("kartu ditolak"),
    "PaymentRefunded": PaymentRefunded("5c1b39c0-52f4-5f6e-9a43-d1a8a7f4b902"),
}


def test_every_event_has_a_golden_sample() -> None:
    assert {path.stem for path in HERE.glob("*.json")} == events.EVENTS.keys()
    assert DECODED.keys() == events.INCOMING.keys()


@pytest.mark.parametrize("event_type", DECODED)
def test_an_incoming_golden_sample_is_decoded_in_its_envelope_and_bare(event_type: str) -> None:
    body = (HERE / f"{event_type}.json").read_bytes()
    event = json.loads(body)
    data, routing_key = json.dumps(event["data"]).encode(), events.INCOMING[event_type].routing_key
    enveloped = Delivery("order-service.any", "any.key", body)
    bare = Delivery("order-service.any", routing_key, data, {"message_id": "m-1"})

    replies = read(enveloped), read(bare)

    assert replies == (
        Reply(event["id"], 7, event_type, DECODED[event_type], enveloped),
        Reply("m-1", 7, event_type, DECODED[event_type], bare),
    )
