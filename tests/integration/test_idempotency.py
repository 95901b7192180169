"""Idempotency-Key: a repeated request places no second order."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPMessage
from typing import Any

import pytest

from tests.builders import menu_reserved, order_request
from tests.http_service import JSON_HEADERS, RESPOND_ASYNC, Eventually, Service, body_of, problem, send, served


def test_repeated_request_is_answered_from_the_order_as_it_is_now(service: Service) -> None:
    # given
    key = {"Idempotency-Key": "k1"}
    first = body_of(service.post(headers=RESPOND_ASYNC | key))
    service.receive(first["id"], menu_reserved())

    # when
    again = service.post(headers=key)
    other = service.post(order_request(menu_ids=[2]), key)
    another_key = service.post(headers=RESPOND_ASYNC | {"Idempotency-Key": "k2"})

    # then
    assert (again.status_code, body_of(again)) == (201, service.get_order(first["id"]))
    assert body_of(again)["total_price"] == 38000
    assert problem(other, 422, "idempotency_key_reused")["order_id"] == first["id"]
    assert body_of(another_key)["id"] != first["id"]
    assert service.rows()[0] == 2


@pytest.mark.parametrize(
    "key",
    [
        "x1,x2", ",", "", "two words", "é", "a" * 256,
        '""', '"', '"k', '"k"x', '"a"b"', r'"\k"', r'"k\"', '"two words"', '"x1,x2"', '"x1","x2"', '"' + "a" * 256 + '"',
    ],
)  # fmt: skip
def test_invalid_key_is_422_naming_its_header(service: Service, key: str) -> None:
    answer = service.post(headers=RESPOND_ASYNC | {"Idempotency-Key": key})

    found = problem(answer, 422, "invalid_request")
    assert [error["field"] for error in found["errors"]] == ["Idempotency-Key"]
    assert service.rows()[0] == 0


@pytest.mark.parametrize(("quoted", "bare"), [('"k"', "k"), (r'"k\"\\"', 'k"\\'), ('"' + "k" * 255 + '"', "k" * 255)])
def test_key_in_quotation_marks_is_the_same_key_without_them(service: Service, quoted: str, bare: str) -> None:
    first, again = (service.post(headers=RESPOND_ASYNC | {"Idempotency-Key": key}) for key in (quoted, bare))

    assert body_of(first) == body_of(again)
    assert service.rows()[0] == 1


def test_two_keys_are_422_over_a_real_connection_too(service: Service) -> None:
    # given
    headers = HTTPMessage()
    for name, value in [*JSON_HEADERS.items(), ("Idempotency-Key", "x1"), ("Idempotency-Key", "x2")]:
        headers.add_header(name, value)

    # when
    with served(service.app) as address:
        status, body = send(address, "POST", "/orders", json.dumps(order_request()), headers)  # type: ignore[arg-type]

    # then
    assert (status, body["errors"][0]["field"]) == (422, "Idempotency-Key")


def test_key_may_hold_every_other_visible_character(service: Service) -> None:
    key = "".join(map(chr, range(0x21, 0x7F))).replace(",", "")

    assert service.post(headers=RESPOND_ASYNC | {"Idempotency-Key": key}).status_code == 202


def test_same_key_from_fifty_threads_at_once_is_one_order(service: Service, eventually: Eventually) -> None:
    # given
    together = threading.Barrier(50)
    headers = JSON_HEADERS | {"Idempotency-Key": "k1", "Prefer": "wait=30"}

    def post(address: tuple[str, int]) -> tuple[int, Any]:
        together.wait(30)
        return send(address, "POST", "/orders", json.dumps(order_request()), headers)

    # when
    with served(service.app) as address, ThreadPoolExecutor(50) as pool:
        futures = [pool.submit(post, address) for _ in range(50)]
        order_id = eventually(service.last_id, "the order to be recorded")
        service.receive(order_id, menu_reserved())
        answers = [future.result() for future in futures]

    # then: all of them are the answer that the order itself gives now
    assert all(answer == (201, service.get_order(order_id)) for answer in answers)
    assert service.get_order(order_id)["total_price"] == 38000
    assert service.rows()[0] == 1
