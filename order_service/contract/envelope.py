"""The envelope around an event: CloudEvents 1.0, written in structured JSON and read in structured and binary mode.

https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/formats/json-format.md
https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/bindings/amqp-protocol-binding.md
"""

import re
from base64 import b64decode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from hashlib import blake2b, sha256
from types import MappingProxyType
from typing import Any, NamedTuple, get_args
from urllib.parse import urlsplit

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails, to_json

from order_service.contract import events
from order_service.domain.messages import MenuReserved, Message
from order_service.domain.order import MAX_PAYMENTS, MAX_RESERVATIONS

SOURCE = "/order-service"
APP_ID = "order-service"
CONTENT_TYPE = "application/cloudevents+json"
#: What the content types of the structured mode start with.
_STRUCTURED = "application/cloudevents"
#: A header with an attribute in binary mode: of the AMQP binding, and of Knative's binding for RabbitMQ.
_BINARY_HEADER = re.compile(r"(?:cloudevents[:_]|ce-)(.+)", re.IGNORECASE)
#: Encodings of a body that is not plain text. https://www.iana.org/assignments/http-parameters
_COMPRESSED = {"gzip", "x-gzip", "compress", "x-compress", "deflate", "br", "zstd"}
#: The major version of all published schemas, and the highest one that is accepted.
SCHEMA_VERSION = 1
#: A larger body is dead-lettered without being decoded; a hundred dishes with long names need a tenth of this.
MAX_BODY_BYTES = 256 * 1024
#: What is kept of a larger body: enough to recognize it, and little for the database and the relay to carry.
KEPT_BODY_BYTES = 64 * 1024
#: A version is looked for in this many characters at the end of `dataschema`: the search takes quadratic time.
MAX_SCHEMA_CHARACTERS = 300
#: AMQP 0-9-1 carries a message id as a short string.
MAX_SHORT_STRING_BYTES = 255

#: Compiled for each message; `to_json` alone takes three times as long.
_SERIALIZERS = {message: TypeAdapter(message).serializer for message in get_args(Message)}
#: What a repeated MenuReserved may report otherwise.
_INFORMATIVE: Mapping[type[Message], Any] = {MenuReserved: {"items": {"__all__": {"stock"}}}}
_TYPE_BY_ROUTING_KEY = {model.routing_key: name for name, model in events.INCOMING.items()}
#: At most three digits: a year in a path is not a version.
_VERSION = re.compile(r"(?:^|[/:?#@=._-])[vV]?(\d{1,3})(?:\.\d+)*(?:\.json)?(?=$|[/?#])")
#: What a field must be, by pydantic's error type; pydantic's own texts name Python types.
#: https://docs.pydantic.dev/latest/errors/validation_errors/
_REMEDIES = {
    "missing": "is missing",
    "int_type": "must be an integer",
    "string_type": "must be a text",
    "string_unicode": "must be a text of whole Unicode characters",
    "string_pattern_mismatch": "must not contain the character NUL",
    "string_too_long": "must have at most {max_length} characters",
    "too_long": "must have at most {max_length} {unit}",
    "too_short": "must not be empty",
    "list_type": "must be a list",
    "model_type": "must be a JSON object",
    "literal_error": "must be {expected}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be below {lt}",
    "less_than_equal": "must be at most {le}",
    "decimal_max_places": "must have at most {decimal_places} decimals",
}


def utc_text(moment: datetime) -> str:
    """RFC 3339 in UTC with a Z, the format of every published time."""
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")


def wrap(
    data: BaseModel,
    *,
    event_id: str,
    order_id: int | None,
    sequence: int | None,
    at: datetime,
    trace: str | None,
    tracestate: str | None = None,
) -> bytes:
    """Encode one event as a message body; attributes without a value are left out."""
    event_type = type(data).__name__
    subject = None if order_id is None else str(order_id)
    attributes = {
        "specversion": "1.0",
        "id": event_id,
        "source": SOURCE,
        "type": event_type,
        "subject": subject,
        "time": at.astimezone(UTC),
        "datacontenttype": "application/json",
        "dataschema": schema_name(event_type),
        # A text that sorts: https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/extensions/sequence.md
        "sequence": None if sequence is None else f"{sequence:010d}",
        "correlationid": subject,
        "traceparent": trace,
        "tracestate": tracestate,
        "data": data,
    }
    return to_json({name: value for name, value in attributes.items() if value is not None})


def schema_name(event_type: str) -> str:
    """The name of the JSON Schema of an event, its major version last."""
    return f"urn:restaurant:schema:{event_type}:{SCHEMA_VERSION}"


@dataclass(frozen=True, slots=True)
class Oversized:
    """The size and the hash of a body of which only the beginning is kept."""

    body_bytes: int
    sha256: str

    @property
    def problem(self) -> str:
        """What the sender must do, as a field error says it."""
        return (
            f"has {self.body_bytes} bytes, at most {MAX_BODY_BYTES} are read: publish a smaller one. "
            f"Only the first {KEPT_BODY_BYTES} bytes are kept"
        )


class Delivery(NamedTuple):
    """A message as the broker delivers it, free of the client library's types."""

    queue: str
    routing_key: str
    body: bytes
    properties: Mapping[str, Any] = MappingProxyType({})
    #: How many times the broker has delivered it before without an ack.
    redeliveries: int = 0
    #: Set if `body` is only the beginning of an oversized body.
    oversized: Oversized | None = None


def shortened(delivery: Delivery) -> Delivery:
    """Cut an oversized body to its beginning. May be repeated."""
    body = delivery.body
    if len(body) <= MAX_BODY_BYTES:
        return delivery
    oversized = Oversized(len(body), sha256(body).hexdigest())
    return delivery._replace(body=body[:KEPT_BODY_BYTES], oversized=oversized)


#: The codes of rejections, with what each means, for docs/events.md.
REJECTIONS: Mapping[str, str] = {
    "malformed": "The body is not a JSON object, or is compressed.",
    "oversized": f"The body is larger than {MAX_BODY_BYTES // 1024} KiB.",
    "newer_version": "`specversion` or `dataschema` names a major version that is not known yet.",
    "unknown_type": "The type is not one of the consumed events, or belongs to another queue.",
    "invalid": "A field is missing or invalid, or contradicts the order.",
    "unknown_order": "There is no order with this `order_id`.",
    "conflicting_id": "The id was used before for a message of the same order and type with another content. "
    "Give each message an id of its own, and use it again only to repeat that message.",
    "too_many": f"The order has {MAX_RESERVATIONS} reservations, or {MAX_PAYMENTS} payments, and this is another one. "
    "No compensation will be requested for it: release or refund it.",
    "internal_error": "The message causes an error in the Order Service.",
}


class Rejection(Exception):
    """A message that can never be applied: a stable code, field errors for its sender, and the ids it contains."""

    def __init__(
        self,
        delivery: Delivery,
        code: str,
        errors: Sequence[events.FieldError],
        *,
        message_id: object = None,
        type: object = None,
        order_id: int | None = None,
    ) -> None:
        """An id or type that is not given is the one in the delivery's AMQP properties."""
        super().__init__(f"{code}: " + "; ".join(f"{error.field} {error.problem}" for error in errors))
        self.delivery, self.code, self.errors, self.order_id = delivery, code, errors, order_id
        self.message_id = storable(message_id or delivery.properties.get("message_id"))
        self.type = storable(type or delivery.properties.get("type"))


def rejection(delivery: Delivery, code: str, field_name: str, problem: str, **ids: Any) -> Rejection:
    """A Rejection for one problem of one field."""
    return Rejection(delivery, code, [events.FieldError(field=field_name, problem=problem)], **ids)


class Reply(NamedTuple):
    """A decoded message for one order, and its delivery."""

    message_id: str
    order_id: int
    type: str
    message: Message
    delivery: Delivery

    @property
    def digest(self) -> str:
        """The same for messages of the same meaning: it ignores envelope, JSON formatting and unknown fields.

        A menu that repeats its answer may report a new stock.
        """
        # Without None: an optional field that a later version adds does not change the digests of older messages.
        kind = type(self.message)
        content = _SERIALIZERS[kind].to_json(self.message, exclude_none=True, exclude=_INFORMATIVE.get(kind))
        return blake2b(content, digest_size=16).hexdigest()

    def rejection(self, code: str, field_name: str, problem: str) -> Rejection:
        ids = {"message_id": self.message_id, "type": self.type, "order_id": self.order_id}
        return rejection(self.delivery, code, field_name, problem, **ids)


def read(delivery: Delivery) -> Reply:
    """Decode a message, in an envelope or bare. Raises Rejection with every reason found."""
    return _Reader(shortened(delivery)).reply()


class _Reader:
    """One delivery being decoded; `_attributes` are those of its envelope, empty for bare data."""

    def __init__(self, delivery: Delivery) -> None:
        self._delivery = delivery
        self._attributes: Mapping[str, Any] = binary_attributes(delivery)
        self._is_structured = False

    def reply(self) -> Reply:
        data = self._data()
        event_type = self._known_type()
        try:
            content = events.INCOMING[event_type].model_validate(data)
        except ValidationError as error:
            order_id = data.get("order_id") if type(data.get("order_id")) is int else None
            raise Rejection(self._delivery, "invalid", _field_errors(error), order_id=order_id, **self._ids()) from None
        message_id = self._message_id(content)
        return Reply(message_id, content.order_id, event_type, content.to_message(), self._delivery)

    def _problem(self, code: str, field_name: str, problem: str) -> Rejection:
        return rejection(self._delivery, code, field_name, problem, **self._ids())

    def _ids(self) -> dict[str, object]:
        return {"message_id": self._attributes.get("id"), "type": self._named_type()}

    def _data(self) -> dict[str, Any]:
        if self._attributes:
            self._check_versions()
        document = self._body()
        if self._attributes or "specversion" not in document:
            return document
        self._attributes, self._is_structured = document, True
        self._check_versions()
        data = document.get("data")
        if data is None and isinstance(document.get("data_base64"), str):
            return self._decoded(document["data_base64"])
        if not isinstance(data, dict):
            raise self._problem("invalid", "data", "must be a JSON object")
        return data

    def _check_versions(self) -> None:
        given = str(self._attributes.get("specversion", "1.0"))
        if not given.startswith("1."):
            number = given.partition(".")[0]
            code = "newer_version" if number.isdecimal() and int(number[:9]) > 1 else "invalid"
            raise self._problem(code, "specversion", f"is {given[:100]!r}, must be 1.0")
        schema = self._attributes.get("dataschema")
        if isinstance(schema, str) and (major := _major_version(schema[-MAX_SCHEMA_CHARACTERS:])) > SCHEMA_VERSION:
            problem = f"names version {major}, we read up to {SCHEMA_VERSION}"
            raise self._problem("newer_version", "dataschema", problem)

    def _body(self) -> dict[str, Any]:
        if self._delivery.oversized:
            raise self._problem("oversized", "body", self._delivery.oversized.problem)
        encoding = str(self._delivery.properties.get("content_encoding", ""))
        if encoding and encoding.strip().lower() in _COMPRESSED:
            problem = f"is {encoding[:100]!r}, which is not read: publish the body uncompressed"
            raise self._problem("malformed", "content_encoding", problem)
        return self._json_object(self._delivery.body, "body")

    def _decoded(self, encoded: str) -> dict[str, Any]:
        try:
            data = b64decode(encoded, validate=True)
        except ValueError as error:  # also binascii.Error
            raise self._problem("invalid", "data_base64", f"is not base64: {error}") from None
        return self._json_object(data, "data_base64")

    def _json_object(self, encoded: bytes, field_name: str) -> dict[str, Any]:
        try:
            document = events.event_json(encoded)
        except RecursionError:
            raise self._problem("malformed", field_name, "is nested too deeply") from None
        except ValueError as error:  # JSONDecodeError, UnicodeDecodeError, and integers of thousands of digits
            raise self._problem("malformed", field_name, f"is not JSON: {error}"[:300]) from None
        if not isinstance(document, dict):
            raise self._problem("malformed", field_name, "must be a JSON object")
        return document

    def _named_type(self) -> object:
        """The type that the message names, or that its routing key implies."""
        named = self._delivery.properties.get("type")
        implied = _TYPE_BY_ROUTING_KEY.get(self._delivery.routing_key)
        # Many client libraries fill the AMQP type with a name of their own.
        return self._attributes.get("type") or (named if named in events.EVENTS else implied or named)

    def _known_type(self) -> str:
        event_type = self._named_type()
        if not isinstance(event_type, str) or event_type not in events.INCOMING:
            known = ", ".join(events.INCOMING)
            raise self._problem("unknown_type", "type", f"is {str(event_type)[:100]!r}, must be one of {known}")
        return event_type

    def _message_id(self, content: events.IncomingData) -> str:
        message_id = self._attributes.get("id")
        if not self._is_structured:
            message_id = message_id or self._delivery.properties.get("message_id")
            if not message_id:
                # Derived from the decoded content, so that a repeat of a message without an id is recognized.
                return sha256(f"{type(content).__name__} {content.model_dump_json()}".encode()).hexdigest()
        if not isinstance(message_id, str) or not message_id or "\0" in message_id:
            raise self._problem("invalid", "id", "must be a text that is not empty")
        if storable(message_id) != message_id:
            raise self._problem("invalid", "id", f"must be a text of at most {MAX_SHORT_STRING_BYTES} bytes")
        return message_id


def binary_attributes(delivery: Delivery) -> Mapping[str, Any]:
    """The attributes in the headers of the binary mode; empty if there are none, or the mode is the structured one."""
    headers = delivery.properties.get("headers")
    if not headers or str(delivery.properties.get("content_type", "")).lower().startswith(_STRUCTURED):
        return {}
    matches = ((_BINARY_HEADER.fullmatch(str(name)), value) for name, value in headers.items() if value is not None)
    attributes = {match[1].lower(): value for match, value in matches if match}
    return attributes if {"specversion", "type", "id"} & attributes.keys() else {}


def storable(text: object) -> str | None:
    """Truncate a string to what both databases and AMQP short strings can hold; None for anything else."""
    if not isinstance(text, str):
        return None
    if text.isprintable() and text.isascii() and 0 < len(text) <= MAX_SHORT_STRING_BYTES:  # nearly all of them
        return text
    return text.replace("\0", "").encode(errors="replace")[:MAX_SHORT_STRING_BYTES].decode(errors="ignore") or None


# Nearly all messages name one of a few schemas; few are kept, because a name may be as long as a body.
@lru_cache(maxsize=16)
def _major_version(schema: str) -> int:
    try:
        parts = urlsplit(schema)
    except ValueError:
        return SCHEMA_VERSION
    # Without the host: the port of http://host:5003/... is not a version.
    found = _VERSION.findall(f"{parts.path}?{parts.query}#{parts.fragment}")
    return int(found[-1]) if found else SCHEMA_VERSION


def _field_errors(error: ValidationError) -> list[events.FieldError]:
    return [
        events.FieldError(field=".".join(["data", *map(str, part["loc"])]), problem=_remedy(part)[:300])
        for part in error.errors(include_url=False, include_input=False)[:20]
    ]


def _remedy(problem: ErrorDetails) -> str:
    limits = problem.get("ctx", {})
    unit = "entries" if limits.get("field_type") == "List" else "characters"
    remedy = _REMEDIES.get(problem["type"], "").format(**limits, unit=unit)
    # pydantic renders a decimal limit as its Python repr.
    return re.sub(r"Decimal\('(.*?)'\)", r"\1", remedy) or problem["msg"].removeprefix("Value error, ")
