"""Requests whose COMMIT is not answered: the API finds out whether they were recorded, or says that it is unknown."""

import contextlib
import resource
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa
from structlog.testing import capture_logs
from werkzeug.test import TestResponse

from order_service.domain.order import State
from order_service.storage import errors
from order_service.storage.database import Database
from order_service.storage.tables import orders
from tests.e2e.proxy import TcpProxy
from tests.http_service import ANSWER_SECONDS, RESPOND_ASYNC, Eventually, Service, body_of, problem
from tests.integration import core

KEY = {"Idempotency-Key": "k1"}


@pytest.fixture
def proxy(database_url: str) -> Iterator[TcpProxy]:
    with TcpProxy(database_url) as proxy:
        proxy.open()
        yield proxy


@pytest.fixture
def proxied(proxy: TcpProxy, eventually: Eventually) -> Iterator[Service]:
    """The API, connected to the database through the proxy."""
    with contextlib.closing(Service(proxy.url, eventually)) as service:
        yield service


def waits_for_lock(database: Database) -> bool:
    with database.reading() as connection:
        return bool(connection.scalar(sa.text("SELECT count(*) FROM pg_locks WHERE NOT granted")))


def placed_once(database: Database, answers: list[TestResponse]) -> None:
    """Each answer is 202 and has an order and an OrderCreated of its own, and there are no others."""
    assert {answer.status_code for answer in answers} == {202}, [answer.text for answer in answers]
    ids = sorted(body_of(answer)["id"] for answer in answers)
    assert ids == sorted(row.id for row in core.rows(database, orders))
    assert ids == sorted(event["data"]["order_id"] for event in core.unsent_events(database))


@core.POSTGRESQL_ONLY
@pytest.mark.parametrize("headers", [{}, KEY], ids=["without a key", "with a key"])
def test_post_is_answered_as_recorded(
    proxied: Service, proxy: TcpProxy, database: Database, headers: dict[str, str]
) -> None:
    proxy.cut_commits()

    answer = proxied.post(headers=RESPOND_ASYNC | headers)

    assert proxy.has_cut
    placed_once(database, [answer])


@core.POSTGRESQL_ONLY
def test_commit_that_arrives_late_is_waited_for(
    proxied: Service, proxy: TcpProxy, database: Database, eventually: Eventually
) -> None:
    proxy.cut_commits(hold=True)

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(proxied.post, headers=RESPOND_ASYNC)
        eventually(lambda: waits_for_lock(database), "the API to wait for the transaction")
        proxy.forward_commits()
        answer = future.result(ANSWER_SECONDS)

    placed_once(database, [answer])


@core.POSTGRESQL_ONLY
def test_post_whose_commit_never_arrived_is_recorded_again(
    proxied: Service, proxy: TcpProxy, database: Database, eventually: Eventually
) -> None:
    proxy.cut_commits(hold=True)

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(proxied.post, headers=RESPOND_ASYNC)
        eventually(lambda: waits_for_lock(database), "the API to wait for the transaction")
        core.end_idle_transactions(database.url)
        answer = future.result(ANSWER_SECONDS)

    placed_once(database, [answer])


@core.POSTGRESQL_ONLY
def test_posts_recorded_together_are_each_answered_as_recorded(
    proxied: Service, proxy: TcpProxy, database: Database
) -> None:
    proxy.cut_commits(3)

    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda _: proxied.post(headers=RESPOND_ASYNC), range(40)))

    assert proxy.has_cut
    placed_once(database, answers)


CHANGES: dict[str, tuple[Callable[[Service, int], TestResponse], str, str]] = {
    "PUT paid": (Service.put_payment, "paid", "OrderPaid"),
    "PUT failed": (lambda service, order_id: service.put_payment(order_id, "failed"), "failed", "OrderFailed"),
    "DELETE": (Service.cancel, "cancelled", "OrderCancelled"),
}


@core.POSTGRESQL_ONLY
@pytest.mark.parametrize("change", CHANGES)
def test_change_is_answered_as_recorded(proxied: Service, proxy: TcpProxy, database: Database, change: str) -> None:
    request, status, event = CHANGES[change]
    order_id = proxied.order_in(State.AWAITING_PAYMENT)
    proxy.cut_commits()

    answer = request(proxied, order_id)

    assert proxy.has_cut
    assert (answer.status_code, body_of(answer)["status"]) == (200, status)
    assert len(core.unsent_events(database, event)) == 1


@core.POSTGRESQL_ONLY
def test_report_that_was_recorded_before_the_order_ended_is_not_refused(
    proxied: Service, proxy: TcpProxy, database: Database, eventually: Eventually
) -> None:
    # given
    order_id = proxied.order_in(State.AWAITING_MENU)
    proxy.cut_commits(hold=True)
    with ThreadPoolExecutor(2) as pool:
        answering = pool.submit(proxied.put_payment, order_id)
        eventually(lambda: waits_for_lock(database), "the API to wait for the transaction")

        # when: the cancellation waits for the same lock, so either may be next
        cancelling = pool.submit(core.cancel, database, order_id)
        proxy.forward_commits()
        cancelling.result(ANSWER_SECONDS)
        answer = answering.result(ANSWER_SECONDS)

    # then
    assert answer.status_code == 202, answer.text
    assert len(core.unsent_events(database, "RefundRequested")) == 1


@core.POSTGRESQL_ONLY
def test_outcome_is_unknown_while_the_database_stays_unavailable(
    proxied: Service, proxy: TcpProxy, database: Database, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given
    monkeypatch.setattr(errors, "SETTLE_SECONDS", 0.3)
    order_id = proxied.order_in(State.AWAITING_PAYMENT)
    requests = [lambda: proxied.post(headers=RESPOND_ASYNC | KEY), lambda: proxied.put_payment(order_id)]

    for request in requests:
        # when
        proxy.cut_commits(hold=True)
        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(request)
            eventually(lambda: proxy.has_cut, "the COMMIT")
            proxy.close()
            proxy.forward_commits()
            answer = future.result(ANSWER_SECONDS)

        # then
        assert "Idempotency-Key" in problem(answer, 503, "outcome_unknown")["message"]
        assert int(answer.headers["Retry-After"]) > 0
        proxy.open()
        eventually(lambda: proxied.get("/readyz").status_code == 200, "the database to be available")
        assert request().status_code in (200, 202)
    assert core.count(database, orders) == 2


@core.SQLITE_ONLY
def test_outcome_of_a_commit_that_sqlite_cannot_write_is_unknown(
    service: Service, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(errors, "SETTLE_SECONDS", 0.2)
    service.post(headers=RESPOND_ASYNC)

    with capture_logs(), no_file_can_be_written():  # pytest keeps the output in a file
        answer = service.post(headers=RESPOND_ASYNC | KEY)

    problem(answer, 503, "outcome_unknown")
    answers = [service.post(headers=RESPOND_ASYNC | KEY) for _ in range(2)]
    assert {body_of(each)["id"] for each in answers} == {2}
    assert core.count(database, orders) == 2


@contextlib.contextmanager
def no_file_can_be_written() -> Iterator[None]:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
