"""The API with tokens as an operator runs it: what it refuses at its start, what it logs, and the documented commands."""

import json
import re
import shlex
import socket
from pathlib import Path

import pytest

from order_service.storage import migrate
from sandbox.issuer import Issuer, development_key
from tests.e2e.deployment import ON_SQLITE, Deployment, api_alone
from tests.e2e.process import PROCFILE, PROJECT_DIR
from tests.tokens import ISSUER, Published, bearer, published, segment

CANARY = "S3cretCanary"
PYTHON = "python api.py"


def tokens_of(keys: Published) -> dict[str, str]:
    """The environment with which the API trusts this issuer."""
    return {f"ORDER_{name.upper()}": value for name, value in keys.settings.items()}


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (
            {"HOST": "0.0.0.0"},
            "ORDER_AUTH: must be jwt (requests need a token) or none (everyone may do everything), because HOST is not "
            "a loopback address",
        ),
        (
            {"ORDER_AUTH": "jwt", "ORDER_JWT_ISSUER": "i", "ORDER_JWT_KEY_FILE": "none.pem"},
            "ORDER_JWT_KEY_FILE: must name a file with a public key (PEM) or a JWKS: [Errno 2] No such file or "
            "directory: 'none.pem'",
        ),
    ],
    ids=["no decision", "no key"],
)
@ON_SQLITE
def test_api_that_would_be_open_or_closed_by_mistake_does_not_start(
    deployment: Deployment, settings: dict[str, str], line: str
) -> None:
    migrate.upgrade(deployment.database_url)
    started = [*deployment.start("api", **settings), deployment.start_command("development", PYTHON, **settings)]

    assert [each.exit_status() for each in started] == [2, 2]
    # A message and no traceback. gunicorn has begun to log, so its message is not the only line.
    assert [(each.log.count(line), each.log.count("Traceback")) for each in started] == [(1, 0)] * 2, started[0].log


#: Has a command inherit a listener, as systemd does.
INHERITING = """
import os, socket, sys
listener = socket.create_server(("", 0))
os.dup2(listener.fileno(), 3)
os.set_inheritable(3, True)
os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()))
os.execvp("sh", ["sh", "-c", "exec " + sys.argv[1]])
"""


@ON_SQLITE
@pytest.mark.parametrize(
    "is_inherited", [False, pytest.param(True, marks=pytest.mark.field)], ids=["bound by gunicorn", "inherited"]
)
def test_api_that_would_be_open_elsewhere_than_on_host_does_not_start(
    deployment: Deployment, is_inherited: bool
) -> None:
    migrate.upgrade(deployment.database_url)
    command, options = PROCFILE["api"], f"--bind 0.0.0.0:{deployment.ports['api']}"
    if is_inherited:
        command, options = shlex.join(["python", "-c", INHERITING, command]), ""

    started = deployment.start_command("api", command, GUNICORN_CMD_ARGS=options)

    assert started.exit_status() == 2
    line = "because gunicorn listens on 0.0.0.0, which is not a loopback address"
    assert started.log.count(line) == 1, started.log


def raw(deployment: Deployment, *lines: str) -> bytes:
    """Send a request with these lines in its head; the first bytes of the response."""
    with socket.create_connection(("127.0.0.1", deployment.ports["api"]), timeout=30) as connection:
        connection.sendall("\r\n".join([*lines, "Connection: close", "", ""]).encode("latin-1"))
        return connection.recv(4096)


@pytest.mark.parametrize("command", ["gunicorn", "development server"])
def test_no_token_is_logged_wherever_it_is_sent(command: str, tmp_path: Path) -> None:
    # given
    issuer, url = Issuer(ISSUER), f"sqlite:///{tmp_path}/orders.db"
    with published(issuer) as keys, Deployment("amqp://127.0.0.1:1", url, tmp_path, USER_SERVICE_URL="") as deployment:
        migrate.upgrade(url)
        settings = tokens_of(keys) | {"LOG_LEVEL": "DEBUG"}
        if command == "gunicorn":
            [api] = deployment.start("api", **settings)
        else:
            api = deployment.start_command("development", PYTHON, **settings)
        deployment.wait_until_healthy("api")
        good, forged = issuer.token("1", "orders", canary=CANARY), Issuer(ISSUER).token("1", "orders", canary=CANARY)
        expired, till = issuer.token("1", "orders", seconds=-60), issuer.token("till", "orders:all")
        sent = [good, forged, expired, till, CANARY]

        # when
        host = "Host: localhost"
        for token in sent:
            answers = [
                raw(deployment, "GET /orders HTTP/1.1", host, f"Authorization: Bearer {token}"),
                raw(deployment, "GET /orders HTTP/1.1", host, *[f"Authorization: Bearer {token}"] * 2),
                raw(deployment, "GET /orders HTTP/1.1", host, f"Authorization : Bearer {token}"),
                raw(deployment, "GET /orders HTTP/1.1", host, f"Authorization: Bearer {token}\xff\x01"),
                raw(deployment, "GET /orders HTTP/1.1", host, f"Bearer {token}"),
                raw(deployment, f"GET /orders?access_token={token} HTTP/1.1", host),
                raw(deployment, f"GET /healthz?access_token={token} HTTP/1.1", host),
                raw(deployment, f"GET /orders?token={token} HTTP/1.1", host, f"Authorization: Bearer {good}"),
                raw(deployment, f"DELETE /orders/1?access_token={token} HTTP/1.1", host),
                raw(deployment, "GET /orders HTTP/1.1", host, f"Authorization: Basic {token}"),
                raw(deployment, "PUT /orders/1/payment HTTP/1.1", host, f"Authorization: Bearer {token}"),
                raw(deployment, f"GET /orders?access_token={token}", host),
            ]
            assert all(answers)
        deployment.client.request("DELETE", "/orders/1", headers=bearer(till))
        deployment.wait_until(lambda: "privileged request" in api.log, "the last request to be logged")

        # then
        log = api.log
        parts = {part for token in sent for part in token.split(".")[1:]} | {segment(CANARY.encode()), CANARY}
        assert [part for part in parts if part in log] == []
        assert log.count("access refused") > 5
        assert '"reason":"expired"' in log


def test_refused_and_privileged_requests_are_logged_at_every_level(tmp_path: Path) -> None:
    issuer = Issuer(ISSUER)
    with published(issuer) as keys:
        settings = tokens_of(keys) | {"LOG_LEVEL": "ERROR"}
        with api_alone(f"sqlite:///{tmp_path}/orders.db", tmp_path, **settings) as deployment:
            [api] = deployment.processes
            deployment.client.request("GET", "/orders/7")
            till = bearer(issuer.token("till-3", "orders:all"))
            deployment.client.request("DELETE", "/orders/7", headers=till | {"X-Request-ID": "r-1"})
            lines = deployment.wait_until(
                lambda: [line for line in api.log.splitlines() if "order_service.audit" in line][1:] and api.log,
                "both lines",
            )

    refused, privileged = [json.loads(line) for line in lines.splitlines() if "audit" in line]
    of_audit = {"address": "127.0.0.1", "level": "info", "logger": "order_service.audit", "order_id": 7}
    assert refused.pop("request_id")
    assert refused.pop("timestamp") < privileged.pop("timestamp")
    assert refused == of_audit | {
        "event": "access refused", "code": "token_required", "operation": "getOrder", "subject": None
    }  # fmt: skip
    assert privileged == of_audit | {
        "event": "privileged request", "operation": "cancelOrder", "request_id": "r-1", "status": 404, "subject": "till-3"
    }  # fmt: skip


def documented() -> list[str]:
    """The commands of docs/rest.md that sign and send a token."""
    blocks = re.findall(r"^```sh\n(.*?)^```", (PROJECT_DIR / "docs/rest.md").read_text(), re.MULTILINE | re.DOTALL)
    [block] = [block for block in blocks if "order_service token" in block]
    return [re.sub(" +# .*", "", line) for line in block.splitlines()]


def test_commands_of_the_documentation_sign_a_token_that_is_accepted(tmp_path: Path) -> None:
    # given: what `make run AUTH=jwt` sets; tests/e2e/test_run.py runs it
    run, *commands = documented()
    assert run == "make run AUTH=jwt"
    key = development_key(PROJECT_DIR / "var")
    settings = {"ORDER_AUTH": "jwt", "ORDER_JWT_KEY_FILE": str(key), "ORDER_JWT_ISSUER": "development"}
    with api_alone(f"sqlite:///{tmp_path}/orders.db", tmp_path, **settings) as deployment:
        # when
        script = "\n".join(commands).replace(".venv/bin/", "").replace(":5003", f":{deployment.ports['api']}")
        done = deployment.run("bash", "-euc", script.replace("curl ", "curl --no-progress-meter --fail "))

    # then
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"orders": [], "next_cursor": None}


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--sub", "1", "--scope", "orders", "--key", "none.pem"], "There is no key none.pem: `make run AUTH=jwt`"),
        (["--sub", "1", "--scope", "orders", "--key", "api.py"], "--key: api.py must have a private key for ES256"),
        (["--sub", "1", "--scope", "orders", "--expires", "soon"], "'soon' must be a number and s, m, h or d"),
        (["--sub", "1"], "Missing option '--scope'"),
    ],
)
def test_token_that_cannot_be_signed_is_refused_with_the_remedy(
    deployment_on_nothing: Deployment, arguments: list[str], problem: str
) -> None:
    done = deployment_on_nothing.command("token", *arguments)

    assert (done.returncode, done.stdout) == (2, "")
    assert problem in done.stderr


@pytest.fixture
def deployment_on_nothing(tmp_path: Path) -> Deployment:
    return Deployment("amqp://127.0.0.1:1", f"sqlite:///{tmp_path}/orders.db", tmp_path)
