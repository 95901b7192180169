"""Dead letters as operators see them: the reason, the sender and the order of each, and the message to replay."""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from hashlib import sha256
from typing import Any

from order_service.contract.envelope import Delivery, Oversized, Rejection, Reply, read, storable, utc_text
from order_service.contract.events import MAX_ID
from order_service.contract.headers import copied, decoded
from order_service.contract.topology import Queue
from order_service.process import printable

ORIGIN_ROUTING_KEY, DEAD_LETTERED_AT, REPLAYED_AT = "x-origin-routing-key", "x-dead-lettered-at", "x-replayed-at"
#: The properties that become headers when a message is dead-lettered or replayed: it must not expire, and the broker
#: refuses the name of another user.
NOT_KEPT = {"expiration", "user_id"}
#: Headers in which this service describes a rejection: no sender's value of them is kept.
OF_REJECTION = {
    "x-error", "x-error-detail", "x-order-id", "x-origin-queue", "x-body-bytes", "x-body-sha256", DEAD_LETTERED_AT,
}  # fmt: skip
#: The broker's. A replayed message has none of either.
_OF_BROKER = {
    "x-delivery-count", "x-death", "x-first-death-exchange", "x-first-death-queue", "x-first-death-reason",
}  # fmt: skip


def original_routing_key(queue: str, routing_key: str, headers: Mapping[str, Any] | None) -> str:
    """The routing key of a delivery; of a replayed message, which is routed by its queue's name, the one it had."""
    return str((headers or {}).get(ORIGIN_ROUTING_KEY, "")) if routing_key == queue else routing_key


def storable_properties(properties: Mapping[str, Any]) -> dict[str, Any]:
    """The properties with texts that AMQP can hold: bytes that are not UTF-8 were decoded to longer replacements."""
    return {name: storable(value) if isinstance(value, str) else value for name, value in properties.items()}


@dataclass(frozen=True)
class DeadLetter:
    """A message in the dead-letter queue of `queue`, with its AMQP properties and its delivery tag."""

    queue: Queue
    properties: Mapping[str, Any]
    body: bytes
    tag: int = 0

    @property
    def key(self) -> tuple[object, ...]:
        """The same each time it is delivered, and another one for a copy with another reason or time."""
        return self.queue.name, self.id, self.reason, self.at, sha256(self.body).digest()

    @property
    def headers(self) -> Mapping[str, Any]:
        return self.properties.get("headers") or {}

    @property
    def delivery(self) -> Delivery:
        """The message as the consumer receives it after a replay."""
        size = self.headers.get("x-body-bytes")
        oversized = Oversized(size, str(self.headers.get("x-body-sha256"))) if isinstance(size, int) else None
        return Delivery(self.queue.name, self._routing_key, self.body, self.properties, oversized=oversized)

    @cached_property
    def reply(self) -> Reply | Rejection:
        """The message as this version reads it, or why it cannot be read."""
        try:
            return read(self.delivery)
        except Rejection as error:
            return error

    @property
    def id(self) -> str:
        """The message's id; without one, the beginning of its hash."""
        return printable(self.reply.message_id or sha256(self.body).hexdigest()[:16])

    @property
    def type(self) -> str:
        return printable(self.reply.type or "unknown")

    @property
    def order_id(self) -> int | None:
        named = str(self.reply.order_id or self.headers.get("x-order-id") or "")
        is_number = named.isascii() and named.isdecimal() and len(named) <= len(str(MAX_ID))
        return int(named) if is_number and int(named) <= MAX_ID else None

    @property
    def reason(self) -> str:
        """The code of its rejection; `broker: ...` if the broker itself dead-lettered it."""
        return printable(self.headers.get("x-error") or f"broker: {self._death.get('reason', 'unknown')}")

    @property
    def detail(self) -> str:
        return printable(self.headers.get("x-error-detail") or self.reason)

    @property
    def sender(self) -> str:
        """Who says to have sent it: its app_id, else the user of its login, else the source of the event."""
        named = self.properties.get("app_id") or self.headers.get("x-original-user_id")
        with suppress(ValueError, TypeError, KeyError, RecursionError):
            named = named or json.loads(self.body)["source"]
        return printable(named or self.headers.get("cloudEvents:source") or "unknown")

    @property
    def at(self) -> datetime | None:
        """When it was dead-lettered; for one of a former version, when it was sent, if it says that."""
        named = self.headers.get(DEAD_LETTERED_AT) or self._death.get("time") or self.properties.get("timestamp")
        with suppress(ValueError, TypeError, OverflowError, OSError):
            return datetime.fromtimestamp(named, UTC) if isinstance(named, int) else _utc(named)
        return None

    def replayed(self, body: bytes, now: datetime) -> dict[str, Any]:
        """The properties of the message to replay with this body."""
        # What the broker dead-lettered itself, such as an expired message, has what its sender chose.
        left_out = OF_REJECTION | _OF_BROKER
        kept, _ = copied({name: value for name, value in self.headers.items() if name not in left_out})
        headers = {name: decoded(value) for name, value in kept.items()}
        headers |= {ORIGIN_ROUTING_KEY: self._routing_key, REPLAYED_AT: utc_text(now)}
        properties = storable_properties(self.properties)
        headers |= {f"x-original-{name}": properties.pop(name) for name in NOT_KEPT & properties.keys()}
        changed = {} if body == self.body else {"content_encoding": None}
        return {**properties, "headers": headers, "delivery_mode": 2, **changed}

    @property
    def _routing_key(self) -> str:
        keys = self._death.get("routing-keys")  # any sender may set it
        return str(self.headers.get(ORIGIN_ROUTING_KEY) or (keys[0] if keys and isinstance(keys, list) else ""))

    @property
    def _death(self) -> Mapping[str, Any]:
        """What the broker notes of a message that it dead-letters: https://www.rabbitmq.com/docs/dlx#effects"""
        deaths = self.headers.get("x-death")
        return deaths[0] if isinstance(deaths, list) and deaths and isinstance(deaths[0], dict) else {}


def _utc(moment: Any) -> datetime:
    """A time, or its text, with UTC if it names no zone. Raises ValueError or TypeError."""
    found = moment if isinstance(moment, datetime) else datetime.fromisoformat(moment)
    return found if found.tzinfo else found.replace(tzinfo=UTC)
