"""The sandbox's User Service over HTTP."""

from pathlib import Path

import pytest
from flask.testing import FlaskClient

from sandbox.siblings.users import create_app


@pytest.fixture
def client(tmp_path: Path) -> FlaskClient:
    return create_app(tmp_path / "users.db").test_client()


def test_user_1_exists_from_the_start(client: FlaskClient) -> None:
    response = client.get("/users/1")
    assert (response.status_code, response.json) == (200, {"id": 1, "name": "Budi Santoso", "payment_status": "unpaid"})


def test_new_user_is_listed_and_found(client: FlaskClient) -> None:
    created = client.post("/users", json={"name": "Siti", "phone": "0812"})

    assert created.status_code == 201
    assert created.json == {"id": 2, "name": "Siti", "payment_status": "unpaid"}
    assert client.get("/users/2").json == created.json
    assert [user["id"] for user in client.get("/users").json or []] == [1, 2]


@pytest.mark.parametrize("field", ["payment_status", "status"])
def test_payment_status_is_updated_under_either_name(client: FlaskClient, field: str) -> None:
    response = client.put("/users/1/payment-status", json={field: "paid"})

    assert (response.status_code, (response.json or {})["payment_status"]) == (200, "paid")
    assert (client.get("/users/1").json or {})["payment_status"] == "paid"


def test_unknown_user_is_404_with_the_documented_message(client: FlaskClient) -> None:
    expected = {"message": "Pengguna tidak ditemukan."}
    for response in (client.get("/users/99"), client.put("/users/99/payment-status", json={"payment_status": "paid"})):
        assert (response.status_code, response.json) == (404, expected)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"[" * 100_000, b"{}", b'{"name": ""}', b'{"name": 7}'])
def test_invalid_user_is_400(client: FlaskClient, body: bytes) -> None:
    response = client.post("/users", data=body)
    assert response.status_code == 400
    assert "message" in (response.json or {})


def test_database_created_twice_keeps_its_rows(client: FlaskClient, tmp_path: Path) -> None:
    client.put("/users/1/payment-status", json={"payment_status": "paid"})
    create_app(tmp_path / "users.db")
    assert (client.get("/users/1").json or {})["payment_status"] == "paid"
