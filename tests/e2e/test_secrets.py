"""No process writes a credential to its log, whether its servers are unreachable, refuse it or serve it.

tests/unit/test_config.py does the same with the commands.
"""

import re
from pathlib import Path
from urllib.parse import urlsplit

from order_service.storage import migrate
from tests.conftest import VhostManagement
from tests.e2e.deployment import Deployment

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
            *deployment.start("consumers", "publishers", "menu"),
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
    assert [each.args for each in commands if CANARY in each.stdout + each.stderr or each.returncode != 1] == []
