"""What is not a valid request is refused with its remedy, before the database is asked."""

import gzip
import json
import re

import pytest
from flask.testing import FlaskClient

from tests.builders import order_request
from tests.http_service import JSON_HEADERS, body_of, problem

INTEGER_EN = "must be an integer from 1 to 2147483647"
LIST_EN = "must be a list of 1 to 100 menu ids"
NUMBER_EN = "must be a number from 0"
UNKNOWN_EN = "is not known; leave it out"
OBJECT_EN = "must be a JSON object"
NOT_IDS = [
    '"1"', "true", "false", "null", "1.0", "1.5", "0", "-1", "2147483648", "1" + "0" * 30, "1e3", "[1]", "{}", '""',
]  # fmt: skip
NOT_LISTS = ["[]", "null", "1", '"1,2"', '{"0": 1}', json.dumps([1] * 101)]
NOT_TOTALS = ['"38000"', "true", "-1", "-0.0001", "100000000000", "0.00001", "1e400", "1e999999", "[1]"]
LIMIT_BYTES = 64 * 1024

#: The requests that have a body.
with_body = pytest.mark.parametrize(("method", "path"), [("POST", "/orders"), ("PUT", "/orders/1/payment")])


def with_field(name: str, value: str) -> str:
    return f'{{"user_id": 1, "menu_ids": [1], "{name}": {value}}}'


@pytest.mark.parametrize(
    ("body", "field", "remedy"),
    [
        *[(f'{{"user_id": {value}, "menu_ids": [1]}}', "user_id", INTEGER_EN) for value in NOT_IDS],
        *[(f'{{"user_id": 1, "menu_ids": [1, {value}]}}', "menu_ids.1", INTEGER_EN) for value in NOT_IDS],
        *[(f'{{"user_id": 1, "menu_ids": {value}}}', "menu_ids", LIST_EN) for value in NOT_LISTS],
        *[(with_field("expected_total", value), "expected_total", NUMBER_EN) for value in NOT_TOTALS],
        *[(with_field(name, "1"), name, UNKNOWN_EN) for name in ("note", "menu_Ids", "{0.__class__}")],
        (with_field(r"\ud800", "1"), None, UNKNOWN_EN),
        ('{"menu_ids": [1]}', "user_id", f"is missing; it {INTEGER_EN}"),
        ('{"user_id": 1}', "menu_ids", f"is missing; it {LIST_EN}"),
        *[(body, "body", OBJECT_EN) for body in ("[]", "1", "null", json.dumps(json.dumps(order_request())))],
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
    [error] = found["errors"]
    assert remedy in error["message"]
    assert remedy in found["message"]
    if field is not None:
        assert error["field"] == field
        assert field in found["message"]
    in_indonesian = problem(indonesian, 422, "invalid_request")
    assert in_indonesian["message"].startswith("Permintaan tidak valid: ")
    assert remedy not in in_indonesian["message"]


@pytest.mark.parametrize(("language", "missing"), [("id", "tidak ada; harus"), ("en", "is missing; it must be")])
def test_only_a_missing_field_is_called_missing(client: FlaskClient, language: str, missing: str) -> None:
    def messages(path: str, body: dict[str, object], *, method: str = "POST") -> dict[str, str]:
        answer = client.open(path, method=method, json=body, headers={"Accept-Language": language})
        return {error["field"]: error["message"] for error in body_of(answer)["errors"]}

    given = messages("/orders", {"user_id": None, "menu_ids": [None]})
    absent = messages("/orders", {})
    given |= messages("/orders/1/payment", {"payment_status": None}, method="PUT")
    absent |= messages("/orders/1/payment", {}, method="PUT")

    assert {field: message.startswith(missing) for field, message in absent.items()} == {
        "user_id": True, "menu_ids": True, "payment_status": True
    }  # fmt: skip
    assert given.keys() == {"user_id", "menu_ids.0", "payment_status"}
    assert not any(missing in message for message in given.values())


@pytest.mark.parametrize(
    ("path", "body", "fields"),
    [
        ("/orders", '{"user_id": 1, "menu_ids": [1], "user_id": 2}', ["user_id"]),
        ("/orders", '{"user_id": 1, "user_id": 1, "menu_ids": [1], "menu_ids": [1]}', ["user_id", "menu_ids"]),
        ("/orders", '{"user_id": 1, "menu_ids": [1], "note": {"a": 1, "a": 1}}', ["a"]),
        ("/orders", r'{"user_id": 1, "\u0075ser_id": 2, "menu_ids": [1]}', ["user_id"]),
        ("/orders", "{{{}}}".format(",".join(f'"{n % 30}": 1' for n in range(60))), [str(n) for n in range(20)]),
        ("/orders/1/payment", '{"payment_status": "pending", "payment_status": "paid"}', ["payment_status"]),
    ],
)
def test_repeated_field_is_told_so(client: FlaskClient, path: str, body: str, fields: list[str]) -> None:
    method = "POST" if path == "/orders" else "PUT"

    answer = client.open(path, method=method, data=body, headers=JSON_HEADERS | {"Accept-Language": "en"})

    errors = problem(answer, 422, "invalid_request")["errors"]
    assert errors == [{"field": field, "message": "must be sent once"} for field in fields]


def test_repeated_parameter_is_told_so(client: FlaskClient) -> None:
    answer = client.get("/orders?user_id=1&user_id=2", headers={"Accept-Language": "en"})

    assert body_of(answer)["errors"] == [{"field": "user_id", "message": "must be sent once"}]


def test_every_wrong_field_is_named_at_once(client: FlaskClient) -> None:
    answer = client.post("/orders", json={"user_id": "1", "menu_ids": [1, "2", 0], "extra": 1})

    found = problem(answer, 422, "invalid_request")
    assert {error["field"] for error in found["errors"]} == {"user_id", "menu_ids.1", "menu_ids.2", "extra"}


MALFORMED = [
    (b"", "baris 1 kolom 1"),
    (b" ", "baris 1 kolom 2"),
    (b"{", "baris 1 kolom 2"),
    (b"{'user_id': 1}", "baris 1 kolom 2"),
    (b'{"user_id": 1, "menu_ids": [1],}', "baris 1 kolom 32"),
    (b'{"user_id": 1, "menu_ids": [1]} {}', "baris 1 kolom 33"),
    (b'{"user_id": NaN, "menu_ids": [1]}', "angka yang tidak dapat dibaca"),
    (b'{"user_id": 1, "menu_ids": [1], "expected_total": NaN}', "angka yang tidak dapat dibaca"),
    (b'{"user_id": 1, "menu_ids": [1], "expected_total": -Infinity}', "angka yang tidak dapat dibaca"),
    (b'{"user_id": 1, "menu_ids": [1], "note": "\xff"}', "byte ke-42 bukan UTF-8"),
    ('{"user_id": 1, "menu_ids": [1]}'.encode("utf-16"), "byte ke-1 bukan UTF-8"),
    (b'\xef\xbb\xbf{"user_id": 1, "menu_ids": [1]}', "hapus byte order mark"),
    (b'{"user_id": 1, "menu_ids": [1], "note": "\x00"}', "baris 1 kolom 42"),
    (b'{"user_id": ' + b"[" * 60_000, "terlalu dalam"),
    (b'{"user_id": ' * 5_000, "terlalu dalam"),
    (b"[" * 30_000 + b"]" * 30_000, "terlalu dalam"),
    (b'{"user_id": 1' + b"0" * 5_000 + b', "menu_ids": [1]}', "angka yang tidak dapat dibaca"),
    (b"user_id=1&menu_ids=1", "baris 1 kolom 1"),
    (b"\x1f\x8b\x08\x00", "byte ke-2 bukan UTF-8"),
]
#: Words of Python's and pydantic's messages.
ENGLISH = re.compile(
    r"\b(expecting|invalid|line|column|char|codec|decode|unexpected|number|input|should|be|too)\b", re.I
)


@pytest.mark.parametrize(("body", "fault"), MALFORMED)
@with_body
def test_malformed_json_is_400_naming_the_fault_in_one_language(
    client: FlaskClient, method: str, path: str, body: bytes, fault: str
) -> None:
    indonesian = client.open(path, method=method, data=body, headers=JSON_HEADERS)
    english = client.open(path, method=method, data=body, headers=JSON_HEADERS | {"Accept-Language": "en"})

    found = problem(indonesian, 400, "malformed_json")["message"]
    assert fault in found
    assert not ENGLISH.search(found)
    assert fault not in problem(english, 400, "malformed_json")["message"]


@pytest.mark.parametrize("coding", ["gzip", "GZIP", "br", "identity, gzip", "x"])
@with_body
def test_compressed_body_is_415_saying_what_to_send(client: FlaskClient, method: str, path: str, coding: str) -> None:
    headers = JSON_HEADERS | {"Content-Encoding": coding}

    answer = client.open(path, method=method, data=gzip.compress(b"{}"), headers=headers)

    assert "Content-Encoding" in problem(answer, 415, "unsupported_content_encoding")["message"]
    assert answer.headers["Accept-Encoding"] == "identity"


def test_content_encoding_identity_changes_nothing(client: FlaskClient) -> None:
    answer = client.post("/orders", data="{}", headers=JSON_HEADERS | {"Content-Encoding": "identity"})

    problem(answer, 422, "invalid_request")


@pytest.mark.parametrize(
    "content_type",
    [
        None, "", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "json", "*/*",
        "application/merge-patch+json", "application/problem+json", "text/json", "application/jsonp",
        "text/plain; application/json",
    ],
)  # fmt: skip
@with_body
def test_other_content_type_is_415_naming_the_right_one(
    client: FlaskClient, method: str, path: str, content_type: str | None
) -> None:
    headers = {} if content_type is None else {"Content-Type": content_type}

    answer = client.open(path, method=method, data=json.dumps(order_request()), headers=headers)

    assert "application/json" in problem(answer, 415, "unsupported_media_type")["message"]


@pytest.mark.parametrize("content_type", ["application/json", "application/json; charset=utf-8", "APPLICATION/JSON"])
def test_json_is_accepted_with_parameters_and_in_any_case(client: FlaskClient, content_type: str) -> None:
    answer = client.post("/orders", data="{}", headers={"Content-Type": content_type})

    problem(answer, 422, "invalid_request")


def test_64_kib_are_read_and_one_byte_more_is_413(client: FlaskClient) -> None:
    fits = client.post("/orders", data="{}".ljust(LIMIT_BYTES), headers=JSON_HEADERS)
    too_large = client.post("/orders", data="{}".ljust(LIMIT_BYTES + 1), headers=JSON_HEADERS)

    problem(fits, 422, "invalid_request")
    assert "64 KiB" in problem(too_large, 413, "body_too_large")["message"]
