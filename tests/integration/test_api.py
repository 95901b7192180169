"""The HTTP edge on both databases: what the client's documents fix to the letter, and how errors read.

The siblings' replies are applied by the use case that the consumers call, so no broker is needed here.
"""

import contextlib
import http.client
import io
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import psycopg
import pytest
import sqlalchemy as sa
from flask import Flask
from flask.testing import FlaskClient
from structlog.testing import capture_logs
from werkzeug.serving import WSGIRequestHandler, make_server
from werkzeug.test import TestResponse

from api import Api, create_app
from order_service import handlers
from order_service.config import Settings
from order_service.contract.envelope import Reply
from order_service.domain.messages import Cancel, Item, MenuRejected, MenuReserved, Message, PaymentCompleted
from order_service.domain.order import State
from order_service.domain.saga import Clock
from order_service.storage.tables import order_history, orders, outbox
from order_service.web.requests import preferred_wait

Eventually = Callable[..., Any]

AYAM = Item(1, "Nasi Ayam Bakar", Decimal("18000"), 14)
KWETIAU = Item(2, "Kwetiau Goreng", Decimal("20000"), 6)
RESERVED = MenuReserved((AYAM, KWETIAU), "R1")
EXAMPLE = {"user_id": 1, "menu_ids": [1, 2]}
ASYNC = {"Prefer": "respond-async"}
JSON_HEADERS = {"Content-Type": "application/json"}
SIX_KEYS = ["id", "user_id", "items", "total_price", "status", "created_at"]
PROBLEM = "application/problem+json"


def api_of(app: Flask) -> Api:
    """What the app's routes use."""
    found: Api = app.extensions["api"]
    return found


class Service:
    """The API on one database, with the siblings' replies applied as the consumers would."""

    def __init__(self, database_url: str, eventually: Eventually, **settings: Any) -> None:
        self.settings = Settings(database_url=database_url, **{"wait_seconds": 10} | settings)
        self.app = create_app(self.settings)
        self.database = api_of(self.app).database
        self.eventually = eventually
        self._pool = ThreadPoolExecutor(32)

    def close(self) -> None:
        self._pool.shutdown()
        api_of(self.app).close()

    @property
    def client(self) -> FlaskClient:
        return self.app.test_client()

    def post(self, body: Any = EXAMPLE, headers: dict[str, str] | None = None) -> TestResponse:
        return self.client.post("/orders", json=body, headers=headers)

    def post_waiting(
        self, body: Any = EXAMPLE, headers: dict[str, str] | None = None
    ) -> tuple[int, Future[TestResponse]]:
        """POST in a thread; returns once the order is recorded, with its id and the answer to come."""
        before = self.last_id()
        future = self._pool.submit(self.post, body, headers)

        def recorded() -> int:
            if future.done():
                pytest.fail(f"the POST did not wait: {future.result().status} {future.result().text}")
            return self.last_id() - before

        self.eventually(recorded, "the order to be recorded")
        return self.last_id(), future

    def post_answered(
        self, message: Message, body: Any = EXAMPLE, headers: dict[str, str] | None = None
    ) -> TestResponse:
        """The answer to a POST whose menu replies while it waits."""
        order_id, future = self.post_waiting(body, headers)
        self.tell(order_id, message)
        return future.result(timeout=20)

    def tell(self, order_id: int, *messages: Message) -> None:
        """Apply replies as one consumer's batch."""
        replies = [Reply(str(uuid4()), order_id, type(message).__name__, message) for message in messages]
        with self.database.writing() as connection:
            assert handlers.apply_replies(connection, replies, self._changes()) == []

    def cancel(self, order_id: int) -> None:
        with self.database.writing() as connection:
            handlers.change_order(connection, order_id, Cancel(), self._changes())

    def _changes(self) -> handlers.Changes:
        clock = Clock(datetime.now(UTC), self.settings.reply_within, self.settings.pay_within)
        return handlers.Changes(clock, timedelta(seconds=30))

    def order_in(self, state: State) -> int:
        """The id of a new order in this state."""
        order_id: int = (self.post(headers=ASYNC).json or {})["id"]
        match state:
            case State.AWAITING_MENU_PREPAID:
                self.tell(order_id, PaymentCompleted("P1", Decimal(38000)))
            case State.AWAITING_PAYMENT:
                self.tell(order_id, RESERVED)
            case State.PAID:
                self.tell(order_id, RESERVED, PaymentCompleted("P1", Decimal(38000)))
            case State.FAILED:
                self.tell(order_id, MenuRejected("out_of_stock", 2))
            case State.CANCELLED:
                self.cancel(order_id)
        assert self.state(order_id) == state
        return order_id

    def state(self, order_id: int) -> str:
        return str(self._scalar(sa.select(orders.c.state).where(orders.c.id == order_id)))

    def last_id(self) -> int:
        return int(self._scalar(sa.select(sa.func.max(orders.c.id))) or 0)

    def rows(self) -> tuple[int, int, int]:
        """How many orders, history entries and outbox rows there are."""
        counts = [self._scalar(sa.select(sa.func.count()).select_from(t)) for t in (orders, order_history, outbox)]
        return counts[0], counts[1], counts[2]

    def _scalar(self, query: sa.Select[Any]) -> Any:
        with self.database.reading() as connection:
            return connection.execute(query).scalar()


@pytest.fixture
def service(database_url: str, eventually: Eventually) -> Iterator[Service]:
    with contextlib.closing(Service(database_url, eventually)) as service:
        yield service


@pytest.fixture
def client(tmp_path: Path) -> Iterator[FlaskClient]:
    """The API on a database that cannot be opened: what it answers without 503, it answers without asking it."""
    unusable = tmp_path / "orders.db"
    unusable.mkdir()
    app = create_app(Settings(database_url=f"sqlite:///{unusable}", wait_seconds=0))
    yield app.test_client()
    api_of(app).close()


class QuietHandler(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"

    def log(self, type: str, message: str, *args: Any) -> None:
        pass


@contextlib.contextmanager
def served(app: Flask) -> Iterator[tuple[str, int]]:
    """A real threaded server, for what the test client cannot do."""
    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=QuietHandler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield "127.0.0.1", server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def problem(answer: TestResponse, status: int, code: str) -> dict[str, Any]:
    """The problem that must have been answered."""
    assert (answer.status_code, answer.content_type) == (status, PROBLEM), answer.text
    body: dict[str, Any] = answer.get_json(force=True)
    assert (body["status"], body["code"]) == (status, code)
    assert body["message"]
    assert {"type", "title"} <= body.keys()
    return body


# The main road: reserved in time.


def test_reserved_in_time_is_201_with_exactly_the_six_keys_of_the_client(service: Service) -> None:
    # given, when
    answer = service.post_answered(RESERVED)

    # then
    body = json.loads(answer.text)
    assert answer.status_code == 201
    assert list(body) == SIX_KEYS
    assert [list(item) for item in body["items"]] == [["id", "name", "price", "stock"]] * 2
    assert body == {
        "id": 1,
        "user_id": 1,
        "items": [
            {"id": 1, "name": "Nasi Ayam Bakar", "price": 18000, "stock": 14},
            {"id": 2, "name": "Kwetiau Goreng", "price": 20000, "stock": 6},
        ],
        "total_price": 38000,
        "status": "pending",
        "created_at": body["created_at"],
    }
    assert answer.headers["Location"] == "/orders/1"
    assert answer.content_type == "application/json"


def test_prices_are_json_numbers_without_a_trailing_zero(service: Service) -> None:
    # given
    reserved = MenuReserved((Item(1, "Teh", Decimal("0.1"), 3), Item(2, "Nasi", Decimal("18000.00"), 1)), "R1")

    # when
    text = service.post_answered(reserved, {"user_id": 1, "menu_ids": [1, 1, 1, 2]}).text

    # then
    body = json.loads(text, parse_float=str)
    assert [item["price"] for item in body["items"]] == ["0.1", "0.1", "0.1", 18000]
    assert body["total_price"] == "18000.3"


def test_items_are_one_per_requested_id_in_order_with_repeats(service: Service) -> None:
    answer = service.post_answered(RESERVED, {"user_id": 7, "menu_ids": [2, 1, 2, 2]})

    body = json.loads(answer.text)
    assert [item["id"] for item in body["items"]] == [2, 1, 2, 2]
    assert [item["stock"] for item in body["items"]] == [6, 14, 6, 6]
    assert (body["user_id"], body["total_price"]) == (7, 78000)


def test_created_at_is_rfc_3339_in_utc(service: Service) -> None:
    # given
    before = datetime.now(UTC)

    # when
    created_at = json.loads(service.post(headers=ASYNC).text)["created_at"]

    # then
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", created_at)
    assert before <= datetime.fromisoformat(created_at) <= datetime.now(UTC)


def test_get_answers_the_very_body_of_the_post(service: Service) -> None:
    posted = service.post_answered(RESERVED)

    found = service.client.get(posted.headers["Location"])

    assert (found.status_code, found.text) == (200, posted.text)


def test_hundred_dishes_are_one_order(service: Service) -> None:
    answer = service.post({"user_id": 2**31 - 1, "menu_ids": [2**31 - 1] * 100}, ASYNC)

    assert (answer.status_code, len(json.loads(answer.text)["items"])) == (202, 100)


def test_names_come_back_as_the_menu_wrote_them(service: Service) -> None:
    name = 'Mie "Äyam" 🍜 \\ </script>'

    answer = service.post_answered(MenuReserved((Item(1, name, Decimal(1), 0),), None), {"user_id": 1, "menu_ids": [1]})

    assert answer.json is not None
    assert answer.json["items"][0] == {"id": 1, "name": name, "price": 1, "stock": 0}


# The menu is silent, or says no.


def test_silent_menu_is_202_with_nulls_and_location(service: Service) -> None:
    # when
    answer = service.post({"user_id": 1, "menu_ids": [2, 2]}, {"Prefer": "wait=0"})

    # then
    body = json.loads(answer.text)
    nothing = {"id": 2, "name": None, "price": None, "stock": None}
    assert (answer.status_code, answer.headers["Location"]) == (202, f"/orders/{body['id']}")
    assert list(body) == SIX_KEYS
    assert (body["items"], body["total_price"], body["status"]) == ([nothing, nothing], None, "pending")
    assert service.client.get(f"/orders/{body['id']}").text == answer.text


@pytest.mark.parametrize(
    ("rejection", "status", "code", "message", "english"),
    [
        (
            MenuRejected("menu_not_found", 9),
            404,
            "menu_not_found",
            "Menu item 9 tidak ditemukan.",
            "Menu item 9 was not found.",
        ),
        (
            MenuRejected("out_of_stock", 2),
            400,
            "out_of_stock",
            "Menu item 2 kehabisan stok.",
            "Menu item 2 is out of stock.",
        ),
    ],
)
def test_rejected_in_time_is_the_clients_error_with_the_orders_id(
    service: Service, rejection: MenuRejected, status: int, code: str, message: str, english: str
) -> None:
    # when
    indonesian = problem(service.post_answered(rejection), status, code)
    in_english = problem(service.post_answered(rejection, headers={"Accept-Language": "en"}), status, code)

    # then
    assert (indonesian["message"], indonesian["order_id"]) == (message, 1)
    assert (in_english["message"], in_english["order_id"]) == (english, 2)
    assert (service.client.get("/orders/1").json or {})["status"] == "failed"


def test_total_other_than_expected_is_409_price_changed_before_any_payment(service: Service) -> None:
    # when
    body = problem(service.post_answered(RESERVED, EXAMPLE | {"expected_total": 37999.5}), 409, "price_changed")

    # then
    assert body["order_id"] == 1
    assert "38000" in body["message"]
    assert (service.client.get("/orders/1").json or {})["status"] == "failed"
    with service.database.reading() as connection:
        leaving = set(connection.execute(sa.select(outbox.c.type)).scalars())
    assert leaving == {"OrderCreated", "OrderFailed", "StockReleaseRequested"}


@pytest.mark.parametrize("expected", ["38000", "38000.00", "3.8e4"])
def test_total_as_expected_is_201_however_it_is_written(service: Service, expected: str) -> None:
    # given
    data = f'{{"user_id": 1, "menu_ids": [1, 2], "expected_total": {expected}}}'
    future = ThreadPoolExecutor(1).submit(service.client.post, "/orders", data=data, headers=JSON_HEADERS)
    service.eventually(service.last_id, "the order to be recorded")

    # when
    service.tell(1, RESERVED)

    # then
    assert (future.result().status_code, (future.result().json or {})["total_price"]) == (201, 38000)


def test_order_paid_while_the_post_waits_is_201_and_paid(service: Service) -> None:
    order_id, future = service.post_waiting()

    service.tell(order_id, PaymentCompleted("P1", Decimal(38000)), RESERVED)

    assert (future.result().status_code, (future.result().json or {})["status"]) == (201, "paid")


# Prefer.


def test_prefer_decides_how_long_a_post_waits(database_url: str, eventually: Eventually) -> None:
    # given
    default = 0.8
    expected: dict[str | None, float] = {
        None: default,
        "respond-async": 0,
        "wait=0": 0,
        "wait=1": 1,
        'WAIT = "1"': 1,
        "respond-async, wait=1": 1,
        "wait=1, respond-async": 1,
        "handling=lenient, wait=1; extra=2": 1,
        "nonsense": default,
        "wait=soon": default,
        "wait=-1": default,
        "wait=0.1": default,
        "wait": default,
        ",;=,": default,
    }

    def timed(preference: str | None) -> tuple[int, float]:
        start = time.monotonic()
        answer = service.post(headers={"Prefer": preference} if preference else None)
        return answer.status_code, time.monotonic() - start

    # when
    with contextlib.closing(Service(database_url, eventually, wait_seconds=default)) as service:
        with ThreadPoolExecutor(len(expected)) as pool:
            answers = dict(zip(expected, pool.map(timed, expected), strict=True))
        alone = timed("respond-async")

    # then
    assert {status for status, _ in answers.values()} == {202}
    too_early = {text: took for text, (_, took) in answers.items() if took < expected[text]}
    too_late = {text: took for text, (_, took) in answers.items() if took > expected[text] + 1.5}
    assert (too_early, too_late) == ({}, {})
    assert alone[1] < 0.5


@pytest.mark.parametrize(
    ("preferences", "seconds"),
    [
        ("wait=30", 30),
        ("wait=31", 30),
        ("wait=999999999", 30),
        ("wait=99999999999999999999", 30),
        ("respond-async, wait=5", 5),
        ("wait=5,wait=9", 5),
    ],
)
def test_wait_is_capped_at_30_seconds_and_the_first_one_counts(preferences: str, seconds: float) -> None:
    assert preferred_wait(preferences, 2)[0] == seconds


def test_long_wait_ends_with_the_reply(service: Service) -> None:
    start = time.monotonic()

    answer = service.post_answered(RESERVED, headers={"Prefer": "wait=30"})

    assert answer.status_code == 201
    assert time.monotonic() - start < 5


def test_many_wait_at_once_and_each_gets_its_own_answer(service: Service) -> None:
    # given
    waiting = [service.post_waiting({"user_id": n, "menu_ids": [1]}) for n in range(1, 17)]

    # when
    for order_id, _ in reversed(waiting):
        item = Item(1, f"Dish of {order_id}", Decimal(order_id), order_id)
        service.tell(order_id, MenuReserved((item,), f"R{order_id}"))

    # then
    for order_id, future in waiting:
        body = future.result(timeout=20).json or {}
        assert (future.result().status_code, body["id"], body["total_price"]) == (201, order_id, order_id)
        assert body["items"][0]["name"] == f"Dish of {order_id}"


# GET, and PUT payment.


@pytest.mark.parametrize("id", ["0", "1", "2147483648", "9" * 19, "9" * 40, "1" + "0" * 400])
def test_unknown_order_is_404_in_the_clients_words(service: Service, id: str) -> None:
    for answer in (
        service.client.get(f"/orders/{id}"),
        service.client.put(f"/orders/{id}/payment", json={"payment_status": "paid"}),
    ):
        assert problem(answer, 404, "order_not_found")["message"] == "Pemesanan tidak ditemukan."


def test_unknown_order_is_404_in_english_when_preferred(service: Service) -> None:
    answer = service.client.get("/orders/1", headers={"Accept-Language": "en"})

    assert problem(answer, 404, "order_not_found")["message"] == "The order was not found."


#: The table of the design: 200 if and only if the order then has that status.
PUT_ANSWERS = {
    "paid": [202, 202, 200, 200, 409, 409],
    "failed": [200, 200, 200, 409, 200, 409],
    "pending": [200, 200, 200, 409, 409, 409],
}


@pytest.mark.parametrize(
    ("state", "wanted", "expected"),
    [(state, wanted, answer) for wanted, row in PUT_ANSWERS.items() for state, answer in zip(State, row, strict=True)],
)
def test_put_payment_answers_as_the_decision_table_says(
    service: Service, state: State, wanted: str, expected: int
) -> None:
    # given
    order_id = service.order_in(state)
    before = service.client.get(f"/orders/{order_id}").json or {}

    # when
    answer = service.client.put(f"/orders/{order_id}/payment", json={"payment_status": wanted})

    # then
    after = service.client.get(f"/orders/{order_id}").json or {}
    assert answer.status_code == expected, answer.text
    if expected == 409:
        conflict = problem(answer, 409, f"order_{before['status']}")
        assert (conflict["order_id"], after) == (order_id, before)
    else:
        assert list(json.loads(answer.text)) == SIX_KEYS
        assert answer.json == after
        assert (answer.status_code == 200) == (after["status"] == wanted)


def test_repeated_put_changes_nothing_and_announces_nothing_more(service: Service) -> None:
    # given
    order_id = service.order_in(State.AWAITING_PAYMENT)
    first = service.client.put(f"/orders/{order_id}/payment", json={"payment_status": "paid"})
    rows = service.rows()

    # when
    again = [service.client.put(f"/orders/{order_id}/payment", json={"payment_status": "paid"}) for _ in range(3)]

    # then
    assert {(answer.status_code, answer.text) for answer in again} == {(200, first.text)}
    assert service.rows() == rows


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"payment_status": None},
        {"payment_status": ""},
        {"payment_status": "PAID"},
        {"payment_status": "cancelled"},
        {"payment_status": " paid"},
        {"payment_status": True},
        {"payment_status": 1},
        {"payment_status": ["paid"]},
        {"payment_status": {"paid": True}},
        {"status": "paid"},
        {"payment_status": "\x00"},
        {"payment_status": "\ud800"},
    ],
)
@pytest.mark.parametrize("id", ["1", "99", "9" * 30])
def test_any_other_payment_status_is_400_before_the_order_is_looked_for(
    client: FlaskClient, body: Any, id: str
) -> None:
    # when
    answer = client.put(f"/orders/{id}/payment", data=json.dumps(body), headers=JSON_HEADERS)

    # then
    found = problem(answer, 400, "invalid_payment_status")
    assert found["message"] == "Status pembayaran tidak valid."
    assert [error["field"] for error in found["errors"]] == ["payment_status"]
    assert "pending, paid" in found["errors"][0]["message"]


# What is not a valid request: named, with its remedy, before the database is asked.

INTEGER_EN = "must be an integer from 1 to 2147483647"
LIST_EN = "must be a list of 1 to 100 integers from 1 to 2147483647"
NOT_IDS = [
    '"1"',
    "true",
    "false",
    "null",
    "1.0",
    "1.5",
    "0",
    "-1",
    "2147483648",
    "1" + "0" * 30,
    "1e3",
    "[1]",
    "{}",
    '""',
]


@pytest.mark.parametrize(
    ("body", "field", "remedy"),
    [
        *[(f'{{"user_id": {value}, "menu_ids": [1]}}', "user_id", INTEGER_EN) for value in NOT_IDS],
        *[(f'{{"user_id": 1, "menu_ids": [1, {value}]}}', "menu_ids.1", LIST_EN) for value in NOT_IDS],
        ('{"menu_ids": [1]}', "user_id", INTEGER_EN),
        ('{"user_id": 1}', "menu_ids", LIST_EN),
        ('{"user_id": 1, "menu_ids": []}', "menu_ids", LIST_EN),
        ('{"user_id": 1, "menu_ids": null}', "menu_ids", LIST_EN),
        ('{"user_id": 1, "menu_ids": 1}', "menu_ids", LIST_EN),
        ('{"user_id": 1, "menu_ids": "1,2"}', "menu_ids", LIST_EN),
        ('{"user_id": 1, "menu_ids": {"0": 1}}', "menu_ids", LIST_EN),
        (json.dumps({"user_id": 1, "menu_ids": [1] * 101}), "menu_ids", LIST_EN),
        ('{"user_id": 1, "menu_ids": [1], "note": "no chili"}', "note", "is not known; leave it out"),
        ('{"user_id": 1, "menu_ids": [1], "menu_Ids": [1]}', "menu_Ids", "is not known; leave it out"),
        (r'{"user_id": 1, "menu_ids": [1], "\ud800": 1}', None, "is not known; leave it out"),
        ('{"user_id": 1, "menu_ids": [1], "{0.__class__}": 1}', "{0.__class__}", "is not known; leave it out"),
        *[
            (
                f'{{"user_id": 1, "menu_ids": [1], "expected_total": {value}}}',
                "expected_total",
                "must be a number from 0",
            )
            for value in ('"38000"', "true", "-1", "-0.0001", "100000000000", "0.00001", "1e400", "1e999999", "[1]")
        ],
        ("[]", "body", "must be a JSON object"),
        ("1", "body", "must be a JSON object"),
        ("null", "body", "must be a JSON object"),
        (json.dumps(json.dumps(EXAMPLE)), "body", "must be a JSON object"),
    ],
)
def test_invalid_order_is_422_naming_the_field_and_its_remedy(
    client: FlaskClient, body: str, field: str | None, remedy: str
) -> None:
    # when
    english = client.post("/orders", data=body, headers=JSON_HEADERS | {"Accept-Language": "en"})
    indonesian = client.post("/orders", data=body, headers=JSON_HEADERS)

    # then
    found = problem(english, 422, "invalid_request")
    errors = {error["field"]: error["message"] for error in found["errors"]}
    assert len(errors) == 1
    if field is not None:
        assert list(errors) == [field]
        assert field in found["message"]
    assert remedy in next(iter(errors.values()))
    assert remedy in found["message"]
    in_indonesian = problem(indonesian, 422, "invalid_request")
    assert in_indonesian["message"].startswith("Permintaan tidak valid: ")
    assert remedy not in in_indonesian["message"]


def test_every_wrong_field_is_named_at_once(client: FlaskClient) -> None:
    answer = client.post("/orders", json={"user_id": "1", "menu_ids": [1, "2", 0], "extra": 1})

    found = problem(answer, 422, "invalid_request")
    assert {error["field"] for error in found["errors"]} == {"user_id", "menu_ids.1", "menu_ids.2", "extra"}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"{",
        b"{'user_id': 1}",
        b'{"user_id": 1, "menu_ids": [1],}',
        b'{"user_id": NaN, "menu_ids": [1]}',
        b'{"user_id": 1, "menu_ids": [1], "expected_total": NaN}',
        b'{"user_id": 1, "menu_ids": [1], "expected_total": -Infinity}',
        b'{"user_id": 1, "menu_ids": [1]} {}',
        b'{"user_id": 1, "menu_ids": [1], "note": "\xff"}',
        '{"user_id": 1, "menu_ids": [1]}'.encode("utf-16"),
        b'\xef\xbb\xbf{"user_id": 1, "menu_ids": [1]}',
        b'{"user_id": 1, "menu_ids": [1], "note": "\x00"}',
        b'{"user_id": ' + b"[" * 60_000,
        b'{"user_id": ' * 5_000,
        b"[" * 30_000 + b"]" * 30_000,
        b'{"user_id": 1' + b"0" * 5_000 + b', "menu_ids": [1]}',
        b"user_id=1&menu_ids=1",
        b"\x1f\x8b\x08\x00",
    ],
)
@pytest.mark.parametrize(("method", "path"), [("POST", "/orders"), ("PUT", "/orders/1/payment")])
def test_malformed_json_is_400(client: FlaskClient, method: str, path: str, body: bytes) -> None:
    answer = client.open(path, method=method, data=body, headers=JSON_HEADERS)

    problem(answer, 400, "malformed_json")


@pytest.mark.parametrize(
    "content_type",
    [None, "", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "json", "*/*"],
)
@pytest.mark.parametrize(("method", "path"), [("POST", "/orders"), ("PUT", "/orders/1/payment")])
def test_other_content_type_is_415_naming_the_right_one(
    client: FlaskClient, method: str, path: str, content_type: str | None
) -> None:
    headers = {} if content_type is None else {"Content-Type": content_type}

    answer = client.open(path, method=method, data=json.dumps(EXAMPLE), headers=headers)

    assert "application/json" in problem(answer, 415, "unsupported_media_type")["message"]


@pytest.mark.parametrize("content_type", ["application/json", "application/json; charset=utf-8", "APPLICATION/JSON"])
def test_json_is_taken_with_parameters_and_in_any_case(client: FlaskClient, content_type: str) -> None:
    answer = client.post("/orders", data="{}", headers={"Content-Type": content_type})

    problem(answer, 422, "invalid_request")


def test_64_kib_are_read_and_one_byte_more_is_413(client: FlaskClient) -> None:
    limit = 64 * 1024

    fits = client.post("/orders", data="{}".ljust(limit), headers=JSON_HEADERS)
    too_large = client.post("/orders", data="{}".ljust(limit + 1), headers=JSON_HEADERS)

    problem(fits, 422, "invalid_request")
    assert "64 KiB" in problem(too_large, 413, "body_too_large")["message"]


class BrokenChunk(Exception):
    """As gunicorn's own errors, it derives from nothing in particular."""


class Broken(io.RawIOBase):
    """A request's body that cannot be read to its end."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        raise self._error


@pytest.mark.parametrize(
    "error", [BrokenChunk("zz"), OSError("gone"), EOFError(), TimeoutError(), ConnectionResetError()]
)
@pytest.mark.parametrize("length", ["2", None])
@pytest.mark.parametrize(("method", "path"), [("POST", "/orders"), ("PUT", "/orders/1/payment")])
def test_body_that_breaks_off_is_400_and_not_our_mistake(
    client: FlaskClient, method: str, path: str, length: str | None, error: Exception
) -> None:
    # given
    headers = JSON_HEADERS | ({"Content-Length": length} if length else {})
    environ = {"wsgi.input": Broken(error), "wsgi.input_terminated": length is None}

    # when
    with capture_logs() as lines:
        answer = client.open(path, method=method, headers=headers, environ_overrides=environ)

    # then
    problem(answer, 400, "bad_request")
    assert {line["log_level"] for line in lines} <= {"info"}


# Anything else that is asked of the server.


@pytest.mark.parametrize(
    "path",
    [
        "/", "/nothing", "/orders/abc", "/orders/-1", "/orders/1.0", "/orders/1/nothing", "/%00", "/orders/", "//orders",
        "/orders//1", "/orders/1//payment", "/orders/01", "/orders/00", "/orders/+1", "/orders/%D9%A1", "/orders/1%D9%A1",
        "/orders/%EF%BC%91", "/orders/1%0A", "/orders/1%0A/payment",
    ],
)  # fmt: skip
def test_unknown_route_is_404_in_json(client: FlaskClient, path: str) -> None:
    assert problem(client.get(path), 404, "not_found")["message"] == "Alamat tidak ditemukan."


def test_path_of_more_digits_than_python_reads_is_404_in_json(client: FlaskClient) -> None:
    problem(client.get(f"/orders/{'9' * 5_000}"), 404, "not_found")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PATCH", "/orders", "POST"),
        ("PUT", "/orders", "POST"),
        ("PATCH", "/orders/1", "GET"),
        ("POST", "/orders/1/payment", "PUT"),
        ("GET", "/orders/1/payment", "PUT"),
        ("POST", "/healthz", "GET"),
    ],
)
def test_other_method_is_405_in_json_with_allow(client: FlaskClient, method: str, path: str, allowed: str) -> None:
    answer = client.open(path, method=method)

    assert method in problem(answer, 405, "method_not_allowed")["message"]
    assert allowed in answer.headers["Allow"].replace(" ", "").split(",")


def test_head_answers_as_get_without_a_body(service: Service) -> None:
    service.post(headers=ASYNC)

    heads = [service.client.head(path) for path in ("/orders/1", "/orders/2", "/healthz", "/nothing")]

    assert [(answer.status_code, answer.data) for answer in heads] == [(200, b""), (404, b""), (200, b""), (404, b"")]


def test_options_names_the_methods(client: FlaskClient) -> None:
    answers = {path: client.options(path) for path in ("/orders", "/orders/1", "/orders/1/payment")}

    assert {answer.status_code for answer in answers.values()} == {200}
    allowed = {path: set(answer.headers["Allow"].split(", ")) for path, answer in answers.items()}
    assert "POST" in allowed["/orders"]
    assert {"GET", "HEAD"} <= allowed["/orders/1"]
    assert "PUT" in allowed["/orders/1/payment"]


@pytest.mark.parametrize(
    ("accepted", "message"),
    [
        (None, "Alamat tidak ditemukan."),
        ("id", "Alamat tidak ditemukan."),
        ("fr", "Alamat tidak ditemukan."),
        ("*", "Alamat tidak ditemukan."),
        ("id, en;q=0.9", "Alamat tidak ditemukan."),
        (";;q=,", "Alamat tidak ditemukan."),
        ("en;q=0", "Alamat tidak ditemukan."),
        ("en;q=0.000, *", "Alamat tidak ditemukan."),
        ("id;q=0, en;q=0.1", "There is nothing at this address."),
        ("en", "There is nothing at this address."),
        ("en-US,en;q=0.9", "There is nothing at this address."),
        ("fr, en;q=0.2", "There is nothing at this address."),
    ],
)
def test_message_is_indonesian_unless_english_is_preferred(
    client: FlaskClient, accepted: str | None, message: str
) -> None:
    headers = {} if accepted is None else {"Accept-Language": accepted}

    answer = client.get("/nothing", headers=headers)

    assert problem(answer, 404, "not_found")["message"] == message
    assert answer.headers["Vary"] == "Accept-Language"


def test_refused_request_records_nothing(service: Service) -> None:
    for body in ({}, {"user_id": 1}, EXAMPLE | {"note": ""}, [], EXAMPLE | {"expected_total": -1}):
        service.post(body)
    service.client.put("/orders/1/payment", json={"payment_status": "paid"})

    assert service.rows() == (0, 0, 0)


def test_accepted_order_is_one_order_one_entry_and_one_event(service: Service) -> None:
    service.post(headers=ASYNC)

    assert service.rows() == (1, 0, 1)


# Over a real connection.


@pytest.mark.parametrize(("size", "status"), [(10, 422), (64 * 1024 + 1, 413), (1024 * 1024, 413)])
def test_chunked_body_without_a_length_is_read_up_to_the_limit(tmp_path: Path, size: int, status: int) -> None:
    # given
    app = create_app(Settings(database_url=f"sqlite:///{tmp_path}/none.db", wait_seconds=0))
    with served(app) as address, contextlib.closing(http.client.HTTPConnection(*address, timeout=10)) as connection:
        # when
        chunks = (b"{}".ljust(size)[start : start + 4096] for start in range(0, size, 4096))
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the answer may come before the body's end
            connection.request("POST", "/orders", body=chunks, headers=JSON_HEADERS, encode_chunked=True)
        answer = connection.getresponse()

        # then
        assert (answer.status, answer.headers["Content-Type"]) == (status, PROBLEM)
        assert json.loads(answer.read())["status"] == status


def test_beyond_the_cap_of_waiters_the_answer_is_202_at_once(database_url: str, eventually: Eventually) -> None:
    # given
    with contextlib.closing(Service(database_url, eventually, waiters=3, wait_seconds=30)) as service:
        waiting = [service.post_waiting() for _ in range(3)]

        # when
        start = time.monotonic()
        fourth = service.post()
        took = time.monotonic() - start

        # then
        assert (fourth.status_code, took < 3) == (202, True)
        assert service.client.get("/healthz").status_code == 200
        assert not any(future.done() for _, future in waiting)

        # and a place that became free is taken again
        service.tell(waiting[0][0], RESERVED)
        assert waiting[0][1].result(timeout=10).status_code == 201
        fifth_id, fifth = service.post_waiting()
        for order_id in (waiting[1][0], waiting[2][0], fifth_id):
            service.tell(order_id, RESERVED)
        assert {future.result(timeout=10).status_code for _, future in [*waiting, (0, fifth)]} == {201}


def test_without_waiters_every_post_is_202_at_once(database_url: str, eventually: Eventually) -> None:
    with contextlib.closing(Service(database_url, eventually, waiters=0, wait_seconds=30)) as service:
        assert service.post().status_code == 202


def test_waiting_posts_leave_a_real_server_time_for_others(database_url: str, eventually: Eventually) -> None:
    # given
    def request(address: tuple[str, int], method: str, path: str, body: str | None = None) -> tuple[int, bytes]:
        with contextlib.closing(http.client.HTTPConnection(*address, timeout=30)) as connection:
            connection.request(method, path, body, JSON_HEADERS)
            answer = connection.getresponse()
            return answer.status, answer.read()

    with (
        contextlib.closing(Service(database_url, eventually, waiters=8, wait_seconds=30)) as service,
        served(service.app) as address,
        ThreadPoolExecutor(24) as pool,
    ):
        # when
        posts = [pool.submit(request, address, "POST", "/orders", json.dumps(EXAMPLE)) for _ in range(24)]
        eventually(lambda: sum(post.done() for post in posts) == 16, "16 of 24 POSTs to be answered at once")

        # then
        assert {post.result()[0] for post in posts if post.done()} == {202}
        assert request(address, "GET", "/healthz")[0] == 200
        for order_id in range(1, service.last_id() + 1):
            service.tell(order_id, RESERVED)
        assert sorted(post.result()[0] for post in posts) == [201] * 8 + [202] * 16


# Without a database.


def test_healthz_and_readyz_answer_when_all_is_well(service: Service) -> None:
    assert (service.client.get("/healthz").status_code, service.client.get("/readyz").status_code) == (200, 200)


def test_readyz_is_503_before_the_migration(tmp_path: Path) -> None:
    app = create_app(Settings(database_url=f"sqlite:///{tmp_path}/empty.db"))

    problem(app.test_client().get("/readyz"), 503, "database_unavailable")
    assert app.test_client().get("/healthz").status_code == 200
    api_of(app).close()


@pytest.fixture(params=["sqlite", "postgresql"])
def absent_database_url(request: pytest.FixtureRequest, tmp_path: Path, unused_port: int) -> str:
    if request.param == "sqlite":
        (tmp_path / "orders.db").mkdir()
        return f"sqlite:///{tmp_path}/orders.db"
    return f"postgresql://nobody:nothing@127.0.0.1:{unused_port}/none"


@pytest.fixture
def unused_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def test_absent_database_is_503_in_json_with_retry_after(absent_database_url: str) -> None:
    # given
    app = create_app(Settings(database_url=absent_database_url))
    client = app.test_client()

    # when
    answers = [
        client.post("/orders", json=EXAMPLE),
        client.get("/orders/1"),
        client.put("/orders/1/payment", json={"payment_status": "paid"}),
        client.get("/readyz"),
    ]

    # then
    for answer in answers:
        problem(answer, 503, "database_unavailable")
        assert int(answer.headers["Retry-After"]) > 0
        assert "nobody" not in answer.text
    assert client.get("/healthz").status_code == 200
    api_of(app).close()


@contextlib.contextmanager
def locked_out(server_url: str, database_url: str) -> Iterator[None]:
    """The PostgreSQL database is away for the length of the block: sessions cut, no new ones."""
    name = urlsplit(database_url).path[1:]
    with psycopg.connect(server_url, autocommit=True) as admin:
        admin.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false')
        admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])
        try:
            yield
        finally:
            admin.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true')


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_database_that_comes_back_is_used_again(service: Service, postgres_server: str) -> None:
    # given
    service.post(headers=ASYNC)

    # when
    with locked_out(postgres_server, service.settings.database_url):
        away = [service.client.get("/orders/1"), service.post(headers=ASYNC), service.client.get("/readyz")]

    # then
    assert [answer.status_code for answer in away] == [503, 503, 503]
    assert service.client.get("/orders/1").status_code == 200
    assert service.post(headers=ASYNC).status_code == 202
    assert service.rows()[0] == 2


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_recorded_order_is_202_also_when_the_database_goes_while_the_post_waits(
    service: Service, postgres_server: str
) -> None:
    # given
    order_id, future = service.post_waiting(headers={"Prefer": "wait=1"})

    # when
    with locked_out(postgres_server, service.settings.database_url):
        answer = future.result(timeout=20)

    # then: "please try again" would make the client order twice
    assert (answer.status_code, (answer.json or {}).get("id")) == (202, order_id), answer.text
