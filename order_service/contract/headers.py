"""The AMQP headers of a dead letter: copied from the original message, and stored as JSON until they are published."""

import json
from base64 import b64decode, b64encode
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from struct import error as StructError
from typing import Any

import pika.data
from pika.exceptions import AMQPError

#: The most bytes of headers that are copied, as JSON and as AMQP. All properties of a message must fit one frame, which
#: has 128 KiB by default: above that the broker closes the connection.
MAX_HEADER_BYTES = 64 * 1024
#: Deeper tables and lists are not copied: reading and writing them takes some stack at each level.
MAX_DEPTH = 50
#: RabbitMQ routes copies to the keys in these: https://www.rabbitmq.com/docs/sender-selected
_ROUTING = ("CC", "BCC")


def copied(headers: Mapping[Any, Any]) -> tuple[dict[str, Any], list[str]]:
    """The headers as JSON, and the names of those left out, because they are too large or AMQP cannot express them.

    Those that would route copies are renamed.
    """
    kept: dict[str, Any] = {}
    left_out: list[str] = []
    size = 0
    for given, value in headers.items():
        name = _name(given)  # compared after decoding: pika gives names that are not UTF-8 as bytes
        if name in _ROUTING:
            name = f"x-original-{name.lower()}"
        try:
            encoded = _encoded(value, MAX_DEPTH)
            needed = max(pika.data.encode_table([], {name: value}), len(json.dumps({name: encoded})))
        except (ValueError, TypeError, StructError, ArithmeticError, RecursionError, AMQPError):
            left_out.append(name)
            continue
        if size + needed > MAX_HEADER_BYTES:
            left_out.append(name)
        else:
            kept[name] = encoded
            size += needed
    return kept, left_out


def properties_of(received: object) -> dict[str, Any]:
    """The AMQP properties of a delivery that are set, by name; pika leaves a text that is not UTF-8 as bytes."""
    return {
        name: value.decode(errors="replace") if isinstance(value, bytes) else value
        for name, value in vars(received).items()
        if value is not None
    }


def decoded(value: Any) -> Any:
    """The header value that `copied` wrote as JSON."""
    if isinstance(value, list):
        return [decoded(each) for each in value]
    if not isinstance(value, dict):
        return value
    [(kind, content)] = value.items()
    match kind:
        case "bytes":
            return b64decode(content)
        case "time":
            return datetime.fromtimestamp(content, UTC)
        case "decimal":
            return Decimal(content)
    return {name: decoded(each) for name, each in content.items()}


def _encoded(value: Any, depth: int) -> Any:
    """Value types that JSON lacks, and tables, become an object with one member that names the type."""
    if not depth:
        raise ValueError("is nested too deeply")
    match value:
        case bytes():
            return {"bytes": b64encode(value).decode()}
        case datetime():
            return {"time": int(value.timestamp())}
        case Decimal():
            return {"decimal": str(value)}
        case list():
            return [_encoded(each, depth - 1) for each in value]
        case dict():
            return {"table": {_name(name): _encoded(each, depth - 1) for name, each in value.items()}}
    return value


def _name(name: str | bytes) -> str:
    return name if isinstance(name, str) else name.decode(errors="ignore")
