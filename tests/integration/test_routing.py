"""Addresses, methods and languages: what is not asked of an order is answered in JSON too."""

import pytest
from flask.testing import FlaskClient

from tests.http_service import RESPOND_ASYNC, Service, problem

INDONESIAN, ENGLISH = "Alamat tidak ditemukan.", "The address was not found."


@pytest.mark.parametrize(
    "path",
    [
        "/nothing", "/docs//", "/orders/abc", "/orders/-1", "/orders/1.0", "/orders/1/nothing", "/%00", "/orders/",
        "/orders//1", "/orders/1//payment", "/orders/01", "/orders/00", "/orders/+1", "/orders/%D9%A1", "/orders/1%D9%A1",
        "/orders/%EF%BC%91", "/orders/1%0A", "/orders/1%0A/payment",
        pytest.param(f"/orders/{'9' * 5_000}", id="more digits than Python reads"),
    ],
)  # fmt: skip
def test_unknown_route_is_404_in_json(client: FlaskClient, path: str) -> None:
    assert problem(client.get(path), 404, "not_found")["message"] == INDONESIAN


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
    service.post(headers=RESPOND_ASYNC)

    heads = [service.client.head(path) for path in ("/orders/1", "/orders/2", "/healthz", "/nothing")]

    assert [(answer.status_code, answer.data) for answer in heads] == [(200, b""), (404, b""), (200, b""), (404, b"")]


@pytest.mark.parametrize(
    ("path", "methods"), [("/orders", {"POST"}), ("/orders/1", {"GET", "HEAD"}), ("/orders/1/payment", {"PUT"})]
)
def test_options_names_the_methods(client: FlaskClient, path: str, methods: set[str]) -> None:
    answer = client.options(path)

    assert answer.status_code == 200
    assert methods <= set(answer.headers["Allow"].split(", "))


@pytest.mark.parametrize(
    ("accepted", "message"),
    [
        *[(text, INDONESIAN) for text in (None, "id", "fr", "*", "id, en;q=0.9", ";;q=,", "en;q=0", "en;q=0.000, *")],
        *[(text, ENGLISH) for text in ("id;q=0, en;q=0.1", "en", "en-US,en;q=0.9", "fr, en;q=0.2")],
    ],
)
def test_message_is_indonesian_unless_english_is_preferred(
    client: FlaskClient, accepted: str | None, message: str
) -> None:
    headers = {} if accepted is None else {"Accept-Language": accepted}

    answer = client.get("/nothing", headers=headers)

    assert problem(answer, 404, "not_found")["message"] == message
    assert answer.headers["Vary"] == "Accept-Language"
