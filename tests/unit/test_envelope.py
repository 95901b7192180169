"""The tolerant reader: what it takes, what it refuses and why, and that it never fails in any other way."""

import json
import os
import random
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from order_service.contract import events
from order_service.contract.envelope import (
    MAX_BODY_BYTES,
    Delivery,
    Rejection,
    Reply,
    read,
    schema_name,
    utc_text,
    wrap,
)
from order_service.domain.messages import MenuRejected, MenuReserved, PaymentCompleted, PaymentFailed, PaymentRefunded

RESERVED = {
    "order_id": 7,
    "reservation_id": "R1",
    "items": [{"id": 1, "name": "Nasi Ayam Bakar", "price": 18000, "stock": 13}],
}
REJECTED = {"order_id": 7, "reason": "out_of_stock", "menu_id": 2}
RELEASED = {"order_id": 7, "release_id": "c0ffee"}
COMPLETED = {"order_id": 7, "payment_id": "P1", "amount": 56000}
FAILED = {"order_id": 7, "payment_id": "P1", "reason": "card declined"}
REFUNDED = {"order_id": 7, "refund_id": "c0ffee"}
#: One usable message of every type, with its routing key.
VALID = {
    "MenuReserved": ("menu.reserved", RESERVED),
    "MenuRejected": ("menu.rejected", REJECTED),
    "StockReleased": ("menu.released", RELEASED),
    "PaymentCompleted": ("payment.completed", COMPLETED),
    "PaymentFailed": ("payment.failed", FAILED),
    "PaymentRefunded": ("payment.refunded", REFUNDED),
}


def body_of(document: object) -> bytes:
    return document if isinstance(document, bytes) else json.dumps(document).encode()


def bare(document: object, *, routing_key: str = "payment.completed", **properties: object) -> Reply:
    """Read a message as somebody publishes it by hand from the console."""
    return read(Delivery("order-service.payment", routing_key, body_of(document), properties))


def enveloped(data: object, *, type: object = "PaymentCompleted", **attributes: object) -> Reply:
    """Read a message in its full envelope; an attribute given as None is absent."""
    event = {"specversion": "1.0", "id": "m-1", "source": "/payment", "type": type, "data": data} | attributes
    event = {name: value for name, value in event.items() if value is not None}
    return read(Delivery("order-service.payment", "payment.completed", body_of(event)))


def refusal_of_bare(document: object, **how: object) -> Rejection:
    with pytest.raises(Rejection) as refusal:
        bare(document, **how)
    return refusal.value


def refusal_of_enveloped(data: object, **how: object) -> Rejection:
    with pytest.raises(Rejection) as refusal:
        enveloped(data, **how)
    return refusal.value


def fields(refusal: Rejection) -> list[str]:
    return [error.field for error in refusal.errors]


# What is taken.


@pytest.mark.parametrize("type", VALID)
def test_every_incoming_type_is_read_in_its_envelope(type: str):
    _, data = VALID[type]

    reply = enveloped(data, type=type)

    assert (reply.message_id, reply.order_id, reply.type) == ("m-1", 7, type)
    assert reply.message.__class__.__name__ == type


@pytest.mark.parametrize("type", VALID)
def test_a_bare_message_has_its_type_from_the_routing_key(type: str):
    routing_key, data = VALID[type]

    reply = bare(data, routing_key=routing_key)

    assert (reply.type, reply.order_id) == (type, 7)


def test_the_amqp_type_wins_over_the_routing_key():
    reply = bare(REFUNDED, routing_key="payment.completed", type="PaymentRefunded")

    assert reply.message == PaymentRefunded("c0ffee")


def test_the_envelopes_type_wins_over_the_amqp_type():
    event = {"specversion": "1.0", "id": "m-1", "source": "/payment", "type": "PaymentRefunded", "data": REFUNDED}

    reply = bare(event, type="PaymentCompleted")

    assert reply.type == "PaymentRefunded"


def test_an_envelope_without_a_type_takes_the_amqp_type_or_the_routing_key():
    assert enveloped(COMPLETED, type=None).type == "PaymentCompleted"


def test_a_bare_message_has_its_id_from_message_id():
    assert bare(COMPLETED, message_id="by-hand-1").message_id == "by-hand-1"


def test_the_envelopes_id_wins_over_message_id():
    event = {"specversion": "1.0", "id": "m-1", "source": "/payment", "type": "PaymentCompleted", "data": COMPLETED}

    assert bare(event, message_id="by-hand-1").message_id == "m-1"


def test_a_derived_id_is_the_same_for_the_same_content_in_any_order_of_keys():
    one = bare(b'{"order_id": 7, "payment_id": "P1", "amount": 0.1, "note": {"a": [1, 2], "b": null}}')
    other = bare(b'{"note":{"b":null,"a":[1,2]},"amount":0.1,\n"payment_id":"P1","order_id":7}')

    assert one.message_id == other.message_id
    assert 0 < len(one.message_id) <= 255


@pytest.mark.parametrize("change", [{"order_id": 8}, {"payment_id": "P2"}, {"amount": 56001}])
def test_a_derived_id_differs_with_the_content(change):
    assert bare(COMPLETED).message_id != bare(COMPLETED | change).message_id


def test_a_derived_id_differs_with_the_type():
    data = RELEASED | REFUNDED

    ids = {bare(data, type=type).message_id for type in ("StockReleased", "PaymentRefunded")}

    assert len(ids) == 2


@pytest.mark.parametrize("type", VALID)
def test_unknown_fields_are_ignored(type: str):
    _, data = VALID[type]
    more = data | {"note": "new", "nested": {"a": [None, 1.5]}}

    assert enveloped(more, type=type, futureattribute="x").message == enveloped(data, type=type).message


def test_unknown_fields_of_an_item_are_ignored():
    items = [RESERVED["items"][0] | {"spicy": True}]

    assert enveloped(RESERVED | {"items": items}, type="MenuReserved").message.items[0].price == 18000


@pytest.mark.parametrize(
    ("given", "kept"), [("R1", "R1"), (12, "12"), (-3, "-3"), ("é" * 100, "é" * 100), (None, None)]
)
def test_a_reservation_id_is_text_or_an_integer_and_kept_as_text(given, kept):
    message = enveloped(RESERVED | {"reservation_id": given}, type="MenuReserved").message

    assert isinstance(message, MenuReserved)
    assert message.reservation_id == kept


def test_a_reservation_may_be_nameless():
    data = {name: value for name, value in RESERVED.items() if name != "reservation_id"}

    assert enveloped(data, type="MenuReserved").message.reservation_id is None


@pytest.mark.parametrize(
    ("given", "kept"), [("P1", "P1"), (12, "12"), ("x" * 100, "x" * 100), (10**99, "1" + "0" * 99)]
)
def test_a_payment_id_is_text_or_an_integer_and_kept_as_text(given, kept):
    assert enveloped(COMPLETED | {"payment_id": given}).message == PaymentCompleted(kept, Decimal(56000))


def test_a_failed_payment_may_be_nameless():
    data = {"order_id": 7, "reason": "card declined"}

    assert enveloped(data, type="PaymentFailed").message == PaymentFailed("card declined")


def test_a_rejection_says_which_dish_and_why():
    assert enveloped(REJECTED, type="MenuRejected").message == MenuRejected("out_of_stock", 2)


@pytest.mark.parametrize("written", ["0.1", "0.10", "1e-1", "0.1000000"])
def test_a_fraction_stays_exact(written: str):
    reply = bare(f'{{"order_id": 7, "payment_id": "P1", "amount": {written}}}'.encode())

    assert reply.message.amount == Decimal("0.1")
    assert reply.message.amount * 3 == Decimal("0.3")


@pytest.mark.parametrize("written", ["18000", "18000.0", "18000.00", "1.8e4", "18E+3"])
def test_a_whole_amount_is_the_same_however_it_is_written(written: str):
    reply = bare(f'{{"order_id": 7, "payment_id": "P1", "amount": {written}}}'.encode())

    assert reply.message.amount == 18000


@pytest.mark.parametrize("written", ["0", "0.0001", "99999999999.9999"])
def test_amounts_are_taken_up_to_their_bounds(written: str):
    assert bare(f'{{"order_id": 7, "payment_id": "P1", "amount": {written}}}'.encode()).message.amount == Decimal(
        written
    )


@pytest.mark.parametrize("order_id", [1, 2**31 - 1])
def test_order_ids_are_taken_up_to_their_bounds(order_id: int):
    assert enveloped(COMPLETED | {"order_id": order_id}).order_id == order_id


def test_a_byte_order_mark_is_no_obstacle():
    assert bare(b"\xef\xbb\xbf" + body_of(COMPLETED)).order_id == 7


# What is refused: the code for the machine, the fields for the sibling team.


@pytest.mark.parametrize(
    "order_id", ["7", True, 0, -1, 2**31, None, [7], {}, 10**400], ids=lambda value: str(value)[:9]
)
def test_an_order_id_is_a_strict_integer(order_id):
    refusal = refusal_of_enveloped(COMPLETED | {"order_id": order_id})

    assert (refusal.code, fields(refusal)) == ("invalid", ["data.order_id"])


@pytest.mark.parametrize("written", ["1.0", "1e0", "7.5"])
def test_an_order_id_written_as_a_fraction_is_refused(written: str):
    refusal = refusal_of_bare(f'{{"order_id": {written}, "payment_id": "P1", "amount": 1}}'.encode())

    assert (refusal.code, fields(refusal)) == ("invalid", ["data.order_id"])


@pytest.mark.parametrize("value", ["1", True, 1.0, 0, 2**31, None])
def test_the_menu_ids_of_a_reply_are_strict_integers_too(value):
    rejected = refusal_of_enveloped(REJECTED | {"menu_id": value}, type="MenuRejected")
    items = [RESERVED["items"][0] | {"id": value}]
    reserved = refusal_of_enveloped(RESERVED | {"items": items}, type="MenuReserved")

    assert fields(rejected) == ["data.menu_id"]
    assert fields(reserved) == ["data.items.0.id"]


@pytest.mark.parametrize("value", ["", "x" * 101, 10**100, True, 1.5, [], {}, "a\0b", "\ud800"], ids=repr)
def test_an_id_of_a_sibling_is_no_other_than_text_or_an_integer_of_100_characters(value):
    payment = refusal_of_enveloped(COMPLETED | {"payment_id": value})
    reservation = refusal_of_enveloped(RESERVED | {"reservation_id": value}, type="MenuReserved")

    assert (payment.code, fields(payment)) == ("invalid", ["data.payment_id"])
    assert (reservation.code, fields(reservation)) == ("invalid", ["data.reservation_id"])


@pytest.mark.parametrize(
    "written",
    [
        '"18000"',
        "true",
        "null",
        "-1",
        "-0.01",
        "100000000000",
        "1e11",
        "0.00001",
        "1e400",
        "1e-400",
        "[]",
        "{}",
        "9" * 4000,
    ],
    ids=lambda written: written[:12],
)
def test_an_amount_that_is_no_number_of_money_is_refused(written: str):
    refusal = refusal_of_bare(f'{{"order_id": 7, "payment_id": "P1", "amount": {written}}}'.encode())

    assert (refusal.code, fields(refusal), refusal.order_id) == ("invalid", ["data.amount"], 7)


@pytest.mark.parametrize("price", ["18000", True, -1, 10**9, None])
def test_a_price_is_refused_like_an_amount(price):
    items = [RESERVED["items"][0] | {"price": price}]

    assert fields(refusal_of_enveloped(RESERVED | {"items": items}, type="MenuReserved")) == ["data.items.0.price"]


@pytest.mark.parametrize(
    ("type", "change", "remedy"),
    [
        ("PaymentCompleted", {"order_id": "7"}, "must be an integer"),
        ("PaymentCompleted", {"order_id": 0}, "must be at least 1"),
        ("PaymentCompleted", {"order_id": 2**31}, "must be at most 2147483647"),
        ("PaymentCompleted", {"amount": "18000"}, "must be a JSON number"),
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
        ("MenuReserved", {"items": RESERVED["items"] * 101}, "must have at most 100 entries"),
    ],
    ids=repr,
)
def test_a_field_that_is_wrong_comes_with_its_remedy(type, change, remedy):
    [error] = refusal_of_enveloped(VALID[type][1] | change, type=type).errors

    assert error.problem == remedy


@pytest.mark.parametrize("type", VALID)
def test_a_missing_field_is_said_to_be_missing(type: str):
    assert {error.problem for error in refusal_of_enveloped({}, type=type).errors} == {"is missing"}


def test_minus_zero_is_zero():
    reply = bare(b'{"order_id": 7, "payment_id": "P1", "amount": -0.0}')

    assert str(reply.message.amount) == "0.0000"


@pytest.mark.parametrize("type", VALID)
def test_every_missing_field_is_named_at_once(type: str):
    optional = {"data.reservation_id", "data.payment_id"} if type in {"MenuReserved", "PaymentFailed"} else set()

    refusal = refusal_of_enveloped({}, type=type)

    assert set(fields(refusal)) == {f"data.{name}" for name in VALID[type][1]} - optional


def test_the_order_is_told_of_a_message_that_names_it_but_is_of_no_use():
    refusal = refusal_of_enveloped(COMPLETED | {"amount": "much"})

    assert (refusal.order_id, refusal.message_id, refusal.type) == (7, "m-1", "PaymentCompleted")


@pytest.mark.parametrize(
    "change", [{"dataschema": "x:2"}, {"specversion": "2.0"}, {"data": None}, {"data": [COMPLETED]}]
)
def test_an_envelope_that_cannot_be_unwrapped_is_still_named(change):
    refusal = refusal_of_enveloped(**{"data": COMPLETED} | change)

    assert (refusal.message_id, refusal.type) == ("m-1", "PaymentCompleted")


@pytest.mark.parametrize("document", [COMPLETED | {"amount": "much"}, b"hello", [], b" " * (MAX_BODY_BYTES + 1)])
def test_a_bare_message_is_named_by_its_routing_key(document):
    refusal = refusal_of_bare(document, routing_key="payment.completed", message_id="by-hand-1")

    assert (refusal.message_id, refusal.type) == ("by-hand-1", "PaymentCompleted")
    assert refusal_of_bare(document, routing_key="x").type is None
    assert refusal_of_bare(document, routing_key="payment.completed", type="PaymentDone").type == "PaymentDone"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"hello",
        b"{",
        b'{"order_id": 7,}',
        b'{"order_id": NaN}',
        b'{"order_id": Infinity}',
        b'{"order_id": -Infinity}',
        b'{"order_id": ' + b"9" * 5000 + b"}",
        b'{"note": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"a":' * 20_000 + b"1" + b"}" * 20_000,
        b"\xff\xfe\x00",
        '{"reason": "ditolak é"}'.encode("latin-1"),
        b'{"order_id": 7} {"order_id": 8}',
        b"[]",
        b'[{"order_id": 7}]',
        b"7",
        b'"text"',
        b"null",
    ],
    ids=lambda body: repr(body[:18]),
)
def test_a_body_that_is_no_json_object_is_malformed(body: bytes):
    refusal = refusal_of_bare(body)

    assert (refusal.code, fields(refusal)) == ("malformed", ["body"])


def test_an_oversized_body_is_refused_unread():
    largest = b" " * (MAX_BODY_BYTES - len(body_of(COMPLETED))) + body_of(COMPLETED)

    refusal = refusal_of_bare(largest + b" ")

    assert (refusal.code, fields(refusal)) == ("oversized", ["body"])
    assert bare(largest).order_id == 7


@pytest.mark.parametrize(
    "type", ["OrderPaid", "menureserved", "PaymentCompleted ", 7, ["PaymentCompleted"], {}, "\ud800"]
)
def test_an_unknown_type_is_refused(type):
    refusal = refusal_of_enveloped(COMPLETED, type=type) if type else refusal_of_bare(COMPLETED, routing_key="x")

    assert (refusal.code, fields(refusal)) == ("unknown_type", ["type"])


def test_a_bare_message_under_an_unknown_routing_key_has_no_type():
    assert refusal_of_bare(COMPLETED, routing_key="payment.done").code == "unknown_type"


@pytest.mark.parametrize("data", [None, [], "text", 7, [COMPLETED]])
def test_an_envelope_without_an_object_as_data_is_invalid(data):
    refusal = refusal_of_enveloped(data)

    assert (refusal.code, fields(refusal)) == ("invalid", ["data"])


@pytest.mark.parametrize(
    "id", [None, "", 7, ["x"], "a\0b", "x" * 256, "é" * 128, "\ud800"], ids=lambda id: repr(id)[:9]
)
def test_an_envelope_needs_an_id_that_databases_and_amqp_can_hold(id):
    refusal = refusal_of_enveloped(COMPLETED, id=id)

    assert (refusal.code, fields(refusal)) == ("invalid", ["id"])


def test_the_longest_id_is_taken():
    assert enveloped(COMPLETED, id="x" * 255).message_id == "x" * 255


def test_text_with_a_nul_is_refused_as_postgresql_stores_none():
    refusal = refusal_of_enveloped(FAILED | {"reason": "a\0b"}, type="PaymentFailed")

    assert (refusal.code, fields(refusal)) == ("invalid", ["data.reason"])


def test_a_refusal_names_itself_only_by_what_can_be_stored():
    refusal = refusal_of_enveloped(COMPLETED, id="\0\ud800" + "é" * 300, type="No\0ne")

    assert "\0" not in refusal.message_id + refusal.type
    assert len(refusal.message_id.encode()) <= 255


# Versions.


@pytest.mark.parametrize(
    "dataschema",
    [
        "urn:restaurant:schema:PaymentCompleted:2",
        "urn:restaurant:schema:PaymentCompleted:10",
        "https://x:5003/schemas/PaymentCompleted/2.json",
        "https://x:5003/schemas/v2/PaymentCompleted.json",
        "https://x/schemas/V2/PaymentCompleted.json",
        "https://x/schemas/PaymentCompleted.json?v=2",
        "https://x/schemas/PaymentCompleted.json#2",
        "PaymentCompleted-2.0",
        "PaymentCompleted-2.0.json",
        "PaymentCompleted/v3.1",
    ],
)
def test_a_newer_major_version_is_refused(dataschema: str):
    refusal = refusal_of_enveloped(COMPLETED, dataschema=dataschema)

    assert (refusal.code, fields(refusal)) == ("newer_version", ["dataschema"])


@pytest.mark.parametrize(
    "dataschema",
    [
        None,
        "",
        "urn:restaurant:schema:PaymentCompleted:1",
        "urn:restaurant:schema:PaymentCompleted:1.7",
        "urn:restaurant:schema:PaymentCompleted",
        "https://x:5003/schemas/PaymentCompleted/1.json",
        "https://x:5003/schemas/v1/PaymentCompleted.json",
        "https://x:5003/schemas/PaymentCompleted.json",
        "https://x:5003",
        "https://10.0.0.2:5003/schemas/PaymentCompleted.json",
        "PaymentCompleted-1.2",
        "PaymentCompletedV2Final",
        "http://[broken",
        7,
    ],
)
def test_the_same_major_version_or_none_is_taken(dataschema):
    assert enveloped(COMPLETED, dataschema=dataschema).order_id == 7


@pytest.mark.parametrize("type", [*events.INCOMING, *events.OUTGOING])
def test_our_own_schema_names_are_of_a_version_we_take(type: str):
    assert enveloped(COMPLETED, dataschema=schema_name(type)).order_id == 7


@pytest.mark.parametrize("specversion", ["2.0", "0.3", "", "1", 2, ["1.0"]])
def test_another_cloudevents_version_is_refused(specversion):
    refusal = refusal_of_enveloped(COMPLETED, specversion=specversion)

    assert (refusal.code, fields(refusal)) == ("newer_version", ["specversion"])


@pytest.mark.parametrize("specversion", ["1.0", "1.1", "1.0.2"])
def test_every_cloudevents_1_is_taken(specversion: str):
    assert enveloped(COMPLETED, specversion=specversion).order_id == 7


# Whatever comes: a Reply or an Rejection.

#: The default run is the same every time. SAGA_EXAMPLES=100000 looks further, at random.
repeatable = settings(
    max_examples=int(os.environ.get("SAGA_EXAMPLES", "500")),
    derandomize="SAGA_EXAMPLES" not in os.environ,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
TEXT = st.text(st.characters(), max_size=12) | st.sampled_from(["", "\0", "\ud800", "1", "x" * 300, "NaN", *VALID])
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), TEXT, st.sampled_from([10**400, 1e308, 7]))
KNOWN = {name for _, data in VALID.values() for name in data} | {"id", "name", "price", "stock"}
NAMES = TEXT | st.sampled_from(sorted(KNOWN | {"specversion", "dataschema", "data", "type"}))
ANYTHING = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=6), max_leaves=15
)
PROPERTIES = st.dictionaries(st.sampled_from(["message_id", "type"]), TEXT | st.none())


def check_that_it_is_understood_or_refused(body: bytes, routing_key: str, properties: dict[str, object]) -> None:
    try:
        reply = read(Delivery("order-service.menu", routing_key, body, properties))
    except Rejection as refusal:
        check_that_it_can_be_told(refusal)
    else:
        assert reply.type in VALID
        assert 1 <= reply.order_id < 2**31
        assert 0 < len(reply.message_id.encode()) <= 255


def check_that_it_can_be_told(refusal: Rejection) -> None:
    """Everything about it fits a database, an AMQP header and a MessageRejected."""
    assert refusal.code in {"malformed", "oversized", "invalid", "unknown_type", "newer_version"}
    assert refusal.errors
    assert all(error.field and error.problem for error in refusal.errors)
    assert not [error for error in refusal.errors if "should" in error.problem or "Value error" in error.problem]
    assert all(name is None or "\0" not in name for name in (refusal.message_id, refusal.type))
    assert "\0" not in str(refusal).encode().decode()
    at = datetime(2025, 3, 1, tzinfo=UTC)
    told = events.MessageRejected(
        message_id=refusal.message_id, type=refusal.type, errors=refusal.errors, received_at=at
    )
    wrap(told, event_id="m", order_id=None, sequence=None, at=at, trace=None)


@repeatable
@given(st.binary(max_size=60), st.sampled_from(["menu.reserved", "", "x"]), PROPERTIES)
def test_any_bytes_are_understood_or_refused(body, routing_key, properties):
    check_that_it_is_understood_or_refused(body, routing_key, properties)


@repeatable
@given(ANYTHING, st.sampled_from([key for key, _ in VALID.values()]), PROPERTIES)
def test_any_json_is_understood_or_refused(document, routing_key, properties):
    check_that_it_is_understood_or_refused(json.dumps(document).encode(), routing_key, properties)


@repeatable
@given(
    st.sampled_from(list(VALID)),
    st.booleans(),
    st.lists(st.tuples(NAMES, ANYTHING), min_size=1, max_size=2),
    PROPERTIES,
)
def test_a_usable_message_with_anything_in_its_fields_is_understood_or_refused(type, in_envelope, changes, properties):
    routing_key, data = VALID[type]
    document: dict[str, object] = data | dict(changes)
    if in_envelope:
        document = {"specversion": "1.0", "id": "m-1", "type": type, "data": data, "dataschema": "x:1"} | dict(changes)

    check_that_it_is_understood_or_refused(json.dumps(document).encode(), routing_key, properties)


@repeatable
@given(st.sampled_from(list(VALID)), st.randoms(use_true_random=False))
def test_a_usable_message_with_damaged_bytes_is_understood_or_refused(type: str, chance: random.Random):
    routing_key, data = VALID[type]
    body = bytearray(json.dumps(data).encode())

    for _ in range(chance.randint(1, 3)):
        body[chance.randrange(len(body))] = chance.randrange(256)

    check_that_it_is_understood_or_refused(bytes(body), routing_key, {})


@pytest.mark.parametrize("written", ["1e99999999999999999999", "1e-99999999999999999999"])
@pytest.mark.parametrize("name", ["amount", "unknown_field"])
def test_a_number_beyond_all_exponents_is_understood_or_refused(name: str, written: str):
    body = f'{{"order_id": 7, "payment_id": "P1", "amount": 1, "{name}": {written}}}'.encode()

    check_that_it_is_understood_or_refused(body, "payment.completed", {})


@pytest.mark.parametrize(("start", "end"), [("[", "]"), ('{"a":', "}")], ids=["lists", "objects"])
def test_any_depth_of_nesting_is_understood_or_refused(start: str, end: str):
    for depth in range(700, 1000):
        nested = start * depth + ("1" if end == "}" else "") + end * depth
        body = f'{{"order_id": 7, "refund_id": "R", "note": {nested}}}'.encode()

        check_that_it_is_understood_or_refused(body, "payment.refunded", {})


# What we write.


def test_an_event_is_written_in_its_envelope():
    data = events.OrderCancelled(order_id=7, user_id=3)
    at = datetime(2025, 3, 1, 19, 0, tzinfo=timezone(timedelta(hours=7)))

    body = wrap(data, event_id="e-1", order_id=7, sequence=2, at=at, trace="00-aa-bb-01")

    assert body == (
        b'{"specversion":"1.0","id":"e-1","source":"/order-service","type":"OrderCancelled","subject":"7",'
        b'"time":"2025-03-01T12:00:00Z","datacontenttype":"application/json",'
        b'"dataschema":"urn:restaurant:schema:OrderCancelled:1","sequence":2,"correlationid":"7",'
        b'"traceparent":"00-aa-bb-01","data":{"order_id":7,"user_id":3}}'
    )


def test_attributes_without_a_value_are_absent():
    data = events.MessageRejected(message_id=None, type=None, errors=[], received_at=datetime(2025, 3, 1, tzinfo=UTC))

    event = json.loads(wrap(data, event_id="e-1", order_id=None, sequence=None, at=data.received_at, trace=None))

    assert not {"subject", "correlationid", "sequence", "traceparent"} & event.keys()


@pytest.mark.parametrize(
    ("amount", "written"),
    [
        ("18000", b"18000"), ("18000.0", b"18000"), ("18000.00", b"18000"), ("1.8E+4", b"18000"), ("0.1", b"0.1"),
        ("0", b"0"), ("0.0", b"0"), ("-0.0", b"0"), ("17999.5", b"17999.5"), ("0.0001", b"0.0001"),
        ("99999999999.9999", b"99999999999.9999"),
    ],
)  # fmt: skip
def test_an_amount_is_written_as_a_number_without_a_trailing_zero(amount: str, written: bytes):
    data = events.RefundRequested(order_id=7, refund_id="r", payment_id=None, amount=Decimal(amount), reason="x")

    body = wrap(data, event_id="e-1", order_id=7, sequence=2, at=datetime(2025, 3, 1, tzinfo=UTC), trace=None)

    assert b'"amount":' + written + b"," in body


@repeatable
@given(st.decimals(min_value=0, max_value=Decimal("99999999999.9999"), places=4))
def test_every_amount_we_write_is_read_back_as_the_same(amount: Decimal):
    data = events.RefundRequested(order_id=7, refund_id="r", payment_id=None, amount=amount, reason="x")

    body = wrap(data, event_id="e-1", order_id=7, sequence=2, at=datetime(2025, 3, 1, tzinfo=UTC), trace=None)

    assert json.loads(body, parse_float=Decimal)["data"]["amount"] == amount


def test_times_are_written_in_utc_with_a_z():
    assert utc_text(datetime(2025, 3, 1, 1, 30, 0, 250000, tzinfo=timezone(timedelta(hours=7)))) == (
        "2025-02-28T18:30:00.250000Z"
    )
