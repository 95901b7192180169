"""No process writes a credential to its log, whether its servers are unreachable, refuse it or serve it.

tests/unit/test_config.py does the same with the commands, and test_access.py with tokens in every place of a request.
"""

import base64
import re
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from order_service.contract.broker_rights import USERS
from order_service.storage import migrate
from sandbox.issuer import Issuer
from tests.conftest import VhostManagement
from tests.e2e.deployment import Deployment
from tests.tokens import ISSUER, bearer, published

CANARY = "S3cretCanary"
HTTP = f"http://{CANARY}:{CANARY}%20x@127.0.0.1:1/?token={CANARY}"
#: In every place where a secret can stand; nothing listens there.
SETTINGS = {
    "RABBITMQ_URL": f"amqp://me:{CANARY}%2F@127.0.0.1:1/,amqp://me:{CANARY}@127.0.0.1:2/",
    "USER_SERVICE_URL": HTTP,
    "MENU_SERVICE_URL": HTTP,
    "ORDER_RATE_LIMIT": "9/minute",
    "ORDER_RATE_LIMIT_STORAGE": f"redis://me:{CANARY}@127.0.0.1:1/0",
    "OTEL_EXPORTER_OTLP_HEADERS": f"authorization=Bearer {CANARY}",
    **{user.password_variable: CANARY for user in USERS},
    "LOG_LEVEL": "DEBUG",
}


def test_no_process_logs_a_credential(
    amqp_url: str, postgres_url: str, management: VhostManagement, tmp_path: Path
) -> None:
    # given: servers that refuse this password, and a user with it who has no permission for the vhost
    broker, postgres = urlsplit(amqp_url), urlsplit(postgres_url)
    refused = {
        "DATABASE_URL": f"postgresql://me:{CANARY}@{postgres.hostname}:{postgres.port}{postgres.path}?sslpassword={CANARY}",
        "RABBITMQ_URL": f"amqp://me:{CANARY}@{broker.hostname}:{broker.port}{broker.path}",
    }
    user = f"canary-{management.vhost}"
    management.api.call("PUT", "users", user, body={"password": CANARY, "tags": ""})
    forbidden = {"RABBITMQ_URL": f"amqp://{user}:{CANARY}@{broker.hostname}:{broker.port}{broker.path}"}
    sqlite = f"sqlite:///{tmp_path}/orders.db"
    migrate.upgrade(sqlite)

    with Deployment(amqp_url, sqlite, tmp_path, **SETTINGS) as deployment:
        # when
        waiting = [
            *deployment.start("consumers", "publishers", "menu", "payment"),
            *deployment.start("consumers", DATABASE_URL=refused["DATABASE_URL"]),
            *deployment.start("consumers", RABBITMQ_URL=refused["RABBITMQ_URL"]),
            *deployment.start("consumers", RABBITMQ_URL=forbidden["RABBITMQ_URL"]),
        ]
        [api] = deployment.start("api")
        deployment.wait_until_healthy("api")
        posted = deployment.client.post_order()
        deployment.wait_until(
            lambda: all(re.search("is unreachable|is refused|trying again", each.log) for each in waiting),
            "all to wait",
        )
        commands = [
            deployment.run("env", *(f"{name}={value}" for name, value in settings.items()),
                           "python", "-m", "order_service", command)
            for settings, command in ((refused, "migrate"), (refused, "topology"), (forbidden, "topology"))
        ]  # fmt: skip
        management.api.call("DELETE", "users", user)

    # then
    assert (posted.status, posted.body["code"]) == (503, "user_service_unavailable")
    assert "cannot check the user" in api.log
    assert [each.name for each in deployment.processes if CANARY in each.log] == []
    assert [each.args for each in commands if CANARY in each.stdout + each.stderr or each.returncode != 2] == []


@pytest.mark.field
def test_the_api_logs_no_credential_of_its_issuer_and_none_of_its_callers(tmp_path: Path) -> None:
    # given: an address of the keys with a login and a key in its query, served and unreachable; a private key
    issuer, database_url = Issuer(ISSUER), f"sqlite:///{tmp_path}/orders.db"
    secret = tmp_path / "private.pem"
    secret.write_text(f"-----BEGIN PRIVATE KEY-----\n{CANARY}\n-----END PRIVATE KEY-----\n")
    migrate.upgrade(database_url)
    common = SETTINGS | {"USER_SERVICE_URL": "", "ORDER_AUTH": "jwt", "ORDER_JWT_ISSUER": ISSUER}
    with published(issuer) as keys, Deployment("amqp://127.0.0.1:1", database_url, tmp_path, **common) as deployment:

        def secured(url: str) -> dict[str, str]:
            login = f"//me:{CANARY}@"
            return {"ORDER_JWT_JWKS_URL": f"{url.replace('//', login)}?key={CANARY}&{CANARY}"}

        [invalid] = deployment.start("api", ORDER_JWT_KEY_FILE=str(secret))
        [refused] = deployment.start("api", **secured("http://login.example/jwks.json"))
        assert (invalid.exit_status(), refused.exit_status()) == (2, 2)
        statuses = []
        for url in (keys.url, keys.url.replace(f":{keys.port}", ":1")):
            # when
            deployment.start("api", **secured(url))
            deployment.wait_until_healthy("api")
            credentials = base64.b64encode(f"me:{CANARY}".encode()).decode()
            for headers in (
                bearer(issuer.token("1", "orders", canary=CANARY)),
                bearer(Issuer(ISSUER).token("1", "orders", canary=CANARY)),
                {"Authorization": f"Basic {credentials}"},
                {"Authorization": CANARY, "Cookie": CANARY, "X-Forwarded-For": CANARY},
            ):
                sent = headers | {"Idempotency-Key": CANARY, "Prefer": "respond-async"}
                answer = deployment.client.request("POST", "/orders", {"user_id": 1, "menu_ids": [1]}, headers=sent)
                statuses.append(answer.status)
            deployment.wait_until(lambda: deployment.processes[-1].log.count("access refused") >= 1, "the log")
            deployment.processes[-1].terminate()

    # then
    *_, served, unreachable = deployment.processes
    assert statuses == [202, 401, 401, 401, 503, 503, 401, 401]
    assert ("ORDER_JWT_KEY_FILE" in invalid.log, "ORDER_JWT_JWKS_URL" in refused.log) == (True, True)
    assert "cannot fetch the keys of the issuer" in unreachable.log
    assert "the storage of the rate limit is unreachable" in served.log
    hidden = [CANARY, credentials, *(base64.b64encode(f'"{CANARY}'.encode()[n:]).decode()[:-4] for n in range(3))]
    assert [each.log_file.name for each in deployment.processes if any(text in each.log for text in hidden)] == []
