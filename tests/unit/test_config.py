"""Settings that cannot be used are named with their remedy, and no credential of a URL is printed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from order_service.config import Settings, explain, masked

ROOT = Path(__file__).parents[2]
DATABASE, BROKER = "DATABASE_URL: must look like", "RABBITMQ_URL: must look like"
UNUSABLE = [
    ("DATABASE_URL", "mysql://host/orders", DATABASE),
    ("DATABASE_URL", "postgresql://host:port/orders", DATABASE),
    ("DATABASE_URL", "postgresql://[::1/orders", DATABASE),
    ("DATABASE_URL", "postgresql://host/orders?no_option=1", DATABASE),
    ("DATABASE_URL", "sqlite:///", DATABASE),
    ("RABBITMQ_URL", "http://host/", BROKER),
    ("RABBITMQ_URL", "amqp://host:port/", BROKER),
    ("RABBITMQ_URL", "amqp://[::1/", BROKER),
    ("RABBITMQ_URL", "amqp://host/?heartbeat=often", BROKER),
    ("RABBITMQ_URL", "amqp://host/,", BROKER),
    ("USER_SERVICE_URL", "users:5001", "USER_SERVICE_URL: "),
    ("MENU_SERVICE_URL", "http://[::1", "MENU_SERVICE_URL: "),
    ("ORDER_HOSTS", "http://orders.example", "ORDER_HOSTS: must be host names"),
    ("ORDER_HOSTS", "orders.example:5003", "ORDER_HOSTS: must be host names"),
    ("ORDER_HOSTS", "a,,b", "ORDER_HOSTS: must be host names"),
    *((str(field.validation_alias), "unusable", f"{field.validation_alias}: ")
      for name, field in Settings.model_fields.items() if field.annotation is not str and not name.endswith("_url")),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value", "message"), UNUSABLE, ids=[f"{name}={value}" for name, value, _ in UNUSABLE])
def test_a_setting_that_cannot_be_used_is_named(
    name: str, value: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)

    with pytest.raises(ValidationError) as refused:
        Settings()

    assert explain(refused.value).startswith(message)
    assert len(explain(refused.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://me:S3cret@host/orders", "postgresql://me:***@host/orders"),
        ("postgresql://host/orders?user=me&password=S3cret", "postgresql://host/orders?user=me&password=***"),
        (
            "postgresql://host/orders?sslpassword=S3cret&sslkey=S3cret",
            "postgresql://host/orders?sslpassword=***&sslkey=***",
        ),
        (
            "postgresql://me:S3cret@/orders?host=a:5432&host=b:5432&target_session_attrs=read-write",
            "postgresql://me:***@/orders?host=a:5432&host=b:5432&target_session_attrs=read-write",
        ),
        ("http://S3cret@host:5001/path", "http://***@host:5001/path"),
        ("http://u:S3@cret@host/", "http://u:***@host/"),
        ("http://host/?api_key=S3cret&page=2", "http://host/?api_key=***&page=2"),
        ("sqlite:///var/orders.db", "sqlite:///var/orders.db"),
    ],
)
def test_no_credential_of_a_url_is_shown(url: str, shown: str) -> None:
    assert masked(url) == shown


CANARY = "S3cretCanary"


@pytest.mark.parametrize("command", [["migrate"], ["topology"], ["events", "tail"], ["settings"]], ids=" ".join)
@pytest.mark.parametrize(
    "database",
    [
        f"postgresql://me:{CANARY}@127.0.0.1:1/orders",
        f"postgresql://127.0.0.1:1/orders?user=me&password={CANARY}",
        f"mysql://me:{CANARY}@host/orders",
    ],
)
def test_no_command_prints_a_credential(command: list[str], database: str) -> None:
    urls = {
        "DATABASE_URL": database,
        "RABBITMQ_URL": f"amqp://me:{CANARY}@127.0.0.1:1/",
        "USER_SERVICE_URL": f"http://me:{CANARY}@127.0.0.1:1/",
    }

    ended = subprocess.run(
        [sys.executable, "-m", "order_service", *command],
        cwd=ROOT, env=os.environ | urls, capture_output=True, text=True, timeout=60,
    )  # fmt: skip

    assert CANARY not in ended.stdout + ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("name", ["WAIT_SECONDS", "BATCH_SIZE", "STREAMS"])
def test_the_bare_name_of_a_setting_is_not_read(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "unusable")

    assert Settings().wait_seconds == 2
