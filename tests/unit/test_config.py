"""Settings that cannot be used are named with their remedy, and no credential of a URL is printed."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from order_service import process
from order_service.cli.main import main
from order_service.config import Settings, explain
from order_service.contract.broker_rights import USERS
from sandbox.processes import environment
from sandbox.servers.broker import Broker
from sandbox.siblings.http import db_path, port_of
from sandbox.siblings.kit import Service

ROOT = Path(__file__).parents[2]
DATABASE, BROKER = "DATABASE_URL: must look like", "RABBITMQ_URL: must look like"
#: Names that cannot even be looked up: an empty label, and one of more than 63 characters.
NO_HOSTS = ("db..example", "d" * 64 + ".example")
UNUSABLE = [
    ("DATABASE_URL", "mysql://host/orders", DATABASE),
    ("DATABASE_URL", "postgresql://host:port/orders", DATABASE),
    ("DATABASE_URL", "postgresql://[::1/orders", DATABASE),
    ("DATABASE_URL", "postgresql://host/orders?no_option=1", DATABASE),
    ("DATABASE_URL", "sqlite:///", DATABASE),
    ("DATABASE_URL", "sqlite:///:memory:", DATABASE),
    ("DATABASE_URL", "sqlite:///file::memory:?uri=true", DATABASE),
    ("DATABASE_URL", "sqlite:////x.db?timeout=abc", DATABASE),
    ("DATABASE_URL", "sqlite:////x.db?mode=ro", DATABASE),
    ("DATABASE_URL", "postgresql://host/orders?sslmode=bogus", DATABASE),
    ("DATABASE_URL", "postgresql://host/orders?target_session_attrs=bogus", DATABASE),
    ("DATABASE_URL", "postgresql://host:99999/orders", DATABASE),
    ("DATABASE_URL", "postgresql:///orders?host=a:5432&host=b:99999", DATABASE),
    *(("DATABASE_URL", f"postgresql://{host}/orders", DATABASE) for host in NO_HOSTS),
    ("DATABASE_URL", "postgresql:///orders?host=a,b..c", DATABASE),
    *(("DATABASE_URL", url, f"{DATABASE} sqlite:///path or postgresql://user:password@host/name, with @ in a password as %40")
      for url in (
        "postgresql://me:a@b@host/orders", "postgresql://me:a@b/c@host/orders", "postgresql://me:@@host/orders",
        "postgresql://host/orders?user=me&password=a@b", "postgresql://me@host/orders?password=a@b",
    )),
    *(("RABBITMQ_URL", f"amqp://host/,amqp://{host}/", BROKER) for host in NO_HOSTS),
    *(("ORDER_RATE_LIMIT_STORAGE", f"redis://{host}/0", "ORDER_RATE_LIMIT_STORAGE: must be memory") for host in NO_HOSTS),
    ("RABBITMQ_URL", "amqp://host:99999/", BROKER),
    ("RABBITMQ_URL", "http://host/", BROKER),
    ("RABBITMQ_URL", "amqp://host:port/", BROKER),
    ("RABBITMQ_URL", "amqp://[::1/", BROKER),
    ("RABBITMQ_URL", "amqp://host/?heartbeat=often", BROKER),
    ("RABBITMQ_URL", "amqp://host/,", BROKER),
    ("USER_SERVICE_URL", "users:5001", "USER_SERVICE_URL: "),
    ("MENU_SERVICE_URL", "http://[::1", "MENU_SERVICE_URL: "),
    ("HOST", "x86_64-conda-linux-gnu", "HOST: must be an IP address or localhost"),
    ("ORDER_AUTH", "JWT", "ORDER_AUTH: Input should be 'jwt' or 'none'"),
    ("ORDER_AUTH", "jwt", "ORDER_JWT_ISSUER: is required"),
    *(("HOST", value, "ORDER_AUTH: must be jwt (requests need a token) or none (everyone") for value in (
        "0.0.0.0", "::", "192.168.1.5", "[2001:db8::1]"
    )),
    *(("ORDER_JWT_JWKS_URL", value, "ORDER_JWT_JWKS_URL: must be an https address") for value in (
        "http://login.example/jwks", "http://192.168.1.5/jwks", "http://localhost.example/"
    )),
    *(("ORDER_JWT_JWKS_URL", value, "ORDER_JWT_JWKS_URL: ") for value in ("login", "ftp://localhost/jwks")),
    ("ORDER_JWT_JWKS_URL", "http://[::1]:80/jwks", "ORDER_AUTH: must be jwt, because ORDER_JWT_JWKS_URL is set"),
    ("ORDER_JWT_ISSUER", "https://login.example", "ORDER_AUTH: must be jwt, because ORDER_JWT_ISSUER is set"),
    *(("ORDER_JWT_ALGORITHMS", value, "ORDER_JWT_ALGORITHMS: must be of RS256") for value in (
        "HS256", "none", "RS256,HS256", "RS256,", "rs256", "None"
    )),
    ("ORDER_HOSTS", "http://orders.example", "ORDER_HOSTS: must be host names"),
    ("ORDER_HOSTS", "orders.example:5003", "ORDER_HOSTS: must be host names"),
    ("ORDER_HOSTS", "a,,b", "ORDER_HOSTS: must be host names"),
    *(("ORDER_CORS_ORIGINS", value, "ORDER_CORS_ORIGINS: must be * or origins") for value in (
        "null", "shop.example", "https://shop.example/orders", "https://a,,b", "https://*.shop.example", "https://me@shop.example"
    )),
    *(("ORDER_RATE_LIMIT", value, "ORDER_RATE_LIMIT: must look like 60/minute") for value in (
        "60", "0/minute", "-1/minute", "60/fortnight", "60/minute;5/second", "1/year", "9999999/minute", "1.5/minute"
    )),
    *(("ORDER_RATE_LIMIT_STORAGE", value, "ORDER_RATE_LIMIT_STORAGE: must be memory, or look like redis://") for value in (
        "redis", "memory://", "redis://", "redis://host:99999/0", "redis://host/x", "redis://[::1/0", "memcached://host",
        "redis://host/0?no_option=1", "redis://host/0?socket_timeout=abc"
    )),
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


@pytest.mark.parametrize("field", Settings.model_fields.values(), ids=Settings.model_fields)
def test_no_value_of_a_setting_is_shown(field: FieldInfo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(str(field.validation_alias), f"/{CANARY}")

    with pytest.raises(ValidationError) as refused:
        Settings()

    assert CANARY.lower() not in explain(refused.value).lower()


#: In every place where a secret can stand; printed neither as it is nor in part.
CANARY = "S3cretCanary"
HTTP = f"http://{CANARY}:{CANARY}%20x@127.0.0.1:1/?token={CANARY}"
UNREACHABLE = {
    "DATABASE_URL": f"postgresql://me:{CANARY}%2Fx@127.0.0.1:1/orders?sslpassword={CANARY}",
    "RABBITMQ_URL": f"amqp://me:{CANARY}%2F@127.0.0.1:1/,amqp://me:{CANARY}@127.0.0.1:2/",
    "USER_SERVICE_URL": HTTP,
    "MENU_SERVICE_URL": HTTP,
    "ORDER_RATE_LIMIT_STORAGE": f"redis://me:{CANARY}@127.0.0.1:1/0",
    "OTEL_EXPORTER_OTLP_HEADERS": f"authorization=Bearer {CANARY}",
    "ORDER_JWT_ISSUER": "https://login.example",
    "ORDER_JWT_JWKS_URL": HTTP,
    **{user.password_variable: f"{CANARY} {user.name}" for user in USERS},
    "LOG_LEVEL": "DEBUG",
}
ENVIRONMENTS = {
    "unreachable": UNREACHABLE,
    "in the query": UNREACHABLE | {"DATABASE_URL": f"postgresql://127.0.0.1:1/orders?user=me&password={CANARY}"},
    "several hosts": UNREACHABLE
    | {"DATABASE_URL": f"postgresql://me:{CANARY}@/orders?host=127.0.0.1:1&host=127.0.0.1:2"},
    "not encoded": UNREACHABLE | {"DATABASE_URL": f"postgresql://me:x/{CANARY}@127.0.0.1:1/orders"},
    "with an @": UNREACHABLE | {"DATABASE_URL": f"postgresql://me:x@{CANARY}@127.0.0.1:1/orders"},
    "invalid": {
        "DATABASE_URL": f"mysql://me:{CANARY}@host/orders",
        "RABBITMQ_URL": f"amqp://me:{CANARY}/@host/",
        "USER_SERVICE_URL": f"http://me:{CANARY}@",
        "MENU_SERVICE_URL": f"me:{CANARY}@host",
        "ORDER_RATE_LIMIT_STORAGE": f"redis://me:{CANARY}@host/x",
        "ORDER_JWT_JWKS_URL": f"http://me:{CANARY}@login.example/?key={CANARY}",
        "ORDER_AUTH": CANARY,
        "ORDER_CORS_ORIGINS": f"https://me:{CANARY}@host",
    },
}
#: The commands that read the settings; the Procfile's processes are in tests/e2e/test_secrets.py.
CONNECTING = ["migrate", "topology", "events tail"]
#: Runs them in one process, because each takes a second to start.
RUN_ALL = """
import sys
from order_service.cli.main import main
for command in sys.argv[1:]:
    try:
        main(command.split())
    except SystemExit as ended:
        print(command, "exits with", ended.code)
"""
#: All others, with arguments; {file} names one that has a secret.
COMMANDS = [
    "settings", "metrics", "saga", "asyncapi", "schemas {directory}", "events page", "events sample OrderCreated",
    "events validate {file}", "events publish --unchecked {file}", "broker rights", "broker definitions", "compensations list",
    "compensations confirm 1", "compensations retry", "outbox list", "outbox retry", "dlq list", "dlq show 1", "dlq replay 1",
    "dlq discard 1 --yes", "doctor", "explain 1", "timeline 1", "stuck", "database roles", "ids", "siblings check menu", "token --sub 1 --scope orders --key {file}",
    "--help", "events publish --help", "none",
]  # fmt: skip


@pytest.mark.parametrize("places", ENVIRONMENTS)
def test_no_command_prints_a_credential(places: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", RUN_ALL, *CONNECTING],
        cwd=ROOT, env=os.environ | ENVIRONMENTS[places], capture_output=True, text=True, timeout=60,
    )  # fmt: skip

    assert ended.stdout.splitlines() == [f"{command} exits with 2" for command in CONNECTING]
    assert CANARY not in ended.stderr
    assert "Traceback" not in ended.stderr
    assert "127.0.0.1" in ended.stderr or "DATABASE_URL" in ended.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_no_other_command_prints_a_credential(command: str, tmp_path: Path) -> None:
    secret = tmp_path / "key.pem"
    secret.write_text(f"-----BEGIN PRIVATE KEY-----\n{CANARY}\n-----END PRIVATE KEY-----\n")

    arguments = command.format(directory=tmp_path, file=secret).split()
    printed = CliRunner(env=UNREACHABLE).invoke(main, arguments)

    assert printed.output or arguments[0] == "schemas"
    assert CANARY not in printed.output
    assert isinstance(printed.exception, SystemExit | None)


def test_no_password_is_printed_beside_a_missing_one(tmp_path: Path) -> None:
    for missing in (None, str(tmp_path), CANARY):
        env = UNREACHABLE | {"ORDER_OPERATOR_PASSWORD": None, "ORDER_OPERATOR_PASSWORD_FILE": missing}
        printed = CliRunner(env=env).invoke(main, ["broker", "definitions"])

        assert (printed.exit_code, CANARY in printed.output) == (2, False), printed.output


def test_every_command_is_tried_with_credentials() -> None:
    def names(command: click.Command, *path: str) -> Iterator[str]:
        if isinstance(command, click.Group):
            for name, each in command.commands.items():
                yield from names(each, *path, name)
        else:
            yield " ".join(path)

    tried = [f"{each} " for each in CONNECTING + COMMANDS]
    assert [name for name in names(main) if not any(each.startswith(f"{name} ") for each in tried)] == []


def test_an_origin_is_compared_as_browsers_write_it() -> None:
    settings = Settings(
        cors_origins="https://Shop.example:443, http://localhost:3000/,http://[::1]:80,https://toko.例え.jp"
    )

    assert settings.allowed_origins == {
        "https://shop.example", "http://localhost:3000", "http://[::1]", "https://toko.xn--r8jz45g.jp"
    }  # fmt: skip


UNDOCUMENTED = [name.upper() for name in Settings.model_fields]
UNDOCUMENTED += [f"ORDER_{name}" for name in UNDOCUMENTED] + ["port", "order_wait_seconds"]
UNDOCUMENTED = [n for n in UNDOCUMENTED if n not in {f.validation_alias for f in Settings.model_fields.values()}]


def test_only_documented_names_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = Settings()
    for name in UNDOCUMENTED:
        # What Kubernetes sets for a Service called `order`: ORDER_PORT=tcp://10.0.0.1:5003.
        monkeypatch.setenv(name, "tcp://10.0.0.1:5003")

    assert "ORDER_PORT" in UNDOCUMENTED
    assert Settings() == expected


@pytest.mark.parametrize(("host", "address"), [
    ("0.0.0.0", "0.0.0.0:5003"), ("localhost", "localhost:5003"), ("::", "[::]:5003"), ("[::1]", "[::1]:5003"),
])  # fmt: skip
def test_addresses_to_listen_on(host: str, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOST", host)
    monkeypatch.setenv("ORDER_AUTH", "none")

    assert Settings().address == address


JWT = {"auth": "jwt", "jwt_issuer": "https://login.example"}


@pytest.mark.parametrize("more", [{}, {"jwt_jwks_url": "https://login.example/jwks", "jwt_key_file": "key.pem"}])
def test_tokens_need_exactly_one_source_of_keys(more: dict[str, str]) -> None:
    with pytest.raises(ValidationError) as refused:
        Settings(**JWT, **more)

    assert explain(refused.value).startswith(
        "ORDER_JWT_JWKS_URL: with ORDER_AUTH=jwt, set either this or ORDER_JWT_KEY_FILE"
    )


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "localhost", "::1", "[::1]"])
def test_requests_need_no_token_by_default_on_a_loopback_address(host: str) -> None:
    assert not Settings(host=host).needs_tokens


def test_only_the_api_needs_to_know_its_callers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOST", "0.0.0.0")
    assert not process.begin().needs_tokens
    monkeypatch.setenv("ORDER_AUTH", "jwt")  # without an issuer
    assert not process.begin().needs_tokens


def test_only_the_api_reads_what_other_programs_set_as_host_and_port(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOST", "x86_64-conda-linux-gnu")
    monkeypatch.setenv("PORT", "tcp://10.0.0.1:5003")

    assert process.begin().port == 5003
    with pytest.raises(SystemExit):
        process.begin(is_api=True)


def test_the_api_needs_a_port_of_its_own_for_monitoring(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PORT", "5003")
    monkeypatch.setenv("ORDER_OPS_PORT", "5003")

    assert process.begin().ops_port == 5003
    with pytest.raises(SystemExit, match="2"):
        process.begin(is_api=True)
    assert capsys.readouterr().err == "ORDER_OPS_PORT: must be another port than PORT\n"


def test_make_run_does_not_pass_on_a_host_that_is_no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    broker = Broker("amqp://localhost/", None, "a test")

    monkeypatch.setenv("HOST", "x86_64-conda-linux-gnu")
    assert "HOST" not in environment(broker, broker.amqp_url)
    monkeypatch.setenv("HOST", "::")
    assert environment(broker, broker.amqp_url)["HOST"] == "::"


def test_the_sandbox_ignores_the_port_variables_of_kubernetes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MENU_PORT", "tcp://10.0.0.1:5002")
    monkeypatch.setenv("USERS_PORT", "6001")

    assert (port_of("MENU_PORT", 5002), port_of("USERS_PORT", 5001)) == (5002, 6001)


def test_the_sandbox_takes_an_empty_variable_as_unset(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("RABBITMQ_URL", "REPLY_EXCHANGE", "USERS_PORT", "SANDBOX_DIR"):
        monkeypatch.setenv(name, "")

    service = Service("menu-service", tmp_path / "menu.db", "", {})

    assert (service.amqp_url, service.exchange) == ("amqp://guest:guest@localhost:5672/", "menu-service.events")
    assert (port_of("USERS_PORT", 5001), str(db_path("menu.db"))) == (5001, "var/sandbox/menu.db")


@pytest.mark.parametrize(
    ("given", "requests", "seconds"), [("60/minute", 60, 60), ("10 per 5 seconds", 10, 5), ("1 / DAY", 1, 86400)]
)
def test_notations_of_a_rate(given: str, requests: int, seconds: int) -> None:
    rate = Settings(rate_limit=given).rate

    assert rate
    assert (rate.amount, rate.get_expiry()) == (requests, seconds)


@pytest.mark.parametrize(("auth", "given", "most"), [
    ("none", None, 0), ("none", 5, 5), ("jwt", None, 20), ("jwt", 5, 5), ("jwt", 0, 0),
])  # fmt: skip
def test_pending_orders_and_streams_are_limited_by_default_where_requests_need_tokens(
    auth: str, given: int | None, most: int
) -> None:
    settings = Settings(auth=auth, jwt_issuer="i", jwt_key_file="k", pending_limit=given, stream_limit=given)

    assert (settings.most_pending, settings.most_own_streams) == (most, most)


@pytest.mark.parametrize(("name", "given", "read"), [
    ("ORDER_RATE_LIMIT_STORAGE", "Memory", "memory"),
    ("ORDER_RATE_LIMIT_STORAGE", "REDIS://u:P@host/1", "redis://u:P@host/1"),
    ("LOG_LEVEL", "info", "INFO"), ("LOG_LEVEL", "Warn", "WARNING"),
    ("DATABASE_URL", "postgres://me@host/orders", "postgresql://me@host/orders"),
    ("DATABASE_URL", "PostgreSQL://me@host/Orders", "postgresql://me@host/Orders"),
    ("DATABASE_URL", "SQLite:///Orders.db", "sqlite:///Orders.db"),
    ("RABBITMQ_URL", "AMQP://a:b@h1/Vhost, Amqps://h2/", "amqp://a:b@h1/Vhost,amqps://h2/"),
])  # fmt: skip
def test_other_spellings_of_a_level_or_a_scheme_are_read(
    name: str, given: str, read: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, given)

    assert getattr(Settings(), name.lower().removeprefix("order_")) == read


def test_page_of_the_settings_names_what_libraries_read_and_the_proxies_that_are_not_used() -> None:
    page = (ROOT / "docs" / "settings.md").read_text()

    assert all(
        f"`{name}`" in page
        for name in ("PGPASSFILE", "PROMETHEUS_MULTIPROC_DIR", "SSL_CERT_FILE", "GUNICORN_CMD_ARGS", "https_proxy")
    )
