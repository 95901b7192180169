"""Settings that cannot be used are named with their remedy, and no credential of a URL is printed."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from click.testing import CliRunner
from pydantic import ValidationError

from order_service.cli.main import main
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
        ("http://u:S3@cret@host/", "http://***@host/"),
        ("http://S3cret:@host/", "http://***@host/"),
        ("http://host/?auth=S3cret&S3cret", "http://host/?auth=***&***"),
        ("postgresql://me:S3/cr?e#t@host/orders", "postgresql://me:***@host/orders"),
        ("postgresql://me:S3cret@/orders?host=h1:1&host=h2", "postgresql://me:***@/orders?host=h1:1&host=h2"),
        ("amqp://a:S3cret@h1,amqp://b:S3cret@h2/", "amqp://a:***@h2/"),
        ("sqlite:///var/orders.db", "sqlite:///var/orders.db"),
    ],
)
def test_no_credential_of_a_url_is_shown(url: str, shown: str) -> None:
    assert masked(url) == shown


#: In every place where a secret can stand; printed neither as it is nor in part.
CANARY = "S3cretCanary"
HTTP = f"http://{CANARY}:{CANARY}%20x@127.0.0.1:1/?token={CANARY}"
UNREACHABLE = {
    "DATABASE_URL": f"postgresql://me:{CANARY}%2Fx@127.0.0.1:1/orders?sslpassword={CANARY}",
    "RABBITMQ_URL": f"amqp://me:{CANARY}%2F@127.0.0.1:1/,amqp://me:{CANARY}@127.0.0.1:2/",
    "USER_SERVICE_URL": HTTP,
    "MENU_SERVICE_URL": HTTP,
    "OTEL_EXPORTER_OTLP_HEADERS": f"authorization=Bearer {CANARY}",
    "LOG_LEVEL": "DEBUG",
}
ENVIRONMENTS = {
    "unreachable": UNREACHABLE,
    "in the query": UNREACHABLE | {"DATABASE_URL": f"postgresql://127.0.0.1:1/orders?user=me&password={CANARY}"},
    "several hosts": UNREACHABLE
    | {"DATABASE_URL": f"postgresql://me:{CANARY}@/orders?host=127.0.0.1:1&host=127.0.0.1:2"},
    "not encoded": UNREACHABLE | {"DATABASE_URL": f"postgresql://me:x/{CANARY}@127.0.0.1:1/orders"},
    "invalid": {
        "DATABASE_URL": f"mysql://me:{CANARY}@host/orders",
        "RABBITMQ_URL": f"amqp://me:{CANARY}/@host/",
        "USER_SERVICE_URL": f"http://me:{CANARY}@",
        "MENU_SERVICE_URL": f"me:{CANARY}@host",
    },
}
#: The commands that read the settings; the Procfile's processes are in tests/e2e/test_secrets.py.
CONNECTING = ["migrate", "topology", "events tail"]
PRINTING = [
    "settings", "saga", "asyncapi", "events page", "events sample OrderCreated", "--help", "events publish --help", "none",
]  # fmt: skip


@pytest.mark.parametrize("places", ENVIRONMENTS)
def test_no_command_prints_a_credential(places: str) -> None:
    def output_of(command: str) -> str:
        ended = subprocess.run(
            [sys.executable, "-m", "order_service", *command.split()],
            cwd=ROOT, env=os.environ | ENVIRONMENTS[places], capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        return ended.stdout + ended.stderr

    with ThreadPoolExecutor() as pool:
        outputs = dict(zip(CONNECTING, pool.map(output_of, CONNECTING), strict=True))

    assert [command for command, output in outputs.items() if CANARY in output or "Traceback" in output] == []
    assert "127.0.0.1" in outputs["migrate"] or "DATABASE_URL" in outputs["migrate"]


@pytest.mark.parametrize("command", PRINTING)
def test_no_document_has_a_credential_of_its_reader(command: str) -> None:
    printed = CliRunner(env=UNREACHABLE).invoke(main, command.split()).output

    assert printed
    assert CANARY not in printed


@pytest.mark.parametrize("name", ["WAIT_SECONDS", "BATCH_SIZE", "STREAMS"])
def test_the_bare_name_of_a_setting_is_not_read(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "unusable")

    assert Settings().wait_seconds == 2
