"""A user of the broker for each process, with its own rights, as in production: on any broker that may be administered.

Users belong to the whole broker, which may have some of these names. So each name has the virtual host appended, and
the users are deleted after the block.
"""

import contextlib
import json
import os
import secrets
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

from sandbox.servers.broker import Broker
from sandbox.servers.http_client import RequestFailed
from sandbox.servers.management import Management

PROJECT_DIR = Path(__file__).parents[2]
#: The user of each process of the Procfile that connects to the broker, and of the command that declares the topology.
USERS = {
    "topology": "order-topology", "consumers": "order-service", "publishers": "order-service",
    "menu": "menu-service", "payment": "payment-service",
}  # fmt: skip

#: The definitions for a virtual host and the users' passwords.
Definitions = Callable[[str, Mapping[str, str]], dict[str, Any]]


def from_command(vhost: str, passwords: Mapping[str, str]) -> dict[str, Any]:
    """The definitions that the service's own command prints."""
    command = [sys.executable, "-m", "order_service", "broker", "definitions", "--vhost", vhost]
    variables: dict[str, str] = {}
    for user, password in passwords.items():
        name = f"{user.upper().replace('-', '_')}_PASSWORD"
        variables |= {name: password, f"{name}_FILE": ""}
    done = subprocess.run(  # noqa: S603
        command, cwd=PROJECT_DIR, env=os.environ | variables, capture_output=True, text=True, check=True
    )
    printed: dict[str, Any] = json.loads(done.stdout)
    return printed


@contextlib.contextmanager
def created(
    found: Broker, amqp_url: str, definitions: Definitions = from_command
) -> Iterator[Mapping[str, str] | None]:
    """The URL of each user in the virtual host of `amqp_url`; None if the broker's login may not create users."""
    api = Management(found.management_url) if found.management_url else None
    if api is None or not api.is_administrator():
        yield None
        return
    parts = urlsplit(amqp_url)
    vhost = unquote(parts.path[1:])
    passwords = {user: secrets.token_hex(16) for user in (*dict.fromkeys(USERS.values()), "order-operator")}
    made = definitions(vhost, passwords)
    for user in made["users"]:
        user["name"] = _name(user["name"], vhost)
    for right in (*made["permissions"], *made["topic_permissions"]):
        right["user"] = _name(right["user"], vhost)
    address = parts.netloc.rpartition("@")[2]
    logins = {user: f"{_name(user, vhost)}:{password}@{address}" for user, password in passwords.items()}
    try:
        api.call("POST", "definitions", body=made)
        yield {user: urlunsplit(parts._replace(netloc=login)) for user, login in logins.items()}
    finally:
        for user in passwords:
            with contextlib.suppress(RequestFailed):  # it was not created
                api.call("DELETE", "users", _name(user, vhost))


def _name(user: str, vhost: str) -> str:
    return f"{user}.{vhost}"
