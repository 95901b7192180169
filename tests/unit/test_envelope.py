"""The tolerant reader: what it accepts, what it rejects and why, and that it never fails in any other way."""

import gzip
import json
import os
import random
from base64 import b64encode
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from hashlib import sha256
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from order_service.contract import events
from order_service.contract.envelope import (
    KEPT_BODY_BYTES,
    MAX_BODY_BYTES,
    Delivery,
    Oversized,
    Rejection,
    Reply,
    read,
    schema_name,
    shortened,
    utc_text,
    wrap,
)
from order_service.domain.messages import Message, PaymentCompleted, PaymentRefunded, StockReleased
from tests.builders import NASI_AYAM, event_data, menu_rejected, menu_reserved, payment_completed, payment_failed, reply

#: One valid message of every type, and its data.
VALID: dict[str, Message] = {
    "MenuReserved": menu_reserved("R1", NASI_AYAM),
    "MenuRejected": menu_rejected(),
    "StockReleased": StockReleased("c0ffee"),
    "PaymentCompleted": payment_completed(),
    "PaymentFailed": payment_failed(),
    "PaymentRefunded": PaymentRefunded("c0ffee"),
}
DATA = {name: event_data(reply(7, message)) for name, message in VALID.items()}
RESERVED, COMPLETED, REFUNDED = DATA["MenuReserved"], DATA["PaymentCompleted"], DATA["PaymentRefunded"]
[ITEM] = RESERVED["items"]
AT = datetime(2025, 3, 1, tzinfo=UTC)


def read_bare(document: object, *, routing_key: str = "payment.completed", **properties: object) -> Reply:
    """Read a message without an envelope, as an operator publishes it from the broker's console."""
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    return read(Delivery("order-service.payment", routing_key, body, properties))


def read_enveloped(data: object, *, type: object = "PaymentCompleted", **attributes: object) -> Reply:
    """Read a message in its full envelope; an attribute given as None is absent."""
    event = {"specversion": "1.0", "id": "m-1", "source": "/payment", "type": type, "data": data} | attributes
    return read_bare({name: value for name, value in event.items() if value is not None})


def rejection_of(read_message: Callable[..., Reply], data: object, **options: Any) -> Rejection:
    with pytest.raises(Rejection) as raised:
        read_message(data, **options)
    return raised.value


def code_and_fields(rejected: Rejection) -> tuple[str, list[str]]:
    return rejected.code, [error.field for error in rejected.errors]


def changed(type: str, field: str, value: object) -> dict[str, Any]:
    """A valid message's data with one field changed; `items.0.price` is the price of its item."""
    data = DATA[type]
    if field.startswith("items.0."):
        return data | {"items": [ITEM | {field.removeprefix("items.0."): value}]}
    return data | {field: value}


def payment_of(written: str) -> bytes:
    """A payment whose amount is written in JSON like this."""
    return f'{{"order_id": 7, "payment_id": "P1", "amount": {written}}}'.encode()


# What is accepted.


@pytest.mark.parametrize(
    ("envelope_type", "amqp_type", "expected"),
    [
        ("PaymentRefunded", "PaymentCompleted", "PaymentRefunded"),
        (None, "PaymentRefunded", "PaymentRefunded"),
        (None, None, "PaymentCompleted"),
        (None, "application/json", "PaymentCompleted"),
    ],
    ids=["envelope", "AMQP", "routing key", "AMQP type of a library"],
)
def test_the_type_is_that_of_the_envelope_then_of_amqp_then_of_the_routing_key(
    envelope_type: str | None, amqp_type: str | None, expected: str
) -> None:
    data = COMPLETED | REFUNDED
    event = {"specversion": "1.0", "id": "m-1", "source": "/payment", "type": envelope_type, "data": data}
    documents = [event] if envelope_type else [event, data]

    types = {read_bare(each, routing_key="payment.completed", type=amqp_type).type for each in documents}

    assert types == {expected}


def test_the_message_id_is_that_of_the_envelope_then_of_amqp() -> None:
    event = {"specversion": "1.0", "id": "m-1", "source": "/payment", "type": "PaymentCompleted", "data": COMPLETED}

    assert read_bare(event, message_id="by-hand-1").message_id == "m-1"
    assert read_bare(COMPLETED, message_id="by-hand-1").message_id == "by-hand-1"


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"cloudEvents:type": "PaymentRefunded", "cloudEvents:id": "h-1"}, ("PaymentRefunded", "h-1")),
        ({"ce-type": "PaymentRefunded", "ce-specversion": "1.0"}, ("PaymentRefunded", "by-hand-1")),
        ({"CE-Id": "h-1"}, ("PaymentCompleted", "h-1")),
        ({"ce-traceparent": "00-1", "cloudevents": "x", "ce-": "x", "id": "h-2"}, ("PaymentCompleted", "by-hand-1")),
        ({"ce-type": None, "ce-id": None}, ("PaymentCompleted", "by-hand-1")),
    ],
    ids=["colon", "without an id", "without a type", "no attribute that counts", "null"],
)
def test_attributes_in_headers_precede_the_amqp_properties(
    headers: dict[str, object], expected: tuple[str, str]
) -> None:
    read_one = read_bare(COMPLETED | REFUNDED, headers=headers, message_id="by-hand-1")

    assert (read_one.type, read_one.message_id) == expected


def test_structured_mode_ignores_attributes_in_headers() -> None:
    event = {"specversion": "1.0", "id": "m-1", "source": "/payment", "type": "PaymentCompleted", "data": COMPLETED}
    content_type = "application/CloudEvents+json; charset=utf-8"

    structured = read_bare(event, content_type=content_type, headers={"ce-id": "h-1", "ce-type": "StockCounted"})

    assert (structured.type, structured.message_id) == ("PaymentCompleted", "m-1")


def test_a_message_of_another_type_in_its_headers_is_rejected_by_the_name_it_has_there() -> None:
    headers = {"ce-type": "com.example.StockCounted", "ce-id": "h-1", "ce-specversion": "1.0"}

    for document in (COMPLETED, b"no JSON"):
        rejected = rejection_of(read_bare, document, headers=headers, message_id="amqp-1", type="PaymentCompleted")

        assert rejected.code == ("unknown_type" if document == COMPLETED else "malformed")
        assert (rejected.type, rejected.message_id) == ("com.example.StockCounted", "h-1")


@pytest.mark.parametrize(
    ("encoded", "expected"),
    [
        (b64encode(json.dumps(COMPLETED).encode()).decode(), None),
        ("e30=", ("invalid", ["data.order_id", "data.payment_id", "data.amount"])),
        ("bm8gSlNPTg==", ("malformed", ["data_base64"])),
        ("W10=", ("malformed", ["data_base64"])),
        ("e30", ("invalid", ["data_base64"])),
        ("\u00e9", ("invalid", ["data_base64"])),
        (7, ("invalid", ["data"])),
    ],
    ids=["valid", "empty", "no JSON", "no object", "no padding", "no ASCII", "a number"],
)
def test_data_may_be_in_base64(encoded: object, expected: tuple[str, list[str]] | None) -> None:
    if expected is None:
        assert read_enveloped(None, data_base64=encoded).message == VALID["PaymentCompleted"]
    else:
        assert code_and_fields(rejection_of(read_enveloped, None, data_base64=encoded)) == expected


@pytest.mark.parametrize("encoding", ["gzip", " GZip", "br"])
def test_a_compressed_body_is_rejected_with_its_encoding(encoding: str) -> None:
    body = gzip.compress(json.dumps(COMPLETED).encode())

    rejected = rejection_of(read_bare, body, content_encoding=encoding)

    assert code_and_fields(rejected) == ("malformed", ["content_encoding"])
    assert repr(encoding) in str(rejected)
    assert read_bare(COMPLETED, content_encoding="utf-8").order_id == 7


def test_a_derived_id_is_the_same_for_the_same_content_in_any_order_of_keys() -> None:
    one = read_bare(b'{"order_id": 7, "payment_id": "P1", "amount": 0.1, "note": {"a": [1, 2], "b": null}}')
    other = read_bare(b'{"note":{"b":null,"a":[1,2]},"amount":0.1,\n"payment_id":"P1","order_id":7}')

    assert one.message_id == other.message_id
    assert 0 < len(one.message_id) <= 255


@pytest.mark.parametrize(
    ("change", "type"),
    [
        ({"order_id": 8}, "PaymentCompleted"),
        ({"payment_id": "P2"}, "PaymentCompleted"),
        ({"amount": 56001}, "PaymentCompleted"),
        ({}, "PaymentRefunded"),
    ],
)
def test_a_derived_id_differs_with_the_content_and_the_type(change: dict[str, object], type: str) -> None:
    data = COMPLETED | REFUNDED

    assert read_bare(data).message_id != read_bare(data | change, type=type).message_id


RESERVED_TWO = event_data(reply(7, menu_reserved("41")))


@pytest.mark.parametrize(
    "repeat",
    [
        read_enveloped(RESERVED_TWO, type="MenuReserved", time="2025-03-01T12:00:00Z", source="/elsewhere"),
        read_bare(json.dumps(RESERVED_TWO, indent=4).encode(), type="MenuReserved", message_id="m-1"),
        read_bare(RESERVED_TWO | {"reservation_id": 41, "note": "again"}, type="MenuReserved"),
        read_bare(RESERVED_TWO | {"items": RESERVED_TWO["items"][::-1]}, type="MenuReserved"),
        read_bare(json.dumps(RESERVED_TWO).replace("18000.0", "1.80e4").encode(), type="MenuReserved"),
    ],
    ids=["envelope", "bare", "unknown field", "items in another order", "number"],
)
def test_a_message_of_the_same_meaning_has_the_same_digest(repeat: Reply) -> None:
    assert repeat.digest == read_enveloped(RESERVED_TWO, type="MenuReserved").digest


def test_the_digest_of_a_repeated_answer_does_not_depend_on_the_stock_that_is_left() -> None:
    sold_meanwhile = RESERVED_TWO | {"items": [item | {"stock": 0} for item in RESERVED_TWO["items"]]}

    first, repeat = (read_enveloped(data, type="MenuReserved") for data in (RESERVED_TWO, sold_meanwhile))

    assert repeat.digest == first.digest


def test_the_digest_differs_with_every_value_that_is_read_and_stays_the_same_between_versions() -> None:
    given: list[tuple[str, object]] = [
        ("MenuReserved", RESERVED_TWO),
        ("MenuReserved", RESERVED_TWO | {"reservation_id": "42"}),
        ("MenuReserved", RESERVED_TWO | {"reservation_id": None}),
        ("MenuReserved", RESERVED_TWO | {"items": [item | {"price": 1} for item in RESERVED_TWO["items"]]}),
        ("PaymentCompleted", COMPLETED),
        ("PaymentCompleted", COMPLETED | {"payment_id": "P2"}),
        ("PaymentCompleted", COMPLETED | {"amount": 1}),
    ]

    digests = [read_enveloped(data, type=type).digest for type, data in given]

    assert len(set(digests)) == len(given)
    # The database keeps digests: if another version computed others, repeats would be rejected after an update.
    assert digests[4] == "8509c06dba6534273779574dedfaa839"


@pytest.mark.parametrize("type", VALID)
def test_unknown_fields_and_attributes_are_ignored(type: str) -> None:
    more = DATA[type] | {"note": "new", "nested": {"a": [None, 1.5]}}
    if type == "MenuReserved":
        more |= {"items": [ITEM | {"spicy": True}]}

    assert read_enveloped(more, type=type, futureattribute="x").message == VALID[type]


@pytest.mark.parametrize(
    ("given", "kept"),
    [("R1", "R1"), (12, "12"), (-3, "-3"), ("é" * 100, "é" * 100), (10**99, "1" + "0" * 99)],
    ids=lambda value: str(value)[:9],
)
def test_an_id_of_a_sibling_is_text_or_an_integer_and_kept_as_text(given: object, kept: str) -> None:
    reserved = read_enveloped(RESERVED | {"reservation_id": given}, type="MenuReserved").message
    completed = read_enveloped(COMPLETED | {"payment_id": given}).message

    assert (reserved, completed) == (menu_reserved(kept, NASI_AYAM), payment_completed(kept))


@pytest.mark.parametrize(
    ("type", "data", "message"),
    [
        ("MenuReserved", RESERVED | {"reservation_id": None}, menu_reserved(None, NASI_AYAM)),
        ("MenuReserved", {"order_id": 7, "items": [ITEM]}, menu_reserved(None, NASI_AYAM)),
        ("PaymentFailed", {"order_id": 7, "reason": "card declined"}, payment_failed("card declined")),
    ],
)
def test_a_reservation_and_a_failed_payment_may_have_no_id(type: str, data: object, message: Message) -> None:
    assert read_enveloped(data, type=type).message == message


@pytest.mark.parametrize(
    ("written", "amount"),
    [
        ("0.1", "0.1000"), ("0.10", "0.1000"), ("1e-1", "0.1000"), ("0.1000000", "0.1000"), ("18000", "18000.0000"),
        ("18000.0", "18000.0000"), ("18000.00", "18000.0000"), ("1.8e4", "18000.0000"), ("18E+3", "18000.0000"),
        ('"18000"', "18000.0000"), ('"18000.00"', "18000.0000"), ('"0.1"', "0.1000"), ('"007.10000"', "7.1000"),
        ("0", "0.0000"), ("-0.0", "0.0000"), ("0.0001", "0.0001"), ("99999999999.9999", "99999999999.9999"),
    ],
)  # fmt: skip
def test_an_amount_is_exact_however_it_is_written(written: str, amount: str) -> None:
    message = read_bare(payment_of(written)).message

    assert isinstance(message, PaymentCompleted)
    assert str(message.amount) == amount


def test_an_integer_may_be_written_as_a_fraction_without_a_remainder() -> None:
    body = b"""{"order_id": 7.0, "reservation_id": 41.00,
        "items": [{"id": 1e0, "name": "Nasi Ayam Bakar", "price": 18000.0, "stock": 1.40e1}]}"""

    replied = read_bare(body, type="MenuReserved")

    assert (replied.order_id, replied.message) == (7, menu_reserved("41", NASI_AYAM))


@pytest.mark.parametrize("stock", [{}, {"stock": None}], ids=["absent", "null"])
def test_the_stock_of_a_dish_may_be_unknown(stock: dict[str, None]) -> None:
    item = {"id": 1, "name": "Nasi Ayam Bakar", "price": "18000"} | stock

    message = read_enveloped({"order_id": 7, "reservation_id": "R1", "items": [item]}, type="MenuReserved").message

    assert message == menu_reserved("R1", replace(NASI_AYAM, stock=None))


@pytest.mark.parametrize("order_id", [1, 2**31 - 1])
@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf"], ids=["no mark", "byte order mark"])
def test_order_ids_are_accepted_up_to_their_bounds_and_after_a_byte_order_mark(order_id: int, start: bytes) -> None:
    assert read_bare(start + json.dumps(COMPLETED | {"order_id": order_id}).encode()).order_id == order_id


# What is rejected: the code for programs, the fields for the sibling's team.

NOT_AN_INTEGER: list[object] = ["7", True, 0, -1, 2**31, None, 1.5, 7.5, [7], {}, 10**400]
NOT_A_PRICE: list[object] = ["1e3", True, -1, 10**9, None]
#: Anything but a text or an integer of at most 100 characters.
NOT_AN_ID: list[object] = ["", "x" * 101, 10**100, True, 1.5, [], {}, "a\0b", "\ud800"]
INVALID_VALUES: dict[tuple[str, str], list[object]] = {
    ("PaymentCompleted", "order_id"): NOT_AN_INTEGER,
    ("MenuRejected", "menu_id"): NOT_AN_INTEGER,
    ("MenuReserved", "items.0.id"): NOT_AN_INTEGER,
    ("MenuReserved", "items.0.price"): NOT_A_PRICE,
    ("PaymentCompleted", "payment_id"): NOT_AN_ID,
    ("MenuReserved", "reservation_id"): NOT_AN_ID,
    # PostgreSQL stores no text with a NUL.
    ("PaymentFailed", "reason"): ["a\0b"],
}


@pytest.mark.parametrize(
    ("type", "field", "value"),
    [(type, field, value) for (type, field), values in INVALID_VALUES.items() for value in values],
    ids=lambda value: repr(value)[:20],
)
def test_an_invalid_value_is_rejected_by_the_name_of_its_field(type: str, field: str, value: object) -> None:
    rejected = rejection_of(read_enveloped, changed(type, field, value), type=type)

    assert code_and_fields(rejected) == ("invalid", [f"data.{field}"])


@pytest.mark.parametrize(
    "written",
    [
        '"18.000,00"', '"1e3"', '" 1"', '"+1"', '"-1"', '"1_000"', '"\u0661"', '".5"', '"5."', '""', '"NaN"', '"0.00001"',
        '"100000000000"', "true", "null", "-1", "-0.01", "100000000000", "1e11", "0.00001", "1e400", "1e-400", "[]", "{}",
        "9" * 4000,
    ],
    ids=lambda written: written[:12],
)  # fmt: skip
def test_an_invalid_amount_is_rejected_with_the_order_it_names(written: str) -> None:
    rejected = rejection_of(read_bare, payment_of(written))

    assert (*code_and_fields(rejected), rejected.order_id) == ("invalid", ["data.amount"], 7)


@pytest.mark.parametrize(
    ("type", "change", "problem"),
    [
        ("PaymentCompleted", {"order_id": "7"}, "must be an integer"),
        ("PaymentCompleted", {"order_id": 0}, "must be at least 1"),
        ("PaymentCompleted", {"order_id": 2**31}, "must be at most 2147483647"),
        ("PaymentCompleted", {"amount": True}, "must be a JSON number"),
        (
            "PaymentCompleted",
            {"amount": "18.000,00"},
            "must be a JSON number, or a text of digits with at most one decimal point",
        ),
        ("PaymentCompleted", {"amount": -1}, "must be at least 0"),
        ("PaymentCompleted", {"amount": 10**11}, "must be below 100000000000"),
        ("PaymentCompleted", {"amount": 0.00001}, "must have at most 4 decimals"),
        ("PaymentCompleted", {"payment_id": ""}, "must not be empty"),
        ("PaymentCompleted", {"payment_id": True}, "must be a text"),
        ("PaymentCompleted", {"payment_id": "x" * 101}, "must have at most 100 characters"),
        ("PaymentCompleted", {"payment_id": "a\0b"}, "must not contain the character NUL"),
        ("PaymentCompleted", {"payment_id": "\ud800"}, "must be a text of whole Unicode characters"),
        ("PaymentFailed", {"reason": None}, "must be a text"),
        ("PaymentFailed", {"reason": "x" * 501}, "must have at most 500 characters"),
        ("MenuRejected", {"reason": "sold out"}, "must be 'menu_not_found' or 'out_of_stock'"),
        ("MenuReserved", {"items": {}}, "must be a list"),
        ("MenuReserved", {"items": []}, "must not be empty"),
        ("MenuReserved", {"items": [7]}, "must be a JSON object"),
        ("MenuReserved", {"items": [ITEM] * 101}, "must have at most 100 entries"),
    ],
    ids=repr,
)
def test_an_invalid_field_is_reported_with_its_remedy(type: str, change: dict[str, object], problem: str) -> None:
    [error] = rejection_of(read_enveloped, DATA[type] | change, type=type).errors

    assert error.problem == problem


@pytest.mark.parametrize("type", VALID)
def test_all_missing_fields_are_reported_at_once(type: str) -> None:
    optional = {"reservation_id", "payment_id"} if type in {"MenuReserved", "PaymentFailed"} else set()

    errors = rejection_of(read_enveloped, {}, type=type).errors

    expected = {(f"data.{name}", "is missing") for name in DATA[type].keys() - optional}
    assert {(error.field, error.problem) for error in errors} == expected


@pytest.mark.parametrize(
    "change",
    [
        {"data": COMPLETED | {"amount": "much"}},
        {"data": None},
        {"data": [COMPLETED]},
        {"dataschema": "x:2"},
        {"specversion": "2.0"},
    ],
)
def test_a_rejection_carries_the_id_and_type_of_the_envelope(change: dict[str, object]) -> None:
    rejected = rejection_of(read_enveloped, **{"data": COMPLETED} | change)

    assert (rejected.message_id, rejected.type) == ("m-1", "PaymentCompleted")
    assert rejected.order_id == (7 if rejected.errors[0].field == "data.amount" else None)


@pytest.mark.parametrize("document", [COMPLETED | {"amount": "much"}, b"hello", [], b" " * (MAX_BODY_BYTES + 1)])
def test_a_rejected_bare_message_has_its_type_from_amqp_or_the_routing_key(document: object) -> None:
    rejected = rejection_of(read_bare, document, routing_key="payment.completed", message_id="by-hand-1")
    unknown_key = rejection_of(read_bare, document, routing_key="x")
    amqp_type = rejection_of(read_bare, document, routing_key="payment.done", type="PaymentDone")

    assert (rejected.message_id, rejected.type) == ("by-hand-1", "PaymentCompleted")
    assert (unknown_key.type, amqp_type.type) == (None, "PaymentDone")


@pytest.mark.parametrize(
    "body",
    [
        b"", b"hello", b"{", b'{"order_id": 7,}', b'{"order_id": NaN}', b'{"order_id": Infinity}',
        b'{"order_id": -Infinity}', b'{"order_id": ' + b"9" * 5000 + b"}",
        b'{"note": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", b'{"a":' * 20_000 + b"1" + b"}" * 20_000,
        b"\xff\xfe\x00", '{"reason": "ditolak é"}'.encode("latin-1"), b'{"order_id": 7} {"order_id": 8}',
        b"[]", b'[{"order_id": 7}]', b"7", b'"text"', b"null",
    ],
    ids=lambda body: repr(body[:18]),
)  # fmt: skip
def test_a_body_that_is_not_a_json_object_is_malformed(body: bytes) -> None:
    assert code_and_fields(rejection_of(read_bare, body)) == ("malformed", ["body"])


def test_an_oversized_body_is_rejected_without_being_decoded() -> None:
    body = json.dumps(COMPLETED).encode()
    largest = b" " * (MAX_BODY_BYTES - len(body)) + body

    rejected = rejection_of(read_bare, largest + b" ")

    assert code_and_fields(rejected) == ("oversized", ["body"])
    assert read_bare(largest).order_id == 7


def test_only_the_beginning_of_an_oversized_body_is_kept_with_the_size_and_the_hash_of_all_of_it() -> None:
    body = b"[" + b"x" * MAX_BODY_BYTES

    kept = shortened(Delivery("order-service.menu", "menu.reserved", body))

    assert kept.body == body[:KEPT_BODY_BYTES]
    assert kept.oversized == Oversized(len(body), sha256(body).hexdigest())
    assert shortened(kept) == kept
    largest = Delivery("order-service.menu", "menu.reserved", body[:MAX_BODY_BYTES])
    assert shortened(largest) is largest


@pytest.mark.parametrize("type", ["OrderPaid", "menureserved", "PaymentCompleted ", 7, ["PaymentCompleted"], "\ud800"])
def test_an_unknown_type_or_routing_key_is_rejected(type: object) -> None:
    enveloped = rejection_of(read_enveloped, COMPLETED, type=type)
    bare = rejection_of(read_bare, COMPLETED, routing_key="payment.done")

    assert code_and_fields(enveloped) == code_and_fields(bare) == ("unknown_type", ["type"])


@pytest.mark.parametrize("data", [None, [], "text", 7, [COMPLETED]])
def test_an_envelope_without_an_object_as_data_is_invalid(data: object) -> None:
    assert code_and_fields(rejection_of(read_enveloped, data)) == ("invalid", ["data"])


@pytest.mark.parametrize(
    "id", [None, "", 7, ["x"], "a\0b", "x" * 256, "é" * 128, "\ud800"], ids=lambda id: repr(id)[:9]
)
def test_an_envelope_needs_an_id_that_databases_and_amqp_can_hold(id: object) -> None:
    assert code_and_fields(rejection_of(read_enveloped, COMPLETED, id=id)) == ("invalid", ["id"])


def test_a_rejection_carries_only_names_that_can_be_stored() -> None:
    rejected = rejection_of(read_enveloped, COMPLETED, id="\0\ud800" + "é" * 300, type="No\0ne")

    assert rejected.message_id is not None
    assert len(rejected.message_id.encode()) <= 255
    assert "\0" not in rejected.message_id
    assert rejected.type == "None"


# Versions.


@pytest.mark.parametrize(
    "dataschema",
    [
        "urn:restaurant:schema:PaymentCompleted:2", "urn:restaurant:schema:PaymentCompleted:10",
        "https://x:5003/schemas/PaymentCompleted/2.json", "https://x:5003/schemas/v2/PaymentCompleted.json",
        "https://x/schemas/V2/PaymentCompleted.json", "https://x/schemas/PaymentCompleted.json?v=2",
        "https://x/schemas/PaymentCompleted.json#2", "PaymentCompleted-2.0", "PaymentCompleted-2.0.json",
        "PaymentCompleted/v3.1",
    ],
)  # fmt: skip
def test_a_newer_major_version_is_rejected(dataschema: str) -> None:
    rejected = rejection_of(read_enveloped, COMPLETED, dataschema=dataschema)

    assert code_and_fields(rejected) == ("newer_version", ["dataschema"])


@pytest.mark.parametrize(
    "dataschema",
    [
        None, "", "urn:restaurant:schema:PaymentCompleted:1", "urn:restaurant:schema:PaymentCompleted:1.7",
        "urn:restaurant:schema:PaymentCompleted", "https://x:5003/schemas/PaymentCompleted/1.json",
        "https://x:5003/schemas/v1/PaymentCompleted.json", "https://x:5003/schemas/PaymentCompleted.json",
        "https://x:5003", "https://10.0.0.2:5003/schemas/PaymentCompleted.json", "PaymentCompleted-1.2",
        "PaymentCompletedV2Final", "http://[broken", 7,
        *(schema_name(type) for type in [*events.INCOMING, *events.OUTGOING]),
    ],
)  # fmt: skip
def test_the_same_major_version_or_none_is_accepted(dataschema: object) -> None:
    assert read_enveloped(COMPLETED, dataschema=dataschema).order_id == 7


@pytest.mark.parametrize(
    ("specversion", "code"),
    [
        ("2.0", "newer_version"), ("12", "newer_version"), (2, "newer_version"), ("0.3", "invalid"), ("", "invalid"),
        ("1", "invalid"), (["1.0"], "invalid"), ("9" * 5000, "newer_version"),
    ],
    ids=lambda value: str(value)[:9],
)  # fmt: skip
def test_another_cloudevents_version_is_rejected_and_named(specversion: object, code: str) -> None:
    rejected = rejection_of(read_enveloped, COMPLETED, specversion=specversion)
    in_headers = rejection_of(read_bare, COMPLETED, headers={"cloudEvents:specversion": specversion})

    assert code_and_fields(rejected) == code_and_fields(in_headers) == (code, ["specversion"])
    assert rejected.errors[0].problem == f"is {str(specversion)[:100]!r}, must be 1.0"


@pytest.mark.parametrize("specversion", ["1.0", "1.1", "1.0.2"])
def test_every_cloudevents_1_is_accepted_with_an_id_of_up_to_255_bytes(specversion: str) -> None:
    assert read_enveloped(COMPLETED, specversion=specversion, id="x" * 255).message_id == "x" * 255


# Any input: a Reply or a Rejection.

#: The default run generates the same input every time. SAGA_EXAMPLES=100000 generates more, at random.
repeatable = settings(
    max_examples=int(os.environ.get("SAGA_EXAMPLES", "500")),
    derandomize="SAGA_EXAMPLES" not in os.environ,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
TEXT = st.text(st.characters(), max_size=12) | st.sampled_from(["", "\0", "\ud800", "1", "x" * 300, "NaN", *VALID])
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), TEXT, st.sampled_from([10**400, 1e308, 7]))
KNOWN = {name for data in DATA.values() for name in data} | {"id", "name", "price", "stock"}
NAMES = TEXT | st.sampled_from(sorted(KNOWN | {"specversion", "dataschema", "data", "type"}))
ANYTHING: st.SearchStrategy[object] = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=6), max_leaves=15
)
ROUTING_KEYS = [model.routing_key for model in events.INCOMING.values()]
HEADER_NAMES = st.sampled_from(["ce-type", "cloudEvents:id", "cloudEvents_specversion", "ce-dataschema", "x"])
PROPERTIES = st.fixed_dictionaries(
    {},
    optional={
        "message_id": TEXT, "type": TEXT, "content_encoding": TEXT, "content_type": TEXT,
        "headers": st.dictionaries(HEADER_NAMES, SCALARS | st.just("1.0"), max_size=3),
    },
)  # fmt: skip
Properties = dict[str, Any]


def check_reply_or_rejection(body: bytes, routing_key: str, properties: Properties) -> None:
    try:
        reply = read(Delivery("order-service.menu", routing_key, body, properties))
    except Rejection as rejected:
        check_publishable(rejected)
    else:
        assert reply.type in VALID
        assert 1 <= reply.order_id < 2**31
        assert 0 < len(reply.message_id.encode()) <= 255


def check_publishable(rejected: Rejection) -> None:
    """Check that all of it fits a database, an AMQP header and a MessageRejected."""
    assert rejected.code in {"malformed", "oversized", "invalid", "unknown_type", "newer_version"}
    assert rejected.errors
    assert all(error.field and error.problem for error in rejected.errors)
    assert not [error for error in rejected.errors if "should" in error.problem or "Value error" in error.problem]
    assert all(name is None or "\0" not in name for name in (rejected.message_id, rejected.type))
    assert "\0" not in str(rejected).encode().decode()
    data = events.MessageRejected(
        message_id=rejected.message_id, type=rejected.type, errors=list(rejected.errors), received_at=AT
    )
    wrap(data, event_id="m", order_id=None, sequence=None, at=AT, trace=None)


@repeatable
@given(st.binary(max_size=60), st.sampled_from(["menu.reserved", "", "x"]), PROPERTIES)
def test_any_bytes_are_read_or_rejected(body: bytes, routing_key: str, properties: Properties) -> None:
    check_reply_or_rejection(body, routing_key, properties)


@repeatable
@given(ANYTHING, st.sampled_from(ROUTING_KEYS), PROPERTIES)
def test_any_json_is_read_or_rejected(document: object, routing_key: str, properties: Properties) -> None:
    check_reply_or_rejection(json.dumps(document).encode(), routing_key, properties)


@repeatable
@given(
    st.sampled_from(list(VALID)),
    st.booleans(),
    st.lists(st.tuples(NAMES, ANYTHING), min_size=1, max_size=2),
    PROPERTIES,
)
def test_a_valid_message_with_any_value_in_its_fields_is_read_or_rejected(
    type: str, in_envelope: bool, changes: list[tuple[str, object]], properties: Properties
) -> None:
    document: dict[str, object] = DATA[type]
    if in_envelope:
        document = {"specversion": "1.0", "id": "m-1", "type": type, "data": document, "dataschema": "x:1"}

    body = json.dumps(document | dict(changes)).encode()

    check_reply_or_rejection(body, events.INCOMING[type].routing_key, properties)


@repeatable
@given(st.sampled_from(list(VALID)), st.randoms(use_true_random=False))
def test_a_valid_message_with_damaged_bytes_is_read_or_rejected(type: str, chance: random.Random) -> None:
    body = bytearray(json.dumps(DATA[type]).encode())

    for _ in range(chance.randint(1, 3)):
        body[chance.randrange(len(body))] = chance.randrange(256)

    check_reply_or_rejection(bytes(body), events.INCOMING[type].routing_key, {})


@pytest.mark.parametrize("written", ["1e99999999999999999999", "1e-99999999999999999999"])
@pytest.mark.parametrize("name", ["amount", "unknown_field"])
def test_a_number_beyond_all_exponents_is_read_or_rejected(name: str, written: str) -> None:
    body = f'{{"order_id": 7, "payment_id": "P1", "amount": 1, "{name}": {written}}}'.encode()

    check_reply_or_rejection(body, "payment.completed", {})


@pytest.mark.parametrize(("start", "end"), [("[", "]"), ('{"a":', "}")], ids=["lists", "objects"])
def test_any_depth_of_nesting_is_read_or_rejected(start: str, end: str) -> None:
    for depth in range(700, 1000):
        nested = start * depth + ("1" if end == "}" else "") + end * depth
        body = f'{{"order_id": 7, "refund_id": "R", "note": {nested}}}'.encode()

        check_reply_or_rejection(body, "payment.refunded", {})


# What is written.


def refund_body(amount: Decimal) -> bytes:
    data = events.RefundRequested(order_id=7, refund_id="r", payment_id=None, amount=amount, reason="x")
    return wrap(data, event_id="e-1", order_id=7, sequence=2, at=AT, trace=None)


def test_an_event_is_written_with_its_time_in_utc_and_without_attributes_that_have_no_value() -> None:
    data = events.MessageRejected(message_id=None, type=None, errors=[], received_at=AT)
    at = datetime(2025, 3, 1, 19, 0, tzinfo=timezone(timedelta(hours=7)))

    event = json.loads(wrap(data, event_id="e-1", order_id=None, sequence=None, at=at, trace=None))

    assert event["time"] == "2025-03-01T12:00:00Z"
    assert not {"subject", "correlationid", "sequence", "traceparent"} & event.keys()


@pytest.mark.parametrize(
    ("amount", "written"),
    [
        ("18000", b"18000"), ("18000.0", b"18000"), ("18000.00", b"18000"), ("1.8E+4", b"18000"), ("0.1", b"0.1"),
        ("0", b"0"), ("0.0", b"0"), ("-0.0", b"0"), ("17999.5", b"17999.5"), ("0.0001", b"0.0001"),
        ("99999999999.9999", b"99999999999.9999"),
    ],
)  # fmt: skip
def test_an_amount_is_written_as_a_number_without_a_trailing_zero(amount: str, written: bytes) -> None:
    assert b'"amount":' + written + b"," in refund_body(Decimal(amount))


@repeatable
@given(st.decimals(min_value=0, max_value=Decimal("99999999999.9999"), places=4))
def test_every_written_amount_is_read_back_unchanged(amount: Decimal) -> None:
    assert json.loads(refund_body(amount), parse_float=Decimal)["data"]["amount"] == amount


def test_times_are_written_in_utc_with_a_z() -> None:
    local = datetime(2025, 3, 1, 1, 30, 0, 250000, tzinfo=timezone(timedelta(hours=7)))

    assert utc_text(local) == "2025-02-28T18:30:00.250000Z"
