"""Generated messages through the real consumer and relay: each is applied or dead-lettered, and none stops them.

ORDER_TEST_MESSAGES sets how many; the same number gives the same messages.
"""

import gzip
import itertools
import json
import os
import struct
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pika
import pika.data
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from order_service.contract import envelope, samples, topology
from order_service.contract.events import INCOMING
from order_service.storage.database import Database
from order_service.storage.tables import order_history, outbox
from publishers.pipeline import BATCHES
from publishers.relay import Relay
from tests.e2e.deployment import MOSTLY_ON_POSTGRESQL
from tests.integration import core
from tests.integration.core import Eventually, Message, RawHeader, Wire

COUNT = int(os.environ.get("ORDER_TEST_MESSAGES", "600"))
#: How long a message may take on a busy machine.
SECONDS_EACH = 0.1
#: How many orders exist; their menu ids are 1 and 2.
ORDERS = 40
UNKNOWN_ORDER = 2**31 - 1
#: The AMQP property that numbers the messages; a dead letter keeps it.
NUMBER = "correlation_id"


@dataclass(frozen=True)
class Sent:
    """A message that must be applied, or dead-lettered with one of these codes and a problem of this field."""

    routing_key: str
    body: bytes
    properties: dict[str, Any] = field(default_factory=dict)
    codes: frozenset[str] = frozenset()
    field: str = ""
    #: Where the outcome depends on the order and on the generated values.
    may_be_applied: bool = False


INVALID = frozenset({"invalid"})
MALFORMED = frozenset({"malformed"})
ANY = frozenset({"invalid", "malformed", "unknown_type", "newer_version", "oversized", "unknown_order"})
types = st.sampled_from(sorted(INCOMING))
orders = st.integers(1, ORDERS)
#: Mostly new, because hypothesis generates the same example often; some are repeats.
_fresh = itertools.count()
message_ids = st.integers(0, 300).map(lambda number: f"again-{number}" if number < 30 else f"new-{next(_fresh)}")
#: Text with NUL, lone surrogates and letters outside the basic plane.
texts = st.text(st.characters(codec=None), max_size=40)
numbers = st.one_of(
    st.integers(), st.integers(-(10**40), 10**40), st.just(10**4000), st.floats(), st.sampled_from([2**31, 2**63, -0.0])
)
json_values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)
#: Headers of every type that a client may set, some with the names of the broker's own.
header_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.text(max_size=20)
    | st.binary(max_size=20)
    | st.integers(0, 2**64 - 1).map(lambda seconds: RawHeader(b"T" + struct.pack(">Q", seconds)))
    | st.integers(-(2**15), 2**15 - 1).map(lambda number: RawHeader(b"s" + struct.pack(">h", number)))
    | st.just(RawHeader(b"S\0\0\0\2\xff\xfe"))
    | st.floats(-1e300, 1e300).map(lambda number: RawHeader(b"d" + struct.pack(">d", number))),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
headers = st.dictionaries(
    st.text(max_size=20) | st.sampled_from(["x-delivery-count", "x-death", "traceparent", "x-error", "CC-not"]),
    header_values,
    max_size=4,
)
#: AMQP does not check that short strings are UTF-8, and PostgreSQL stores no NUL.
short_strings = st.binary(max_size=255) | st.text(max_size=60) | st.sampled_from([b"\xff" * 255, "a\0b", "\0"])
#: Counts of deliveries set by a sender, which the broker would not set.
delivery_counts = st.sampled_from([[1], -3]).map(lambda count: {"x-delivery-count": count})
unusual_properties = st.fixed_dictionaries(
    {},
    optional={
        "headers": headers | delivery_counts,
        "content_type": short_strings,
        "content_encoding": st.sampled_from(["utf-8", "utf-16", ""]),
        "app_id": short_strings,
        "reply_to": short_strings,
        "priority": st.integers(0, 255),
        "timestamp": st.integers(0, 2**64 - 1),
        "delivery_mode": st.sampled_from([1, 2]),
    },
)


def key_of(event_type: str) -> str:
    return INCOMING[event_type].routing_key


def encoded(document: Any) -> bytes:
    """JSON as Python writes it: NaN and Infinity too, and a lone surrogate as an escape."""
    return json.dumps(document).encode()


@st.composite
def valid(draw: st.DrawFn) -> Sent:
    """A message that follows the contract, enveloped or bare, for an existing order."""
    event_type, order_id = draw(types), draw(orders)
    event = samples.event(event_type, id=draw(message_ids), order_id=order_id)
    # A release or refund that was not requested is refused.
    applied = event_type in ("MenuRejected", "PaymentCompleted", "PaymentFailed", "MenuReserved")
    codes, about = (frozenset(), "") if applied else (INVALID, "data")
    properties = draw(unusual_properties)
    if draw(st.booleans()):
        event[draw(st.sampled_from(["extra", "time", "sequence"]))] = samples.event(event_type, id="1")["time"]
        return Sent(key_of(event_type), encoded(event), properties, codes, about)
    if draw(st.booleans()):
        properties["headers"] = in_headers(draw, event)
    else:
        properties["message_id"] = event["id"]
    return Sent(key_of(event_type), encoded(event["data"]), properties, codes, about)


def in_headers(draw: st.DrawFn, event: dict[str, Any]) -> dict[str, Any]:
    """The attributes as binary mode sends them."""
    prefix = draw(st.sampled_from(["cloudEvents:", "cloudEvents_", "ce-"]))
    return {prefix + name: value for name, value in event.items() if name not in ("data", "datacontenttype")}


@st.composite
def of_unknown_orders(draw: st.DrawFn) -> Sent:
    event_type = draw(types)
    event = samples.event(event_type, id=draw(message_ids), order_id=UNKNOWN_ORDER - draw(st.integers(0, 1000)))
    return Sent(key_of(event_type), encoded(event), {}, frozenset({"unknown_order"}), "data.order_id")


@st.composite
def with_a_wrong_field(draw: st.DrawFn) -> Sent:
    """One required field is missing, or has a value that is never valid."""
    event_type = draw(types)
    event = samples.event(event_type, id=draw(message_ids), order_id=draw(orders))
    name = draw(st.sampled_from([name for name in event["data"] if name not in ("payment_id", "reservation_id")]))
    wrong = st.sampled_from([True, [], {}, None, [[1]], {"a": 1}, "", -1, 0.5, 10**20, "\0"])
    if draw(st.booleans()):
        del event["data"][name]
    else:
        event["data"][name] = draw(wrong.filter(lambda value: not _could_be(name, value)))
    return Sent(key_of(event_type), encoded(event), {}, INVALID, f"data.{name}")


def _could_be(name: str, value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    match name:
        case "amount":
            return is_number and 0 <= value < 10**11
        case "release_id" | "refund_id":  # any integer, and any text that is not empty
            return isinstance(value, int) and not isinstance(value, bool)
        case "reason":
            return bool(value == "")
    return False


@st.composite
def with_anything_as_data(draw: st.DrawFn) -> Sent:
    event_type = draw(types)
    data = dict(samples.DATA[event_type]) | {"order_id": draw(orders)}
    for name in draw(st.lists(st.sampled_from(sorted(data)), min_size=1, max_size=3)):
        data[name] = draw(json_values)
    return Sent(key_of(event_type), encoded(data), draw(unusual_properties), ANY, may_be_applied=True)


@st.composite
def with_an_odd_envelope(draw: st.DrawFn) -> Sent:
    event_type = draw(types)
    event = samples.event(event_type, id=draw(message_ids), order_id=draw(orders))
    name = draw(st.sampled_from(["specversion", "id", "type", "dataschema", "data", "time", "source"]))
    event[name] = draw(json_values)
    properties = draw(unusual_properties) | {"type": draw(short_strings), "message_id": draw(short_strings)}
    return Sent(key_of(event_type), encoded(event), properties, ANY, may_be_applied=True)


@st.composite
def of_unknown_types(draw: st.DrawFn) -> Sent:
    # PaymentCompleted belongs to the other queue.
    known = st.sampled_from(["OrderPaid", "PaymentCompleted"])
    named = draw(texts.filter(lambda text: text and text not in INCOMING) | known)
    made = named if named in INCOMING else draw(types)
    event = samples.event(made, id=draw(message_ids), order_id=draw(orders)) | {"type": named}
    unknown = frozenset({"unknown_type"})
    if draw(st.booleans()) and named.isprintable():
        return Sent("menu.reserved", encoded(event["data"]), {"headers": in_headers(draw, event)}, unknown, "type")
    return Sent("menu.reserved", encoded(event), {}, unknown, "type")


@st.composite
def of_newer_versions(draw: st.DrawFn) -> Sent:
    event_type = draw(types)
    event = samples.event(event_type, id=draw(message_ids), order_id=draw(orders))
    name = draw(st.sampled_from(["dataschema", "specversion"]))
    version = draw(st.integers(2, 999))
    event[name] = f"urn:restaurant:schema:{event_type}:{version}" if name == "dataschema" else f"{version}.0"
    return Sent(key_of(event_type), encoded(event), {}, frozenset({"newer_version"}), name)


@st.composite
def not_json(draw: st.DrawFn) -> Sent:
    whole = encoded(samples.event("PaymentCompleted", id="1", order_id=draw(orders)))
    body = draw(
        st.one_of(
            st.binary(max_size=60).filter(lambda some: not _is_object(some)),
            st.integers(0, len(whole) - 1).map(lambda length: whole[:length]),
            st.just(whole + b"}"),
            st.just(whole.replace(b"55999", b"NaN")),
            st.just(whole.replace(b"55999", b"-Infinity")),
            st.just(whole.replace(b"55999", b"1" * 5000)),
            st.just(whole.replace(b"55999", b"1e" + b"9" * 30)),
            st.just(whole.replace(b"P1", b"\xff\xfe")),
            st.integers(20_000, 50_000).map(lambda depth: b'{"a":' * depth),
            st.integers(20_000, 60_000).map(lambda depth: b'{"a":' + b"[" * depth + b"]" * depth + b"}"),
            json_values.filter(lambda value: not isinstance(value, dict)).map(encoded),
            st.sampled_from([b"", b" ", b"\0", b"null", b"[]", b"\xef\xbb\xbf\xef\xbb\xbf{}", b"{'a': 1}"]),
        )
    )
    return Sent(draw(types.map(key_of)), body, draw(unusual_properties), MALFORMED, "body")


@st.composite
def compressed(draw: st.DrawFn) -> Sent:
    body = encoded(samples.event("PaymentCompleted", id="1", order_id=draw(orders)))
    coding = draw(st.sampled_from(["gzip", "GZIP", "deflate"]))
    return Sent("payment.completed", gzip.compress(body), {"content_encoding": coding}, MALFORMED, "content_encoding")


def _is_object(body: bytes) -> bool:
    try:
        return isinstance(json.loads(body), dict)
    except ValueError:
        return False


@st.composite
def in_other_encodings(draw: st.DrawFn) -> Sent:
    """UTF-16 and UTF-32 are valid JSON by its older standard, and Python reads them; other encodings are not."""
    text = json.dumps(samples.event("MenuRejected", id=draw(message_ids), order_id=draw(orders)))
    if draw(st.booleans()):
        return Sent("menu.rejected", text.encode(draw(st.sampled_from(["utf-16", "utf-32", "utf-8-sig", "utf-16-be"]))))
    return Sent("menu.rejected", text.encode(draw(st.sampled_from(["cp037", "utf-7"])))[:-1], {}, MALFORMED, "body")


@st.composite
def oversized(draw: st.DrawFn) -> Sent:
    size = envelope.MAX_BODY_BYTES + draw(st.integers(1, 1000))
    return Sent("menu.reserved", b"x" * size, {}, frozenset({"oversized"}), "body")


WHAT = {
    valid: 35, of_unknown_orders: 8, with_a_wrong_field: 15, with_anything_as_data: 15, with_an_odd_envelope: 10,
    of_unknown_types: 6, of_newer_versions: 4, not_json: 13, in_other_encodings: 3, oversized: 1,
    compressed: 1,
}  # fmt: skip
MESSAGES = st.sampled_from([made for made, share in WHAT.items() for _ in range(share)]).flatmap(lambda made: made())


def generated(count: int) -> list[Sent]:
    """The same messages on each call."""
    global _fresh
    _fresh = itertools.count()
    found: list[Sent] = []
    suppressed = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example]

    @settings(
        max_examples=count, derandomize=True, database=None, phases=[Phase.generate], deadline=None,
        suppress_health_check=suppressed,
    )  # fmt: skip
    @given(MESSAGES)
    def draw(message: Sent) -> None:
        found.append(message)

    draw()
    return found[:count]


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    with core.opened(database_url, pool_size=BATCHES + 3) as database:
        yield database


@pytest.fixture
def wire(amqp_url: str) -> Wire:
    wire = Wire(amqp_url)
    wire.declare()
    wire.listen("order.message_rejected")
    wire.listen("payment.requested", "menu.release_requested", "payment.refund_requested", queue="siblings")
    return wire


def send(wire: Wire, messages: list[Sent]) -> None:
    """Publish these, numbered."""
    with wire.channel() as channel:
        for number, message in enumerate(messages):
            properties = pika.BasicProperties(**{"delivery_mode": 2, **message.properties, NUMBER: f"m{number}"})
            channel.basic_publish(topology.EXCHANGE, message.routing_key, message.body, properties, mandatory=True)


def wait_until_processed(wire: Wire, database: Database, eventually: Eventually) -> None:
    """Wait until all messages are processed: one more of each queue is applied, and the outbox is empty."""
    seconds, name = 30 + COUNT * SECONDS_EACH, str(uuid.uuid4())
    last = {each: samples.event(each, id=name, order_id=1) for each in ("MenuRejected", "PaymentFailed")}
    send(wire, [Sent(key_of(event_type), encoded(event)) for event_type, event in last.items()])
    ours = order_history.c.message_id == name
    eventually(lambda: len(core.rows(database, order_history, ours)) == 2, "the last messages", seconds=seconds)
    eventually(lambda: core.count(database, outbox) == 0, "the outbox to be empty", seconds=seconds)
    with database.writing() as connection:
        connection.execute(sa.delete(order_history).where(ours))


def take_dead_letters(wire: Wire) -> dict[str, list[Message]]:
    """The dead letters by the number of the message."""
    found: dict[str, list[Message]] = {}
    for queue in topology.QUEUES:
        for message in wire.take(queue.dead_letters):
            found.setdefault(str(message.properties.correlation_id), []).append(message)
    return found


def count_applied(database: Database) -> Counter[tuple[int, str, str]]:
    """How often each message was applied, by order id, type and message id."""
    rows = core.rows(database, order_history, order_history.c.message_id.is_not(None))
    return Counter((row.order_id, row.type, row.message_id) for row in rows)


def identity(message: Sent) -> tuple[int, str, str] | None:
    """Order id, type and message id, if the message can be read."""
    properties = {
        name: value.decode(errors="replace") if isinstance(value, bytes) else value
        for name, value in message.properties.items()
    }
    try:
        reply = envelope.read(envelope.Delivery("", message.routing_key, message.body, properties))
    except envelope.Rejection:
        return None
    return reply.order_id, reply.type, reply.message_id


@MOSTLY_ON_POSTGRESQL
@pytest.mark.usefixtures("raw_headers")
@pytest.mark.timeout(120 + 2 * COUNT * SECONDS_EACH)
def test_each_generated_message_is_applied_or_dead_lettered(
    amqp_url: str, database: Database, wire: Wire, eventually: Eventually
) -> None:
    # given
    core.place_sent(database, ORDERS)
    messages = generated(COUNT)
    assert len(messages) == COUNT

    # when
    service = core.settings(amqp_url, database.url, batch_size=50)
    with core.running(core.worker(service, database)), core.running(lambda stop: Relay(service, database, stop)):
        send(wire, messages)
        wait_until_processed(wire, database, eventually)

    # then
    dead, applied, rejected = take_dead_letters(wire), count_applied(database), wire.take()
    identities = {f"m{number}": identity(message) for number, message in enumerate(messages)}
    problems = [
        (number, message, dead.get(number))
        for number, message in zip(identities, messages, strict=True)
        if not _is_right(message, dead.get(number, []), identities[number], applied)
    ]
    assert problems[:3] == []
    # None is missing, dead-lettered and applied, or applied twice.
    survivors = Counter(identities[number] for number in identities if number not in dead)
    assert applied == dict.fromkeys(survivors, 1)
    assert sum(map(len, dead.values())) + survivors.total() == len(messages)
    assert len(rejected) == len(dead)
    assert len(dead) > len(messages) / 3
    assert len(applied) > len(messages) / 8
    for message in rejected:
        errors = message.event["data"]["errors"]
        assert errors
        assert all(error["field"] and error["problem"] for error in errors), errors


def _is_right(
    message: Sent, dead: list[Message], key: tuple[int, str, str] | None, applied: Counter[tuple[int, str, str]]
) -> bool:
    if not dead:
        return (not message.codes or message.may_be_applied) and key is not None and applied[key] == 1
    [letter] = dead
    found = letter.properties.headers or {}
    kept_bytes = envelope.KEPT_BODY_BYTES if found["x-error"] == "oversized" else None
    kept = letter.body == message.body[:kept_bytes] and letter.routing_key.endswith(".dlq")
    return kept and found["x-error"] in message.codes and f" {message.field}" in str(found["x-error-detail"])
