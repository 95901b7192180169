"""The examples of the OpenAPI document: those of the original API specification, and one of each problem.

A test compares each with a real answer.
"""

import json
from typing import Any

from order_service.web.problems import FieldError, Problem

_ITEMS = [
    {"id": 1, "name": "Nasi Ayam Bakar", "price": 18000, "stock": 14},
    {"id": 2, "name": "Kwetiau Goreng", "price": 20000, "stock": 6},
]
PENDING: dict[str, Any] = {
    "id": 1,
    "user_id": 1,
    "items": _ITEMS,
    "total_price": 38000,
    "status": "pending",
    "created_at": "2025-01-02T03:04:05.678900Z",
}
PAID = PENDING | {"status": "paid"}
CANCELLED = PENDING | {"status": "cancelled"}
UNPRICED = PENDING | {
    "items": [{"id": id, "name": None, "price": None, "stock": None} for id in (1, 2)],
    "total_price": None,
}
PAGE = {"orders": [PENDING], "next_cursor": None}
HISTORY = {
    "events": [
        {"at": "2025-01-02T03:04:05.678900Z", "type": "OrderPlaced",
         "from": None, "to": "awaiting_menu", "message_id": None},
        {"at": "2025-01-02T03:04:05.912345Z", "type": "MenuReserved",
         "from": "awaiting_menu", "to": "awaiting_payment", "message_id": "menu-1"},
    ],
    "next_cursor": None,
}  # fmt: skip
EXPLANATION = {
    "order_id": 1, "status": "paid", "state": "paid", "explanation": "Pesanan 1 dibayar pada 2025-01-02T03:04:06Z.",
    "cause": "ended", "waits_for": None, "since": "2025-01-02T03:04:06.012345Z", "next_reminder_at": None,
    "expires_at": None, "last_answer_at": None, "unconfirmed_compensations": 0,
}  # fmt: skip
EVENT = f"event: status\nid: 2\ndata: {json.dumps(PENDING, ensure_ascii=False)}\n\n"
ORDER_REQUEST = {"user_id": 1, "menu_ids": [1, 2]}
PAYMENT_REQUEST = {"payment_status": "paid"}


def _invalid(field: str, remedy: str, code: str = "invalid_request") -> Problem:
    return Problem(code, {"detail": f"{field} {remedy}"}, errors=[FieldError(field=field, message=remedy)])


#: The examples of the kinds whose messages have placeholders or whose answers have more members.
PROBLEMS = {
    "invalid_payment_status": _invalid(
        "payment_status", "harus pending, paid, atau failed", code="invalid_payment_status"
    ),
    "menu_not_found": Problem("menu_not_found", {"menu_id": 9}, order_id=1),
    "out_of_stock": Problem("out_of_stock", {"menu_id": 2}, order_id=1),
    "price_changed": Problem("price_changed", {"expected": "37000", "total": "38000"}, order_id=1),
    "order_paid": Problem("order_paid", order_id=1),
    "order_failed": Problem("order_failed", {"why": "Pembayaran gagal."}, order_id=1, reason="payment_failed"),
    "order_cancelled": Problem("order_cancelled", order_id=1, reason="cancelled"),
    "invalid_token": Problem("invalid_token", {"why": "sudah kedaluwarsa"}),
    "insufficient_scope": Problem("insufficient_scope", {"scopes": "orders, orders:all"}),
    "invalid_request": _invalid("note", "tidak dikenal; hapus dari permintaan"),
    "malformed_json": Problem("malformed_json", {"detail": "salah pada baris 1 kolom 1"}),
    "too_many_pending": Problem("too_many_pending", {"limit": 20}),
    "idempotency_key_reused": Problem("idempotency_key_reused", order_id=1),
}
