"""Generated requests against the live service, by its own OpenAPI document, on both databases: nothing is to be found.

The siblings answer meanwhile, each order in its own way. ORDER_TEST_CASES=2000 asks for at least so many requests;
by default it is a short slice, the same each time.
"""

import contextlib
import os
import re
import threading
from base64 import b32encode
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from hashlib import sha256
from typing import Any

import pytest
import schemathesis
import sqlalchemy as sa
from hypothesis import strategies as st
from schemathesis.config import SchemathesisConfig
from schemathesis.engine import StopReason, events, from_schema
from schemathesis.openapi.checks import RejectedPositiveData, UseAfterFree

from api import create_app
from order_service import handlers
from order_service.config import Settings
from order_service.contract.envelope import Reply
from order_service.domain.messages import Item, MenuRejected, MenuReserved, Message, PaymentCompleted
from order_service.domain.order import Order, State
from order_service.domain.saga import Clock
from order_service.storage import orders as order_rows
from order_service.storage.database import Database
from order_service.storage.tables import orders
from order_service.web.requests import IDEMPOTENCY_KEY
from tests.integration.test_api import api_of, served

#: Requests to be made at least; without it, a few of each operation.
WANTED = int(os.environ.get("ORDER_TEST_CASES", "0"))
FEW, ORDER_OPERATIONS = 3, 7
#: Valid requests that are refused all the same, and why no schema can say so.
REASONS = {
    "order_not_found": "404: an id may be valid and nobody's",
    "menu_not_found": "404: the menu decides, order by order",
    "out_of_stock": "400: the menu decides, order by order; the client's documents fix the status",
    "price_changed": "409: the menu decides the total, expected_total is the client's guess",
    "order_paid": "409: what has ended stays as it is",
    "order_failed": "409: what has ended stays as it is",
    "order_cancelled": "409: what has ended stays as it is",
}
#: A cursor cannot be made up, but any order's id may stand in one.
schemathesis.openapi.format("cursor", st.integers(1, 1000).map(lambda id: b32encode(b"before:%d" % id).decode()))
pytestmark = pytest.mark.timeout(900)


class Siblings:
    """The Menu and Payment services: what they answer depends on the order's id alone."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database, self._settings = database, settings

    def run(self, stop: threading.Event) -> None:
        while not stop.wait(0.01):
            with self._database.reading() as connection:
                pending = sa.select(orders.c.id).where(orders.c.due_at.is_not(None)).order_by(orders.c.id.desc())
                found = order_rows.read_orders(connection, connection.execute(pending.limit(50)).scalars().all())
            messages = {order.id: message for order in found.values() if (message := self._answer(order))}
            replies = [Reply(type(each).__name__, id, type(each).__name__, each) for id, each in messages.items()]
            clock = Clock(datetime.now(UTC), self._settings.reply_within, self._settings.pay_within)
            if replies:
                with self._database.writing() as connection:
                    changes = handlers.Changes(clock, timedelta(seconds=30))
                    assert handlers.apply_replies(connection, replies, changes) == []

    def _answer(self, order: Order) -> Message | None:
        way = order.id % 7
        if order.state is State.AWAITING_PAYMENT and order.total_price is not None:
            return PaymentCompleted("P1", order.total_price) if way == 3 else None
        if order.state not in (State.AWAITING_MENU, State.AWAITING_MENU_PREPAID) or way == 0:
            return None
        if way in (4, 5):
            return MenuRejected("out_of_stock" if way == 4 else "menu_not_found", order.menu_ids[0])
        price = Decimal("18000.5") if way == 6 else Decimal(20000)
        return MenuReserved(tuple(Item(id, f"Hidangan {id}", price, 14) for id in dict.fromkeys(order.menu_ids)), "R1")


@contextlib.contextmanager
def service(database_url: str) -> Iterator[str]:
    """The address of a real threaded server, whose orders are answered, and whose streams end by themselves."""
    settings = Settings(database_url=database_url, wait_seconds=0.05, stream_seconds=0.05)
    app, stop = create_app(settings), threading.Event()
    siblings = threading.Thread(target=Siblings(api_of(app).database, settings).run, args=[stop])
    siblings.start()
    try:
        with served(app) as (host, port):
            yield f"http://{host}:{port}"
    finally:
        stop.set()
        siblings.join()
        api_of(app).close()


def test_generated_requests_find_nothing(database_url: str) -> None:
    # given
    config = SchemathesisConfig.from_dict(
        {
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
    with service(database_url) as address:
        schema = schemathesis.openapi.from_url(f"{address}/openapi.json", config=config)
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


def explained(recorder: Any, id: str) -> str:
    """What was wrong with one answer, the request, and the answer."""
    failures = [check.failure_info for check in recorder.checks[id] if check.failure_info]
    response = recorder.interactions[id].response
    told = [f"{each.failure.title}: {each.failure.message}\n{each.code_sample}" for each in failures]
    return "\n".join([*told, f"-> {response.status_code} {response.text[:500]}" if response else "-> nothing"])


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: dict[str, Any]) -> None:
    """Mend what a schema cannot forbid."""
    # JSON Schema takes 1.0 for an integer; an id is written 1.
    case.body = whole(case.body)
    # A key belongs to one body: the same body may come again under it, another one may not.
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
    """False for what has its reason."""
    if isinstance(failure, RejectedPositiveData):
        return response.json().get("code") not in REASONS
    # A cancelled order can still be read.
    return not isinstance(failure, UseAfterFree)
