"""The API on a database that is not migrated, cannot be reached, or goes while a request waits."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from flask.testing import FlaskClient

from tests.builders import order_request
from tests.e2e.proxy import TcpProxy
from tests.http_service import (
    ANSWER_SECONDS,
    RESPOND_ASYNC,
    Eventually,
    Service,
    application,
    body_of,
    problem,
)  # fmt: skip
from tests.integration import core


def test_readyz_is_503_before_the_migration(tmp_path: Path) -> None:
    with application(f"sqlite:///{tmp_path}/empty.db") as app:
        problem(app.test_client().get("/readyz"), 503, "database_unavailable")
        assert app.test_client().get("/healthz").status_code == 200


def refused_without_a_database(client: FlaskClient) -> None:
    """Every request for the database is a 503 that says when to try again and not where the database is."""
    answers = [
        client.post("/orders", json=order_request()),
        client.get("/orders/1"),
        client.put("/orders/1/payment", json={"payment_status": "paid"}),
        client.get("/readyz"),
    ]
    for answer in answers:
        problem(answer, 503, "database_unavailable")
        assert int(answer.headers["Retry-After"]) > 0
        assert "secret_name" not in answer.text
    assert client.get("/healthz").status_code == 200


def test_file_that_cannot_be_opened_is_503_with_retry_after(client: FlaskClient) -> None:
    refused_without_a_database(client)


def test_server_that_refuses_connections_is_503_with_retry_after() -> None:
    # given: nothing listens on port 1
    with application("postgresql://secret_name:nothing@127.0.0.1:1/none") as app:
        refused_without_a_database(app.test_client())


@core.POSTGRESQL_ONLY
def test_recorded_order_is_202_also_when_the_database_goes_while_the_post_waits(service: Service) -> None:
    # given
    order_id, future = service.post_waiting(headers={"Prefer": "wait=1"})

    # when
    with core.database_unreachable(service.database.url):
        answer = future.result(ANSWER_SECONDS)

    # then: after "please try again" the client would order twice
    assert (answer.status_code, body_of(answer).get("id")) == (202, order_id), answer.text


@pytest.mark.field
@core.POSTGRESQL_ONLY
def test_a_database_that_accepts_everything_and_answers_nothing_delays_requests_for_a_bounded_time(
    database_url: str, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("order_service.vendor.ANSWER_SECONDS", 1.0)
    with TcpProxy(database_url) as proxy:
        proxy.open()
        with closing(Service(proxy.url, eventually)) as service:
            assert service.post(headers=RESPOND_ASYNC).status_code == 202

            # when: like a suspended server, and a proxy that has lost it
            proxy.discard()
            with ThreadPoolExecutor(4) as pool:
                answers = list(pool.map(lambda _: service.post(headers=RESPOND_ASYNC), range(4), timeout=30))
            proxy.forward()

            # then
            assert {answer.status_code for answer in answers} == {503}
            assert [service.post(headers=RESPOND_ASYNC).status_code for _ in range(20)] == [202] * 20


@core.POSTGRESQL_ONLY
def test_writes_work_again_at_once_after_a_database_was_read_only(service: Service) -> None:
    # given
    assert service.get("/readyz").status_code == 200

    # when
    with core.database_read_only(service.database.url):
        refused = [service.post(headers=RESPOND_ASYNC) for _ in range(5)] + [service.get("/readyz")]

    # then
    assert {answer.status_code for answer in refused} == {503}
    assert [service.post(headers=RESPOND_ASYNC).status_code for _ in range(20)] == [202] * 20
    assert service.get("/readyz").status_code == 200
