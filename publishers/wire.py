"""How an outbox row looks to the broker, so that its console can be read."""

import json
from typing import Any

import sqlalchemy as sa
from pika import DeliveryMode
from pika.spec import BasicProperties

from order_service.contract.envelope import APP_ID, CONTENT_TYPE


def properties_of(row: sa.Row[Any]) -> BasicProperties:
    """The AMQP properties of an event; a dead letter keeps what it said of itself, with its reason in the headers."""
    original: dict[str, Any] = json.loads(row.properties) if row.properties else {}
    headers = original.get("headers") or ({"traceparent": row.traceparent} if row.traceparent else None)
    order_id = None if row.order_id is None else str(row.order_id)
    return BasicProperties(
        type=row.type,
        message_id=row.message_id,
        correlation_id=original.get("correlation_id") or order_id,
        app_id=original.get("app_id") if row.properties else APP_ID,
        content_type=original.get("content_type") if row.properties else CONTENT_TYPE,
        timestamp=int(row.created_at.timestamp()),
        delivery_mode=DeliveryMode.Persistent,
        headers=headers,
    )
