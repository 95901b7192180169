"""The sandbox's User Service: its REST, and its life as a process."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from flask.testing import FlaskClient

from sandbox.siblings.store import create
from sandbox.siblings.users import SCHEMA, create_app


@pytest.fixture
def client(tmp_path: Path) -> FlaskClient:
    create(tmp_path / "users.db", SCHEMA)
    return create_app(tmp_path / "users.db").test_client()


def test_user_1_is_there_from_the_start(client: FlaskClient) -> None:
    answer = client.get("/users/1")
    assert (answer.status_code, answer.json) == (200, {"id": 1, "name": "Budi Santoso", "payment_status": "unpaid"})


def test_new_user_is_listed_and_found(client: FlaskClient) -> None:
    created = client.post("/users", json={"name": "Siti", "phone": "0812"})

    assert created.status_code == 201
    assert created.json == {"id": 2, "name": "Siti", "payment_status": "unpaid"}
    assert client.get("/users/2").json == created.json
    assert [user["id"] for user in client.get("/users").json or []] == [1, 2]


@pytest.mark.parametrize("field", ["payment_status", "status"])
def test_payment_status_is_updated_under_either_name(client: FlaskClient, field: str) -> None:
    answer = client.put("/users/1/payment-status", json={field: "paid"})

    assert (answer.status_code, (answer.json or {})["payment_status"]) == (200, "paid")
    assert (client.get("/users/1").json or {})["payment_status"] == "paid"


def test_unknown_user_is_404_with_the_agreed_message(client: FlaskClient) -> None:
    expected = {"message": "Pengguna tidak ditemukan."}
    for answer in (client.get("/users/99"), client.put("/users/99/payment-status", json={"payment_status": "paid"})):
        assert (answer.status_code, answer.json) == (404, expected)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"[" * 100_000, b"{}", b'{"name": ""}', b'{"name": 7}'])
def test_unreadable_user_is_400(client: FlaskClient, body: bytes) -> None:
    answer = client.post("/users", data=body)
    assert answer.status_code == 400
    assert "message" in (answer.json or {})


def test_database_made_twice_keeps_what_is_in_it(client: FlaskClient, tmp_path: Path) -> None:
    client.put("/users/1/payment-status", json={"payment_status": "paid"})
    create(tmp_path / "users.db", SCHEMA)
    assert (client.get("/users/1").json or {})["payment_status"] == "paid"


@contextmanager
def running(directory: Path) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """The service as a process, on a free port."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    environment = os.environ | {"USERS_PORT": str(port), "SANDBOX_DIR": str(directory)}
    with subprocess.Popen([sys.executable, "-m", "sandbox.users"], env=environment) as process:
        try:
            yield process, f"http://127.0.0.1:{port}"
        finally:
            process.kill()


def is_well(url: str) -> bool:
    try:
        return bool(httpx2.get(f"{url}/healthz").json() == {"status": "ok"})
    except httpx2.TransportError:
        return False


def test_process_answers_and_ends_on_sigterm(tmp_path: Path, eventually: Callable[..., Any]) -> None:
    with running(tmp_path / "sandbox") as (process, url):
        eventually(lambda: is_well(url), "the User Service to answer")
        assert httpx2.get(f"{url}/users/1").status_code == 200

        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=5) == 0
