"""A service of the sandbox without a broker: messages in, the messages of its outbox out."""

import json
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import pika
from flask import Flask

from sandbox.siblings.faults import FaultyService
from sandbox.siblings.kit import connect, transaction


class Direct:
    def __init__(self, service: FaultyService, app: Flask) -> None:
        self.service, self.client, self.db = service, app.test_client(), connect(service.database)

    def tell(self, *messages: bytes) -> list[dict[str, Any]]:
        """Handle the messages as one batch. Returns the replies as they would be published."""
        self.service.handle(self.db, [(pika.BasicProperties(), body) for body in messages])
        return self.outbox()

    def outbox(self) -> list[dict[str, Any]]:
        with transaction(self.db):
            rows = self.db.execute("DELETE FROM outbox RETURNING seq, body").fetchall()
        return [json.loads(row["body"]) for row in sorted(rows, key=lambda row: int(row["seq"]))]

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        return [tuple(row) for row in self.db.execute(query)]


@contextmanager
def direct(service: FaultyService, create_app: Callable[[FaultyService], Flask]) -> Iterator[Direct]:
    opened = Direct(service, create_app(service))
    with closing(opened.db):
        yield opened


def event(event_type: str, **data: Any) -> bytes:
    return json.dumps({"specversion": "1.0", "id": "1", "type": event_type, "data": data}).encode()


def types(replies: list[dict[str, Any]]) -> list[str]:
    return [each["type"] for each in replies]


def order(order_id: int, lines: dict[int, int]) -> bytes:
    wanted = [{"menu_id": menu_id, "quantity": quantity} for menu_id, quantity in lines.items()]
    return event("OrderCreated", order_id=order_id, user_id=1, lines=wanted, unknown_field=[])


def release(order_id: int, reservation_id: object, release_id: object = "release-1") -> bytes:
    return event("StockReleaseRequested", order_id=order_id, release_id=release_id, reservation_id=reservation_id)


def request(order_id: int, amount: object = 38000) -> bytes:
    return event("PaymentRequested", order_id=order_id, user_id=1, amount=amount, pay_by="soon")


def refund(order_id: int, payment_id: object, refund_id: object = "refund-1") -> bytes:
    return event("RefundRequested", order_id=order_id, refund_id=refund_id, payment_id=payment_id, amount=None)
