"""How many orders a client may place in a period, how many may be pending, and how many streams it may keep open."""

import json
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from werkzeug.test import TestResponse

from order_service import handlers
from order_service.domain.order import State
from order_service.storage.database import Database
from order_service.web import openapi
from order_service.web.limits import MemoryHits
from sandbox.issuer import Issuer
from tests import builders
from tests.builders import order_request
from tests.http_service import RESPOND_ASYNC, Service, ServiceWith, body_of, problem, send, served
from tests.integration import core

ON_SQLITE = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
#: Behind one proxy, which reports the address of its client last.
BEHIND_A_PROXY = {"trusted_proxies": 1}


@pytest.fixture
def issuer() -> Issuer:
    return Issuer("https://issuer.example")


@pytest.fixture
def protected(service_with: ServiceWith, issuer: Issuer, tmp_path: Path) -> ServiceWith:
    """A service that needs the tokens of `issuer`."""
    keys = tmp_path / "keys.json"
    keys.write_text(json.dumps(issuer.jwks()))
    return lambda **settings: service_with(auth="jwt", jwt_issuer=issuer.name, jwt_key_file=str(keys), **settings)


def post_from(service: Service, forwarded_for: str, **headers: str) -> TestResponse:
    return service.post(headers=RESPOND_ASYNC | {"X-Forwarded-For": forwarded_for} | headers)


def post_as(service: Service, user_id: int, **headers: str) -> TestResponse:
    return service.post(order_request(user_id=user_id), RESPOND_ASYNC | headers)


def fields(answer: TestResponse) -> dict[str, str]:
    names = ("RateLimit-Policy", "RateLimit", "Retry-After")
    return {name: answer.headers[name] for name in names if name in answer.headers}


@ON_SQLITE
def test_requests_over_the_rate_are_refused_and_every_answer_says_what_is_left(service_with: ServiceWith) -> None:
    # given
    service = service_with(rate_limit="3/hour")

    # when
    placed, invalid, repeated, refused = (
        service.post(headers=RESPOND_ASYNC | {"Idempotency-Key": "k"}),
        service.post("{"),
        service.post(headers=RESPOND_ASYNC | {"Idempotency-Key": "k"}),
        service.post(headers=RESPOND_ASYNC),
    )

    # then
    policy = '"orders";q=3;w=3600'
    assert [answer.status_code for answer in (placed, invalid, repeated)] == [202, 400, 202]
    for left, answer in zip((2, 1, 0), (placed, invalid, repeated), strict=True):
        assert fields(answer) == {"RateLimit-Policy": policy, "RateLimit": f'"orders";r={left};t=3600'}
    problem(refused, 429, "rate_limited")
    assert fields(refused) == {"RateLimit-Policy": policy, "RateLimit": '"orders";r=0;t=3600', "Retry-After": "3600"}
    assert service.rows()[0] == 1
    # Only placing orders is limited.
    assert [fields(service.get(path)) for path in ("/orders", "/orders/1", "/healthz")] == [{}, {}, {}]


@ON_SQLITE
def test_a_client_may_place_orders_again_after_the_period(service_with: ServiceWith) -> None:
    service = service_with(rate_limit="1/second")

    statuses = [service.post(headers=RESPOND_ASYNC).status_code for _ in range(2)]
    service._eventually(lambda: service.post(headers=RESPOND_ASYNC).status_code == 202, "the period to end")

    assert statuses == [202, 429]


@ON_SQLITE
@pytest.mark.parametrize(
    ("proxies", "addresses", "clients"),
    [
        (0, ["203.0.113.1", "203.0.113.2", ""], 1),  # a header that nobody set is not believed
        (1, ["203.0.113.1", "203.0.113.2"], 2),
        (1, ["198.51.100.1, 203.0.113.1", "198.51.100.2, 203.0.113.1"], 1),  # nor what the client itself put before
        (2, ["198.51.100.1, 203.0.113.1", "198.51.100.2, 203.0.113.1"], 2),
        (2, ["198.51.100.9, 198.51.100.1, 203.0.113.1", "x, 198.51.100.1, 203.0.113.1"], 1),
        (1, ["2001:db8::1", "2001:db8::ffff:ffff:ffff:ffff", "2001:DB8:0:0:5::"], 1),
        (1, ["2001:db8::1", "2001:db8:0:1::1", "2001:db9::1"], 3),
        (1, ["::ffff:203.0.113.1", "203.0.113.1"], 1),
        (1, ["::ffff:203.0.113.1", "::ffff:203.0.113.2"], 2),
        (1, ["fe80::1%eth0", "fe80::2%eth1"], 1),
        (1, ["203.0.113.1:5678", "203.0.113.1:9", "203.0.113.1"], 1),
        (1, ["203.0.113.1:5678", "203.0.113.2:5678"], 2),
        (1, ["[2001:db8::1]:443", "[2001:db8::1]:9", "[2001:db8::2]", "2001:db8::3"], 1),
        (1, ["[::1]:443", "[2001:db8::1]:443"], 2),
        (1, ["unknown", "unknown", "x" * 5000], 2),
    ],
)
def test_clients_are_told_apart_by_what_the_trusted_proxies_report(
    service_with: ServiceWith, proxies: int, addresses: list[str], clients: int
) -> None:
    service = service_with(rate_limit="1/hour", trusted_proxies=proxies)

    statuses = [post_from(service, address).status_code for address in addresses]

    assert Counter(statuses)[202] == clients, statuses
    assert set(statuses) <= {202, 429}


@ON_SQLITE
def test_fifty_subjects_at_ten_times_their_limit_are_each_held_to_their_own(
    protected: ServiceWith, issuer: Issuer
) -> None:
    # given
    service = protected(rate_limit="2/hour")
    tokens = {str(number): issuer.token(str(number), "orders") for number in range(1, 52)}
    *busy, calm = tokens

    def post(subject: str) -> tuple[str, int]:
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {tokens[subject]}"} | RESPOND_ASYNC
        body = json.dumps(order_request(user_id=int(subject)))
        return subject, send(address, "POST", "/orders", body, headers)[0]

    # when
    with served(service.app) as address, ThreadPoolExecutor(16) as pool:
        statuses = Counter(pool.map(post, busy * 20))
        unaffected = [post(calm)[1] for _ in range(3)]

    # then
    assert statuses == {(each, status): count for each in busy for status, count in ((202, 2), (429, 18))}
    assert unaffected == [202, 202, 429]
    assert service.rows()[0] == 102


@ON_SQLITE
def test_with_tokens_pending_orders_and_streams_are_limited_by_default_for_each_user(
    protected: ServiceWith, issuer: Issuer
) -> None:
    # given
    service = protected(streams=100)
    customer, other, till = (
        RESPOND_ASYNC | {"Authorization": f"Bearer {issuer.token(subject, scope)}"}
        for subject, scope in (("1", "orders"), ("2", "orders"), ("till-3", "orders:all"))
    )

    # when
    placed = [service.post(headers=customer) for _ in range(21)]
    path = f"/orders/{body_of(placed[0])['id']}/events"
    streams = [service.client.get(path, headers=customer, buffered=False) for _ in range(21)]

    # then
    assert [answer.status_code for answer in placed] == [202] * 20 + [429]
    problem(placed[-1], 429, "too_many_pending")
    assert [answer.status_code for answer in streams] == [200] * 20 + [429]
    assert service.post(order_request(user_id=2), other).status_code == 202
    # A till places orders for guests, also for a user who has many.
    assert service.post(headers=till).status_code == 202
    with service.client.get(path, headers=till, buffered=False) as of_the_till:
        assert of_the_till.status_code == 200
    for answer in streams:
        answer.close()


def test_memory_for_clients_is_bounded() -> None:
    hits = MemoryHits(3600, most_clients=100)
    busy = "busy"

    for number in range(10_000):
        hits.add(f"client {number}")
        if number % 50 == 0:
            hits.add(busy)

    assert len(hits) == 100


@pytest.mark.parametrize("now", [2800.611122696669, 31820.646954576205])
def test_a_period_is_never_longer_than_it_is_said_to_be(now: float, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (now + 3600) - now > 3600
    monkeypatch.setattr("order_service.web.limits.time.monotonic", lambda: now)

    assert MemoryHits(3600).add("client") == (1, 3600)


def test_periods_that_have_ended_take_no_memory(eventually: Any) -> None:
    hits = MemoryHits(0.05)
    for number in range(1000):
        hits.add(str(number))

    eventually(lambda: hits.add("another")[0] and len(hits) == 1, "the periods to end")


def test_a_user_may_have_only_so_many_pending_orders(service_with: ServiceWith) -> None:
    # given
    service = service_with(pending_limit=2)
    first, second = (body_of(post_as(service, 1))["id"] for _ in range(2))

    # when
    refused, other = post_as(service, 1), post_as(service, 2)
    service.cancel(first)
    after_the_end = post_as(service, 1)
    refused_again = post_as(service, 1)

    # then
    assert "2 pesanan" in problem(refused, 429, "too_many_pending")["message"]
    assert fields(refused) == {
        "RateLimit-Policy": '"pending";q=2', "RateLimit": '"pending";r=0', "Retry-After": "30"
    }  # fmt: skip
    assert [other.status_code, after_the_end.status_code] == [202, 202]
    problem(refused_again, 429, "too_many_pending")
    assert service.get_order(second)["status"] == "pending"
    # Nothing was recorded for the refused ones.
    assert service.rows()[0] == 4


def test_placements_of_one_transaction_count_for_each_other(database: Database) -> None:
    mine, other = (builders.placement(user_id=user_id, pending_limit=2) for user_id in (1, 2))
    without_limit = builders.placement(user_id=1)
    core.place(database, user_id=1)

    with core.unit_of_work(database) as work:
        room = handlers.has_room(work, [mine, mine, other, without_limit, other, other, mine])

    assert room == [True, False, True, True, True, False, False]


@ON_SQLITE
def test_an_order_counts_until_it_ends(service_with: ServiceWith) -> None:
    service = service_with(pending_limit=1)
    # An order of this service has user 1.
    for state in (State.PAID, State.FAILED, State.CANCELLED, State.AWAITING_MENU_PREPAID):
        service.order_in(state)

    problem(post_as(service, 1), 429, "too_many_pending")


def test_a_repeated_request_is_not_refused_for_the_pending_orders(service_with: ServiceWith) -> None:
    service = service_with(pending_limit=1)
    placed = post_as(service, 1, **{"Idempotency-Key": "k"})

    repeated, another = post_as(service, 1, **{"Idempotency-Key": "k"}), post_as(service, 1, **{"Idempotency-Key": "l"})

    assert (repeated.status_code, body_of(repeated)["id"]) == (202, body_of(placed)["id"])
    problem(another, 429, "too_many_pending")


def test_requests_at_the_same_time_do_not_exceed_the_pending_limit_of_one_process(service_with: ServiceWith) -> None:
    service = service_with(pending_limit=5)
    start = threading.Barrier(16)

    def post(number: int) -> TestResponse:
        start.wait(30)
        # Each request has a repeat, which must get its answer.
        return post_as(service, 1, **{"Idempotency-Key": str(number // 2)})

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(post, range(16)))

    placed = {body_of(answer)["id"] for answer in answers if answer.status_code == 202}
    assert {answer.status_code for answer in answers} == {202, 429}
    assert service.rows()[0] == len(placed) == 5
    pairs = zip(answers[::2], answers[1::2], strict=True)
    assert all(one.status_code == two.status_code for one, two in pairs)


@ON_SQLITE
def test_a_client_keeps_open_only_so_many_streams(service_with: ServiceWith) -> None:
    # given
    service = service_with(streams=10, stream_limit=2, **BEHIND_A_PROXY)
    path = f"/orders/{service.order_in(State.AWAITING_PAYMENT)}/events"

    def opened(address: str, **headers: str) -> TestResponse:
        return service.client.get(path, headers={"X-Forwarded-For": address} | headers, buffered=False)

    # when
    mine = [opened("203.0.113.1") for _ in range(2)]
    refused = service.get(path, {"X-Forwarded-For": "203.0.113.1"})
    event_source = service.get(path, {"X-Forwarded-For": "203.0.113.1", "Accept": "text/event-stream"})
    other = opened("203.0.113.2")
    mine.pop().close()
    after_the_end = opened("203.0.113.1")

    # then
    problem(refused, 429, "too_many_own_streams")
    assert fields(refused) == {
        "RateLimit-Policy": '"streams";q=2;qu="concurrent-requests"', "RateLimit": '"streams";r=0', "Retry-After": "5"
    }  # fmt: skip
    # An EventSource would never connect again after a 429.
    assert (event_source.status_code, event_source.mimetype) == (200, "text/event-stream")
    assert event_source.text == "retry: 5000\n\n"
    assert [other.status_code, after_the_end.status_code] == [200, 200]
    for answer in (*mine, other, after_the_end):
        answer.close()


@ON_SQLITE
def test_a_client_for_which_the_process_has_no_place_keeps_its_own(service_with: ServiceWith) -> None:
    service = service_with(streams=1, stream_limit=1, **BEHIND_A_PROXY)
    path = f"/orders/{service.order_in(State.AWAITING_PAYMENT)}/events"
    one, other = ({"X-Forwarded-For": address} for address in ("203.0.113.1", "203.0.113.2"))

    with service.client.get(path, headers=one, buffered=False):
        refused = service.get(path, other)
    with service.client.get(path, headers=other, buffered=False) as later:
        assert later.status_code == 200

    problem(refused, 503, "too_many_streams")


def test_document_has_the_fields_of_every_limited_answer() -> None:
    paths = openapi.document(needs_tokens=False)["paths"]
    post, stream = paths["/orders"]["post"]["responses"], paths["/orders/{id}/events"]["get"]["responses"]

    assert all({"RateLimit", "RateLimit-Policy"} <= answer["headers"].keys() for answer in post.values())
    for answer, codes in (
        (post["429"], {"rate_limited", "too_many_pending"}),
        (stream["429"], {"too_many_own_streams"}),
    ):
        assert answer["content"]["application/problem+json"]["examples"].keys() == codes
        required = {name for name, header in answer["headers"].items() if header.get("required")}
        assert required == {"RateLimit", "RateLimit-Policy", "Retry-After", "X-Request-ID"}
    assert "429" not in paths["/orders"]["get"]["responses"]
