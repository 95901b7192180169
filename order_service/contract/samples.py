"""A valid example of every event, for the generated documents and `python -m order_service events sample`."""

from typing import Any

from order_service.contract.envelope import SOURCE, schema_name
from order_service.contract.events import EVENTS, OUTGOING

_AT = "2025-03-01T12:00:00Z"
_ID = "f3d1c2a1-5f0e-4b59-9d0c-2d3c6f5b7e10"
_TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
_ORDER: dict[str, Any] = {"order_id": 7}
_PLACED: dict[str, Any] = _ORDER | {"user_id": 3}
_LINES = {"lines": [{"menu_id": 1, "quantity": 2}, {"menu_id": 2, "quantity": 1}]}
_ITEMS = [
    {"id": 1, "name": "Nasi Ayam Bakar", "price": 17999.5, "stock": 13},
    {"id": 2, "name": "Kwetiau Goreng", "price": 20000, "stock": 6},
]
_RELEASE, _REFUND = "3d2d8055-22ca-5e8b-a7c6-fd381dbdecfa", "30f51855-2b72-5895-946d-33a18160cbbf"

#: The data of each event, for one order of two Nasi Ayam Bakar and one Kwetiau Goreng.
DATA: dict[str, dict[str, Any]] = {
    "OrderCreated": _PLACED | {"menu_ids": [1, 2, 1], **_LINES, "created_at": _AT, "reply_by": "2025-03-01T12:02:00Z"},
    "PaymentRequested": _PLACED | {"amount": 55999, "pay_by": "2025-03-01T12:15:00Z"},
    "OrderPaid": _PLACED | {"total_price": 55999, "payment_id": "P1", "paid_at": _AT},
    "OrderFailed": _PLACED | {"reason": "out_of_stock", "detail": "menu item 2 is out of stock"},
    "OrderCancelled": _PLACED,
    "StockReleaseRequested": _ORDER
    | {"release_id": _RELEASE, "reservation_id": "R1", **_LINES, "reason": "amount_mismatch"},
    "RefundRequested": _ORDER
    | {"refund_id": _REFUND, "payment_id": "P1", "amount": 55000.5, "reason": "amount_mismatch"},
    "MessageRejected": {
        "message_id": "m-1",
        "type": "PaymentCompleted",
        "errors": [{"field": "data.amount", "problem": "must be a JSON number"}],
        "received_at": _AT,
    },
    "MenuReserved": _ORDER | {"reservation_id": "R1", "items": _ITEMS},
    "MenuRejected": _ORDER | {"reason": "out_of_stock", "menu_id": 2},
    "StockReleased": _ORDER | {"release_id": _RELEASE},
    "PaymentCompleted": _ORDER | {"payment_id": "P1", "amount": 55999},
    "PaymentFailed": _ORDER | {"payment_id": "P1", "reason": "kartu ditolak"},
    "PaymentRefunded": _ORDER | {"refund_id": _REFUND},
}


def event(event_type: str, *, id: str = _ID, at: str = _AT, order_id: int = 7) -> dict[str, Any]:
    """A whole CloudEvent, as its sender should write it. Raises KeyError for an unknown type."""
    is_outgoing, data = event_type in OUTGOING, DATA[event_type]
    domain = EVENTS[event_type].routing_key.partition(".")[0]
    # MessageRejected concerns a message, not a step of an order.
    has_sequence = is_outgoing and "order_id" in data
    return {
        "specversion": "1.0",
        "id": id,
        "source": SOURCE if is_outgoing else f"/{domain}-service",
        "type": event_type,
        "subject": str(order_id),
        "time": at,
        "datacontenttype": "application/json",
        "dataschema": schema_name(event_type),
        **({"sequence": "0000000003"} if has_sequence else {}),
        "correlationid": str(order_id),
        **({"traceparent": _TRACE} if has_sequence else {}),
        "data": data | ({"order_id": order_id} if "order_id" in data else {}),
    }
