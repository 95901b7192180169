"""The envelope around an event: CloudEvents 1.0 in structured JSON out, and a tolerant reader in.

https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/formats/json-format.md
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from hashlib import sha256
from typing import Any
from urllib.parse import urlsplit

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, to_json

from order_service.contract import events
from order_service.domain import order

SOURCE = "/order-service"
APP_ID = "order-service"
CONTENT_TYPE = "application/cloudevents+json"
#: The major version of every schema we write and understand.
SCHEMA_VERSION = 1
#: A larger body is dead-lettered unread: a hundred dishes with long names stay below a tenth of this.
MAX_BODY_BYTES = 256 * 1024
#: AMQP 0-9-1 carries a message id as a short string of at most 255 bytes.
MAX_MESSAGE_ID_BYTES = 255

_TYPE_BY_ROUTING_KEY = {model.routing_key: name for name, model in events.INCOMING.items()}
#: At most three digits: a year in a path is no version.
_VERSION = re.compile(r"(?:^|[/:?#@=._-])[vV]?(\d{1,3})(?:\.\d+)*(?:\.json)?(?=$|[/?#])")
#: What a field must be, by pydantic's name for what is wrong with it; its own texts speak of Python's types.
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
    """RFC 3339 in UTC with a Z, as every time of ours is written."""
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")


def wrap(
    data: BaseModel, *, event_id: str, order_id: int | None, sequence: int | None, at: datetime, trace: str | None
) -> bytes:
    """One event as the body of a message; attributes that have no value are absent."""
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
        "sequence": sequence,
        "correlationid": subject,
        "traceparent": trace,
        "data": data,
    }
    return to_json({name: value for name, value in attributes.items() if value is not None})


def schema_name(event_type: str) -> str:
    """The name of the JSON Schema of an event, its major version last."""
    return f"urn:restaurant:schema:{event_type}:{SCHEMA_VERSION}"


@dataclass(frozen=True, slots=True)
class Delivery:
    """A message as the broker hands it over, free of the client library's types."""

    queue: str
    routing_key: str
    body: bytes
    properties: Mapping[str, Any] = field(default_factory=dict)
    #: How often the broker has handed it over before without hearing of it again.
    returns: int = 0


@dataclass(frozen=True, slots=True)
class Reply:
    """A message we understand: what it asks of which order."""

    message_id: str
    order_id: int
    type: str
    message: order.Message


class Unreadable(Exception):
    """A message that can never be used: a stable code for the machine, field errors for the sibling team."""

    def __init__(self, code: str, errors: list[events.FieldError], *, order_id: int | None = None) -> None:
        super().__init__(f"{code}: " + "; ".join(f"{error.field} {error.problem}" for error in errors))
        self.code, self.errors, self.order_id = code, errors, order_id
        #: What the message called itself, as far as that can be stored.
        self.message_id: str | None = None
        self.type: str | None = None


def unreadable(code: str, field_name: str, problem: str, *, order_id: int | None = None) -> Unreadable:
    """One reason, about one field."""
    return Unreadable(code, [events.FieldError(field=field_name, problem=problem)], order_id=order_id)


def read(delivery: Delivery) -> Reply:
    """Understand a message, enveloped or bare. Raises Unreadable with every reason found."""
    attributes: dict[str, Any] = {}
    try:
        document = _json_object(delivery.body)
        if "specversion" in document:
            # One after the other: what cannot be unwrapped still says what it is.
            attributes = document
            document = _enveloped_data(document)
        return _reply(attributes, document, delivery)
    except Unreadable as error:
        error.message_id = storable(attributes.get("id") or delivery.properties.get("message_id"))
        error.type = storable(_named_type(attributes, delivery))
        raise


def _reply(attributes: dict[str, Any], data: dict[str, Any], delivery: Delivery) -> Reply:
    event_type = _type_of(attributes, delivery)
    try:
        content = events.INCOMING[event_type].model_validate(data)
    except ValidationError as error:
        order_id = data.get("order_id")
        is_number = isinstance(order_id, int) and not isinstance(order_id, bool)
        raise Unreadable("invalid", _field_errors(error), order_id=order_id if is_number else None) from None
    message_id = _message_id(attributes, delivery, content)
    return Reply(message_id, content.order_id, event_type, content.to_message())


def storable(text: object) -> str | None:
    """A name as both databases and AMQP's short strings can hold it, or nothing."""
    if not isinstance(text, str):
        return None
    return text.replace("\0", "").encode(errors="replace")[:255].decode(errors="ignore") or None


def _json_object(body: bytes) -> dict[str, Any]:
    if len(body) > MAX_BODY_BYTES:
        raise unreadable("oversized", "body", f"has {len(body)} bytes, at most {MAX_BODY_BYTES} are read")
    try:
        document = events.exact_json(body)
    except RecursionError:
        raise unreadable("malformed", "body", "is nested too deeply") from None
    except ValueError as error:  # JSONDecodeError, UnicodeDecodeError, and integers of thousands of digits
        raise unreadable("malformed", "body", f"is not JSON: {error}"[:300]) from None
    if not isinstance(document, dict):
        raise unreadable("malformed", "body", "must be a JSON object")
    return document


def _enveloped_data(document: dict[str, Any]) -> dict[str, Any]:
    if not str(document["specversion"]).startswith("1."):
        raise unreadable("newer_version", "specversion", "must be 1.0")
    schema = document.get("dataschema")
    if isinstance(schema, str) and (major := _major_version(schema)) > SCHEMA_VERSION:
        raise unreadable("newer_version", "dataschema", f"names version {major}, we read up to {SCHEMA_VERSION}")
    data = document.get("data")
    if not isinstance(data, dict):
        raise unreadable("invalid", "data", "must be a JSON object")
    return data


# Nearly all messages name one of a few schemas. No more are kept, since a name may be as long as a body.
@lru_cache(maxsize=16)
def _major_version(schema: str) -> int:
    try:
        parts = urlsplit(schema)
    except ValueError:
        return SCHEMA_VERSION
    # The host is left out: the port of http://host:5003/... is no version.
    found = _VERSION.findall(f"{parts.path}?{parts.query}#{parts.fragment}")
    return int(found[-1]) if found else SCHEMA_VERSION


def _named_type(envelope: Mapping[str, Any], delivery: Delivery) -> object:
    """The type a message goes by, or None; its routing key says it where nothing else does."""
    named = envelope.get("type") or delivery.properties.get("type")
    return named or _TYPE_BY_ROUTING_KEY.get(delivery.routing_key)


def _type_of(envelope: Mapping[str, Any], delivery: Delivery) -> str:
    event_type = _named_type(envelope, delivery)
    if not isinstance(event_type, str) or event_type not in events.INCOMING:
        known = ", ".join(events.INCOMING)
        raise unreadable("unknown_type", "type", f"is {str(event_type)[:100]!r}, must be one of {known}")
    return event_type


def _message_id(envelope: Mapping[str, Any], delivery: Delivery, content: events.IncomingData) -> str:
    message_id = envelope.get("id") if envelope else delivery.properties.get("message_id")
    if not envelope and not message_id:
        # Derived from what was understood, so that a message without an id is still a repeat of itself.
        return sha256(f"{type(content).__name__} {content.model_dump_json()}".encode()).hexdigest()
    if not isinstance(message_id, str) or not message_id or "\0" in message_id:
        raise unreadable("invalid", "id", "must be a text that is not empty")
    try:
        fits = len(message_id.encode()) <= MAX_MESSAGE_ID_BYTES
    except UnicodeEncodeError:
        fits = False
    if not fits:
        raise unreadable("invalid", "id", f"must be a text of at most {MAX_MESSAGE_ID_BYTES} bytes")
    return message_id


def _field_errors(error: ValidationError) -> list[events.FieldError]:
    return [
        events.FieldError(field=".".join(["data", *map(str, part["loc"])]), problem=_remedy(part)[:300])
        for part in error.errors(include_url=False, include_input=False)[:20]
    ]


def _remedy(problem: ErrorDetails) -> str:
    limits = problem.get("ctx", {})
    unit = "entries" if limits.get("field_type") == "List" else "characters"
    remedy = _REMEDIES.get(problem["type"], "").format(**limits, unit=unit)
    # A limit that is a decimal comes as Python would write it.
    return re.sub(r"Decimal\('(.*?)'\)", r"\1", remedy) or problem["msg"].removeprefix("Value error, ")
