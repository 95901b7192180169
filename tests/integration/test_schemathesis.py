"""Requests generated from the OpenAPI document against a real server, on both databases: no answer contradicts it.

The siblings answer during the run, each order in its own way. ORDER_TEST_CASES=2000 makes at least so many requests;
by default it is a short selection, the same each time.
"""

import os
import re
import threading
from base64 import b32encode
from collections import Counter
from collections.abc import Iterator
from decimal import Decimal
from hashlib import sha256
from typing import Any

import jsonschema
import pytest
import schemathesis
import sqlalchemy as sa
from hypothesis import strategies as st
from schemathesis.config import SchemathesisConfig
from schemathesis.engine import StopReason, events, from_schema
from schemathesis.openapi.checks import RejectedPositiveData, UseAfterFree

from order_service.domain.messages import Item, Message
from order_service.domain.order import AWAITING_MENU, Order, State
from order_service.storage import orders as order_rows
from order_service.storage.tables import orders
from order_service.web import openapi
from order_service.web.requests import IDEMPOTENCY_KEY
from order_service.web.routes import Json
from tests.builders import menu_rejected, menu_reserved, payment_completed, reply
from tests.e2e.deployment import MOSTLY_ON_POSTGRESQL
from tests.http_service import Service, ServiceWith, served

#: Requests to be made at least; without it, a few of each operation.
WANTED = int(os.environ.get("ORDER_TEST_CASES", "0"))
FEW, ORDER_OPERATIONS = 3, 7
#: Valid requests that are refused all the same, and why no schema can say so.
REASONS = {
    "order_not_found": "404: an id may be valid and of no order",
    "menu_not_found": "404: the menu decides, order by order",
    "out_of_stock": "400: the menu decides, order by order; the original API specification fixes the status",
    "price_changed": "409: the menu decides the total, expected_total is the client's guess",
    "order_paid": "409: a final state does not change",
    "order_failed": "409: a final state does not change",
    "order_cancelled": "409: a final state does not change",
}
#: A cursor cannot be generated from its schema; one may hold any id.
schemathesis.openapi.format("cursor", st.integers(1, 1000).map(lambda id: b32encode(b"after:%d" % id).decode()))
pytestmark = pytest.mark.timeout(900)


def answer_orders(service: Service, stop: threading.Event) -> None:
    """Be the Menu and Payment services, until stopped."""
    pending = sa.select(orders.c.id).where(orders.c.due_at.is_not(None)).order_by(orders.c.id.desc()).limit(50)
    while not stop.wait(0.01):
        with service.database.reading() as connection:
            found = order_rows.read_orders(connection, connection.execute(pending).scalars().all())
        # Each under the id that its type has: what was answered before is a duplicate.
        service.apply(*(reply(order.id, message) for order in found.values() if (message := answer(order))))


def answer(order: Order) -> Message | None:
    """What its siblings say of this order, which depends on its id alone."""
    way = order.id % 7
    if order.state is State.AWAITING_PAYMENT and order.total_price is not None:
        return payment_completed("P1", order.total_price) if way == 3 else None
    if order.state not in AWAITING_MENU or way == 0:
        return None
    if way in (4, 5):
        return menu_rejected("out_of_stock" if way == 4 else "menu_not_found", order.menu_ids[0])
    price = Decimal("18000.5") if way == 6 else Decimal(20000)
    return menu_reserved("R1", *(Item(id, f"Hidangan {id}", price, 14) for id in dict.fromkeys(order.menu_ids)))


@pytest.fixture
def address(service_with: ServiceWith) -> Iterator[str]:
    """A real threaded server, whose orders are answered and whose streams end by themselves."""
    service, stop = service_with(wait_seconds=0.05, stream_seconds=0.05), threading.Event()
    siblings = threading.Thread(target=answer_orders, args=[service, stop])
    siblings.start()
    try:
        with served(service.app) as (host, port):
            yield f"http://{host}:{port}"
    finally:
        stop.set()
        siblings.join()


@MOSTLY_ON_POSTGRESQL
def test_generated_requests_find_no_violation(address: str) -> None:
    # given
    config = SchemathesisConfig.from_dict(
        {
            "base-url": address,
            **({} if WANTED else {"seed": 1}),
            "generation": {"max-examples": WANTED // ORDER_OPERATIONS or FEW, "deterministic": not WANTED},
            "operations": [{"include-tag": "Service", "generation": {"max-examples": FEW}}],
            # Which statuses a valid request may have besides is said by REASONS, more narrowly.
            "checks": {"positive_data_acceptance": {"expected-statuses": ["2xx", "3xx"]}},
        }
    )
    statuses: Counter[tuple[str, int]] = Counter()
    found: list[str] = []

    # when
    schema = schemathesis.openapi.from_dict(exact(openapi.document(needs_tokens=False)), config=config)
    for event in from_schema(schema).execute():
        match event:
            case events.ScenarioFinished(recorder=recorder):
                for id, interaction in recorder.interactions.items():
                    status = interaction.response.status_code if interaction.response else 0
                    statuses[recorder.cases[id].value.operation.label, status] += 1
                found += [explained(recorder, id) for id in recorder.failing_case_ids()]
            case events.NonFatalError(value=error) | events.FatalError(exception=error):
                found.append(repr(error))
            case events.EngineFinished(stop_reason=reason):
                assert reason is StopReason.COMPLETED

    # then
    print(f"{statuses.total()} requests, seed {config.seed}:", *sorted(statuses.items()), sep="\n")
    assert not found, "\n\n".join(found)
    assert statuses.total() >= max(WANTED, 150)
    assert {200, 201, 202, 400, 404, 405, 409, 415, 422} <= {status for _, status in statuses}


def exact(document: Json) -> Json:
    """The document with no other members in an object than the documented ones, which clients must accept."""
    schemas = document["components"]["schemas"]
    for schema in schemas.values():
        schema.setdefault("additionalProperties", False)
    return document


def test_only_the_check_of_answers_finds_a_member_that_is_not_documented() -> None:
    published, checked = (
        {"$ref": "#/components/schemas/Health", **change(openapi.document(needs_tokens=False))}
        for change in (dict, exact)
    )

    newer = {"status": "ok", "version": 2}

    assert jsonschema.Draft202012Validator(published).is_valid(newer)
    assert not jsonschema.Draft202012Validator(checked).is_valid(newer)


def explained(recorder: Any, id: str) -> str:
    """What was wrong with one answer, the request, and the answer."""
    failures = [check.failure_info for check in recorder.checks[id] if check.failure_info]
    response = recorder.interactions[id].response
    failed = [f"{each.failure.title}: {each.failure.message}\n{each.code_sample}" for each in failures]
    return "\n".join([*failed, f"-> {response.status_code} {response.text[:500]}" if response else "-> nothing"])


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: dict[str, Any]) -> None:
    """Correct what a schema cannot forbid."""
    # JSON Schema takes 1.0 for an integer; an id is written 1.
    case.body = whole(case.body)
    # Nor can it limit decimals: multipleOf 0.0001 fails for 0.3 in validators that compute in doubles.
    if isinstance(case.body, dict) and isinstance(total := case.body.get("expected_total"), float):
        case.body["expected_total"] = whole(round(total, 4))
    # A key belongs to one body: only the same body may be sent again with it.
    key = case.headers.get("Idempotency-Key")
    if isinstance(key, str) and re.fullmatch(IDEMPOTENCY_KEY, key):
        body = sha256(repr(case.body).encode(errors="replace")).hexdigest()
        case.headers["Idempotency-Key"] = key[:150] + body


def whole(value: Any) -> Any:
    """The same JSON, its whole numbers written as such."""
    match value:
        case dict():
            return {name: whole(part) for name, part in value.items()}
        case list():
            return [whole(part) for part in value]
        case float() if value.is_integer():
            return int(value)
    return value


@schemathesis.hook
def filter_failure(context: Any, failure: Any, case: Any, response: Any) -> bool:
    """False for a failure that has its reason."""
    if isinstance(failure, RejectedPositiveData):
        return response.json().get("code") not in REASONS
    # The schema is that of the whole text, which generated clients can read; schemathesis holds each event to it.
    # A cancelled order can still be read.
    return failure.title != "SSE event violates schema" and not isinstance(failure, UseAfterFree)
