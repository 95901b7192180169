"""`broker definitions` and `broker rights`: passwords from the environment or files, and never printed."""

import json
from base64 import b64decode
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from order_service.cli.broker_users import rights_table
from order_service.cli.main import main
from order_service.contract import topology
from order_service.contract.broker_rights import USERS, password_hash

DOCS = Path(__file__).parents[2] / "docs"
PASSWORDS = {user.password_variable: f"canary-{user.name}-ü" for user in USERS}


def run(*arguments: str, **env: str | None) -> Result:
    unset = {f"{name}{suffix}": None for name in PASSWORDS for suffix in ("", "_FILE")}
    return CliRunner(env={**unset, **env}).invoke(main, ["broker", *arguments])


def test_the_names_of_users_and_passwords() -> None:
    assert {user.name: user.password_variable for user in USERS} == {
        "order-service": "ORDER_SERVICE_PASSWORD",
        "order-topology": "ORDER_TOPOLOGY_PASSWORD",
        "menu-service": "MENU_SERVICE_PASSWORD",
        "payment-service": "PAYMENT_SERVICE_PASSWORD",
        "order-operator": "ORDER_OPERATOR_PASSWORD",
    }


def test_the_hash_is_that_of_the_example_in_the_documentation_of_rabbitmq() -> None:
    """https://www.rabbitmq.com/docs/passwords#computing-password-hash"""
    salt = bytes.fromhex("908DC60A")

    assert password_hash("test12", salt) == "kI3GCqW5JLMJa4iX1lo7X4D6XbYqlLgxIs30+P6tENUV2POR"


def matches(user: dict[str, Any], password: str) -> bool:
    hashed = b64decode(user["password_hash"])
    return hashed[4:] == sha256(hashed[:4] + password.encode()).digest()


def test_the_definitions_have_a_salted_hash_of_each_password_and_no_password() -> None:
    first, second = run("definitions", **PASSWORDS), run("definitions", **PASSWORDS)

    assert first.exit_code == 0, first.output
    users = json.loads(first.output)["users"]
    assert [user["name"] for user in users] == [user.name for user in USERS]
    for user, made in zip(USERS, users, strict=True):
        assert matches(made, PASSWORDS[user.password_variable])
        assert made["hashing_algorithm"] == "rabbit_password_hashing_sha256"
    assert "canary" not in first.output
    assert first.output != second.output  # another salt


def test_passwords_are_read_from_files(tmp_path: Path) -> None:
    files = {}
    for name, password in PASSWORDS.items():
        (tmp_path / name).write_text(f"{password}\n", encoding="utf-8")
        files[f"{name}_FILE"] = str(tmp_path / name)

    done = run("definitions", **files)

    assert done.exit_code == 0, done.output
    for user, made in zip(USERS, json.loads(done.output)["users"], strict=True):
        assert matches(made, PASSWORDS[user.password_variable])


@pytest.mark.parametrize("name", PASSWORDS)
def test_a_password_that_is_missing_empty_unreadable_or_given_twice_is_named(name: str, tmp_path: Path) -> None:
    empty, absent = tmp_path / "empty", tmp_path / "absent"
    empty.write_text("\n")
    wrong: list[dict[str, str | None]] = [
        {name: None}, {name: ""}, {name: None, f"{name}_FILE": str(empty)}, {name: None, f"{name}_FILE": str(absent)},
        {f"{name}_FILE": str(empty)},
    ]  # fmt: skip

    for given in wrong:
        done = run("definitions", **PASSWORDS | given)

        assert done.exit_code == 2, given
        assert done.stdout == ""
        assert done.stderr.startswith(f"{name}: ")
        assert len(done.stderr.splitlines()) == 1
        assert "canary" not in done.stderr


def test_without_any_password_all_are_named() -> None:
    done = run("definitions")

    assert done.exit_code == 2
    assert [line.partition(":")[0] for line in done.stderr.splitlines()] == list(PASSWORDS)


@pytest.mark.parametrize(("menu_url", "queues"), [
    (None, topology.QUEUES), ("http://menu:5002", (*topology.QUEUES, topology.MENU_HTTP)),
])  # fmt: skip
def test_the_definitions_have_the_queues_that_topology_declares(
    menu_url: str | None, queues: tuple[topology.Queue, ...]
) -> None:
    made = json.loads(run("definitions", "--vhost", "orders", **PASSWORDS, MENU_SERVICE_URL=menu_url).output)

    assert {queue["name"] for queue in made["queues"]} == {
        name for queue in queues for name in (queue.name, queue.dead_letters)
    }
    assert {each["vhost"] for part in ("queues", "bindings", "exchanges", "permissions") for each in made[part]} == {
        "orders"
    }


def test_the_table_of_rights_is_up_to_date() -> None:
    assert run("rights").output == rights_table()
    page = (DOCS / "rights.md").read_text(encoding="utf-8")
    assert rights_table() in page, (
        "docs/rights.md is out of date: replace its table by `python -m order_service broker rights`"
    )
    assert all(f"`{user.name}`" in rights_table() for user in USERS)
