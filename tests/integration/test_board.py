"""The board of orders: its stream, its details, and what it warns of, on both databases."""

import contextlib
import json
from collections.abc import Iterator
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer, ThreadingHTTPServer
from threading import Event
from typing import Any
from unittest.mock import Mock
from uuid import UUID

import pytest
import sqlalchemy as sa

from order_service.domain.order import State
from order_service.process import utc_now
from order_service.storage import board
from order_service.storage.tables import order_history, orders, outbox
from order_service.web import live
from tests.builders import menu_reserved
from tests.http_service import PAID, Service, ServiceWith, body_of, problem
from tests.integration import core
from tests.serving import serving

Json = dict[str, Any]


class Viewer:
    """What a page knows: the cards by order id, and the figures."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self.last_event_id: str | None = None
        self.cards, self.figures, self.snapshots = dict[int, Json](), Json(), 0

    @contextlib.contextmanager
    def connected(self) -> Iterator["Viewer"]:
        headers = {"Last-Event-ID": self.last_event_id} if self.last_event_id else {}
        answer = self._service.client.get("/board/events", headers=headers, buffered=False)
        assert (answer.status_code, answer.mimetype) == (200, "text/event-stream")
        self._pieces = answer.iter_encoded()
        try:
            yield self
        finally:
            answer.close()

    def read(self) -> None:
        """Take in the next events or comment."""
        for text in next(self._pieces).decode().split("\n\n"):
            if text and not text.startswith(":"):
                fields = dict(line.split(": ", 1) for line in text.splitlines())
                self.last_event_id, data = fields["id"], json.loads(fields["data"])
                if fields["event"] == "figures":
                    self.figures = data
                    continue
                if fields["event"] == "snapshot":
                    self.cards, self.snapshots = {}, self.snapshots + 1
                self.cards |= {card["id"]: card for card in data}

    def until_state(self, order_id: int, state: State) -> Json:
        return self.until(lambda: self.cards.get(order_id, {}).get("state") == state) and self.cards[order_id]

    def until_events(self, count: int) -> None:
        first = self.revision
        self.until(lambda: self.revision >= first + count)

    @property
    def revision(self) -> int:
        return int((self.last_event_id or "-0").split("-")[1])

    def until(self, is_true: Any, pieces: int = 200) -> bool:
        for _ in range(pieces):
            if is_true():
                return True
            self.read()
        pytest.fail(f"not seen in {pieces} pieces: {self.cards} {self.figures}")


@pytest.fixture(autouse=True)
def frequent_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "FIGURES_SECONDS", 0.3)
    monkeypatch.setattr(live, "HEARTBEAT_SECONDS", 0.1)
    monkeypatch.setattr(live, "TICK_SECONDS", 0.05)


def test_viewer_sees_orders_appear_and_move(service: Service) -> None:
    # given
    before = service.order_in(State.CANCELLED)
    with Viewer(service).connected() as viewer:
        assert viewer.until_state(before, State.CANCELLED)["column"] == "ended"

        # when
        order_id = service.order_in(State.AWAITING_MENU)
        placed = viewer.until_state(order_id, State.AWAITING_MENU)
        service.receive(order_id, menu_reserved())
        priced = viewer.until_state(order_id, State.AWAITING_PAYMENT)
        service.receive(order_id, PAID)
        paid = viewer.until_state(order_id, State.PAID)
        failed_id = service.order_in(State.FAILED)
        failed = viewer.until_state(failed_id, State.FAILED)
        viewer.until(lambda: sum(count for *_, count in viewer.figures["ended"]) == 3)

    # then
    assert (placed["column"], placed["items"][0][1:], placed["waits"][1]) == (
        "pending",
        [None, 1],
        "waits for the Menu Service",
    )
    assert (priced["waits"], priced["items"][0][1]) == (
        ["menunggu pembayaran", "waits for the payment"],
        "Nasi Ayam Bakar",
    )
    assert (paid["column"], paid["total"], paid["waits"]) == ("paid", priced["total"], ["", ""])
    assert (failed["reason"], failed["message"]) == (
        "out_of_stock", ["Menu item 2 kehabisan stok.", "Menu item 2 is out of stock."],
    )  # fmt: skip
    assert viewer.snapshots == 1
    assert [minute["orders"] for minute in viewer.figures["hour"]["minutes"]][-2:].count(0) < 2


def test_viewer_that_was_away_misses_nothing(service: Service) -> None:
    # given
    [first, second, third] = [service.order_in(State.AWAITING_PAYMENT) for _ in range(3)]
    viewer = Viewer(service)
    with viewer.connected():
        viewer.until_state(third, State.AWAITING_PAYMENT)

    # when: the same process has the events in between; another one sends everything
    service.receive(first, PAID)
    with viewer.connected():
        viewer.until_state(first, State.PAID)
    assert viewer.snapshots == 1
    service.cancel(second)
    viewer.last_event_id = "another-7"
    with viewer.connected():
        viewer.until_state(second, State.CANCELLED)

    # then
    assert viewer.snapshots == 2
    assert {id: card["state"] for id, card in viewer.cards.items()} == {
        first: "paid",
        second: "cancelled",
        third: "awaiting_payment",
    }


def test_entry_that_commits_after_later_ones_is_seen(service: Service) -> None:
    """Ids are given out before the commit, so "greater than the last one seen" would miss it."""
    # given: an order that the board does not show, whose transaction has taken the id of its entry
    [early] = core.place(service.database)
    with service.database.writing() as connection:
        connection.execute(orders.update().values(state="cancelled", version=2, due_at=None))
    late = service.order_in(State.AWAITING_PAYMENT)
    with Viewer(service).connected() as viewer:
        viewer.until_state(late, State.AWAITING_PAYMENT)
        service.receive(late, PAID)
        viewer.until_state(late, State.PAID)
        assert early not in viewer.cards

        # when: it commits
        with service.database.writing() as connection:
            connection.execute(order_history.insert().values(
                id=-1, order_id=early, at=utc_now(), type="Cancel", from_state="awaiting_menu", to_state="cancelled"))  # fmt: skip

        # then
        viewer.until_state(early, State.CANCELLED)


def test_ten_viewers_cost_as_many_queries_as_one(service_with: ServiceWith) -> None:
    service, counts = service_with(streams=20), []
    order_id = service.order_in(State.AWAITING_PAYMENT)
    for viewers in (1, 10):
        with contextlib.ExitStack() as stack:
            connected = [stack.enter_context(Viewer(service).connected()) for _ in range(viewers)]
            for viewer in connected:
                viewer.until_state(order_id, State.AWAITING_PAYMENT)
            begun: list[object] = []
            engine = service.app.extensions["api"].database.engine
            count = begun.append
            sa.event.listen(engine, "begin", count)
            connected[-1].until_events(3)
            sa.event.remove(engine, "begin", count)
            counts.append(len(begun))

    # Ten times as many if each viewer had its own; a busy machine may look more often between two events.
    assert counts[1] < 3 * counts[0] + 5


def test_board_warns_of_what_the_database_shows(service_with: ServiceWith, database_url: str) -> None:
    # given: a message that waits in the outbox, and an order whose deadline has passed without effect
    service = service_with()
    [stalled, overdue] = [service.order_in(State.AWAITING_MENU) for _ in range(2)]
    ago = utc_now() - timedelta(minutes=2)
    with service.database.writing() as connection:
        connection.execute(outbox.update().values(created_at=ago))
        connection.execute(orders.update().where(orders.c.id == overdue).values(due_at=ago))

    # when
    with Viewer(service).connected() as viewer:
        viewer.until(lambda: len(viewer.figures.get("alerts", [])) >= 2)

    # then
    alerts = {alert.pop("code"): alert for alert in viewer.figures["alerts"]}
    assert alerts["outbox"]["seconds"] >= 120
    assert alerts["overdue"] == {"sibling": None, "count": 1}
    assert viewer.cards[stalled]["waits"] == ["OrderCreated menunggu di outbox", "OrderCreated waits in the outbox"]
    assert viewer.cards[overdue]["is_stuck"]


def test_board_warns_of_silent_siblings_until_they_answer_any_order_and_of_refused_messages(service: Service) -> None:
    # given: orders that were reminded of, the one that waits for its payment being the first; and a returned event
    service.order_in(State.AWAITING_PAYMENT)
    service.order_in(State.AWAITING_MENU)
    core.clear_outbox(service.database)
    with service.database.writing() as connection:
        connection.execute(orders.update().values(reminders_left=0))
    service.order_in(State.AWAITING_MENU)
    core.note_returned(service.database)

    def alerts() -> set[tuple[str, str, int]]:
        found = [alert for alert in viewer.figures["alerts"] if alert["code"] != "outbox"]  # which depends on the time
        return {(alert["code"], alert["sibling"], alert["count"]) for alert in found}

    with Viewer(service).connected() as viewer:
        # when
        viewer.until(lambda: viewer.figures)
        first = alerts()
        service.order_in(State.AWAITING_PAYMENT)

        # then: the Menu Service has answered another order
        assert first == {("silent", "menu", 1), ("silent", "payment", 1), ("returned", "menu", 1)}
        viewer.until(lambda: alerts() == {("silent", "payment", 1), ("returned", "menu", 1)})


def test_board_warns_of_orders_that_wait_behind_many_newer_ones(service: Service) -> None:
    # given: an order that was reminded of, and more newer ones than the board shows
    service.order_in(State.AWAITING_MENU)
    core.clear_outbox(service.database)
    with service.database.writing() as connection:
        connection.execute(orders.update().values(reminders_left=0))
    core.place(service.database, board.SHOWN + 1, now=utc_now())

    # when
    with Viewer(service).connected() as viewer:
        viewer.until(lambda: viewer.figures)

    # then
    assert viewer.figures["alerts"] == [{"code": "silent", "sibling": "menu", "count": 1}]


def test_viewer_after_one_for_whom_no_thread_could_start_is_served(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("order_service.web.live.threading.Thread.start", Mock(side_effect=RuntimeError("no new thread")))
        with pytest.raises(RuntimeError), Viewer(service).connected() as viewer:
            viewer.read()

    with Viewer(service).connected() as viewer:
        viewer.until(lambda: bool(viewer.figures))


DAMAGED_TIMES = {
    "order": "UPDATE orders SET created_at = {}", "history": "UPDATE order_history SET at = {}",
    "outbox": "UPDATE outbox SET created_at = {0}, due_at = {0}", "payment": "UPDATE orders SET paid_at = {}",
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGED_TIMES.values(), ids=DAMAGED_TIMES)
def test_times_that_cannot_be_decoded_delay_no_other_order(damage: str, service: Service) -> None:
    service.order_in(State.PAID)
    with service.database.writing() as connection:
        connection.exec_driver_sql(damage.format("'garbage'" if service.database.is_sqlite else "'infinity'"))

    with Viewer(service).connected() as viewer:
        order_id = service.order_in(State.AWAITING_MENU)
        viewer.until_state(order_id, State.AWAITING_MENU)
        viewer.until(lambda: viewer.figures.get("pending") == 1)

    assert service.get(f"/orders/{order_id}/explain").status_code == 200


def test_last_event_id_of_many_digits_begins_with_a_snapshot(service: Service) -> None:
    with Viewer(service).connected() as viewer:
        viewer.until(lambda: viewer.figures)
    viewer.last_event_id = f"{str(viewer.last_event_id).partition('-')[0]}-{'9' * 5000}"
    with viewer.connected():
        viewer.until(lambda: viewer.snapshots == 2)


class _Answering(BaseHTTPRequestHandler):
    """Answers with JSON, and logs nothing."""

    def answer(self, value: object, status: int = 200) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing."""


class _Management(_Answering):
    """A management API with a dead letter, and without a consumer of the payment queue."""

    def do_GET(self) -> None:
        queues = [
            {"name": "order-service.menu", "consumers": 1, "messages_ready": 0},
            {"name": "order-service.menu.dlq", "consumers": 0, "messages_ready": 3},
            {"name": "order-service.payment", "consumers": 0, "messages_ready": 9},
            {"name": "order-service.payment.dlq", "consumers": 0, "messages_ready": 1},
        ]
        is_right = (
            self.path.startswith("/api/queues/shop%2F1?") and self.headers["Authorization"] == "Basic bWU6cEBzcw=="
        )
        self.answer(queues if is_right else {}, 200 if is_right else 401)


def test_board_warns_of_what_the_broker_says(service_with: ServiceWith) -> None:
    with contextlib.ExitStack() as stack:
        with serving(HTTPServer(("127.0.0.1", 0), _Management)) as port:
            url = f"http://127.0.0.1:{port}"
            service = service_with(rabbitmq_url="amqp://me:p%40ss@localhost/shop%2F1", management_url=url)
            viewer = stack.enter_context(Viewer(service).connected())
            # On a busy machine the first answer may come too late.
            viewer.until(lambda: viewer.figures and {"code": "broker"} not in viewer.figures["alerts"])
            answered = viewer.figures["alerts"]
        viewer.until(lambda: {"code": "broker"} in viewer.figures["alerts"])

    assert answered == [{"code": "dead_letters", "count": 4}, {"code": "consumers", "queue": "order-service.payment"}]


def test_broker_whose_answer_never_ends_delays_no_order(service_with: ServiceWith) -> None:
    is_over = Event()

    class Slow(_Answering):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            with contextlib.suppress(OSError):
                while not is_over.wait(0.2):
                    self.wfile.write(b" ")

    with serving(ThreadingHTTPServer(("127.0.0.1", 0), Slow)) as port, contextlib.ExitStack() as ending:
        ending.callback(is_over.set)
        service = service_with(management_url=f"http://127.0.0.1:{port}")
        with Viewer(service).connected() as viewer:
            viewer.until(lambda: bool(viewer.figures))
            order_id = service.order_in(State.AWAITING_MENU)
            viewer.until_state(order_id, State.AWAITING_MENU)

    assert viewer.figures["alerts"] == [{"code": "broker"}]


class _Menu(_Answering):
    """A Menu Service that lists two usable dishes at /menus, and something else elsewhere."""

    def do_GET(self) -> None:
        dishes: list[object] = [
            {"id": 1, "name": "Soto", "price": 24000, "stock": 3},
            {"id": 2, "name": "Es Teh", "price": 5000.5},
        ]
        dishes += [{"id": 3, "name": "Sate", "price": None}, "Rendang"]
        self.answer(dishes if self.path == "/menus" else [{"id": "1"}])


def test_form_offers_the_dishes_of_the_menu_in_development_only(service_with: ServiceWith) -> None:
    with serving(HTTPServer(("127.0.0.1", 0), _Menu)) as port:
        url = f"http://127.0.0.1:{port}"
        listed, other, elsewhere = (
            body_of(service_with(auth="none", **settings).get("/board/dishes"))
            for settings in (
                {"board_menu_url": f"{url}/menus"},
                {"board_menu_url": f"{url}/other"},
                {"board_menu_url": f"{url}/menus", "host": "0.0.0.0"},
            )
        )
    unreachable = body_of(service_with(board_menu_url="http://127.0.0.1:1/menus").get("/board/dishes"))

    assert [[id, name, float(price)] for id, name, price in listed] == [[1, "Soto", 24000], [2, "Es Teh", 5000.5]]
    assert (other, elsewhere, unreachable, body_of(service_with().get("/board/dishes"))) == ([], [], [], [])


def test_details_explain_and_list_what_happened(service: Service) -> None:
    order_id = service.order_in(State.FAILED)

    shown, unknown = service.get(f"/board/orders/{order_id}"), service.get("/board/orders/999")

    body = body_of(shown) if shown.is_json else {}
    assert (body["card"]["id"], body["explanation"][1][:14]) == (order_id, f"Order {order_id} failed")
    assert [each["type"] for each in body["timeline"]][:4] == [
        "OrderPlaced",
        "OrderCreated",
        "OrderCreated",
        "MenuRejected",
    ]
    problem(unknown, 404, "order_not_found")


def test_more_of_a_column_comes_in_pages(service: Service) -> None:
    # given
    cancelled = [service.order_in(State.CANCELLED) for _ in range(3)]
    service.order_in(State.AWAITING_MENU)

    # when
    first = service.get("/board/orders?column=ended&limit=2").json
    second = service.get(f"/board/orders?column=ended&limit=2&cursor={first['next_cursor']}").json

    # then
    assert [sorted(card["id"] for card in page["cards"]) for page in (first, second)] == [cancelled[1:], cancelled[:1]]
    assert second["next_cursor"] is None
    problem(service.get("/board/orders?column=other"), 422, "invalid_request")


def test_versions_and_counts_read_a_bounded_part_of_a_long_history(service: Service) -> None:
    """5,000 orders a day for a week: on PostgreSQL no table is scanned."""
    # given
    day = timedelta(days=1)
    with service.database.writing() as connection:
        rows = [
            {"id": id, "key": f"{id:032x}", "user_id": 1, "menu_ids": "[1]", "created_at": utc_now() - 7 * day + id * day / 5000,
             "state": "paid", "version": 3, "ledger": '{"reservations":[],"payments":[],"released":[],"refunded":[]}',
             "reminders_left": 0, "paid_at": utc_now() - 7 * day + id * day / 5000}
            for id in range(1, 35_001)
        ]  # fmt: skip
        connection.execute(orders.insert(), [row | {"key": UUID(row["key"])} for row in rows])
        connection.execute(order_history.insert(), [
            {"order_id": row["id"], "at": row["paid_at"], "type": "PaymentCompleted", "from_state": "awaiting_payment", "to_state": "paid"}
            for row in rows
        ])  # fmt: skip

    # when
    with service.database.reading() as connection:
        found, ended, hour = board.versions(connection, [7]), board.ended(connection), board.last_hour(connection)

    # then
    assert sorted(found) == [7, *range(34_801, 35_001)]
    assert 4900 <= sum(count for _, _, count in ended) <= 5000
    assert 190 <= sum(minute["orders"] for minute in hour["minutes"]) <= 215


def test_page_has_its_language_and_no_order(service_with: ServiceWith) -> None:
    service = service_with()
    service.order_in(State.PAID)

    page, english = service.get("/board"), service.get("/board", headers={"Accept-Language": "en"})

    assert '<html lang="id"' in page.text
    assert '<html lang="en"' in english.text
    assert "Nasi Ayam" not in page.text
    policy = page.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert service.get("/board/board.js").mimetype == "text/javascript"
    problem(service.get("/board/nothing.js"), 404, "not_found")
