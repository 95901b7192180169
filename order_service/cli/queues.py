"""What the broker says of its queues: by its management API if that is reachable, else by passive declares."""

import re
from collections.abc import Iterable
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any, cast
from urllib.parse import quote

import httpx2 as httpx
import pika

from order_service.cli.broker import QueueState, by_declaring
from order_service.config import Settings
from order_service.contract import topology
from order_service.process import first_line

#: How long a call of the management API may take, in seconds.
SECONDS = 3
#: The queues of sibling services, as docs/siblings.md names them, where the management API does not tell.
SIBLING_QUEUES = {"menu": "menu-service.orders", "payment": "payment-service.orders"}


class Unavailable(Exception):
    """The management API is unreachable, or refuses the login."""


class Management:
    """The management API, read only."""

    def __init__(self, settings: Settings) -> None:
        broker = pika.URLParameters(settings.rabbitmq_url.split(",")[0])
        default = httpx.URL(scheme="http", host=broker.host, port=15672)
        url = httpx.URL(str(settings.management_url)) if settings.management_url else default
        login = url if url.username else cast(pika.PlainCredentials, broker.credentials)
        # Without the proxies of the environment, which are for the internet.
        self._client = httpx.Client(
            base_url=url.copy_with(userinfo=b""),
            auth=(login.username, login.password),
            transport=httpx.HTTPTransport(limits=httpx.Limits(max_keepalive_connections=0)),
            timeout=SECONDS,
        )
        self.vhost = broker.virtual_host
        #: The broker's time in its last answer, to the second.
        self.broker_time: datetime | None = None

    def get(self, *path: str) -> Any:
        """What the API answers; None if there is no such object. Raises Unavailable."""
        try:
            response = self._client.get("/".join(["api", *(quote(part, safe="") for part in path)]))
            if response.status_code == 404:
                return None
            self.broker_time = parsedate_to_datetime(response.raise_for_status().headers["Date"])
            return response.json()
        except (httpx.HTTPError, ValueError, KeyError) as error:
            raise Unavailable(first_line(error)) from error

    def bound(self, exchange: str, routing_key: str) -> list[str]:
        """The queues that get the messages with this routing key."""
        bindings = self.get("exchanges", self.vhost, exchange, "bindings", "source") or []
        return sorted({each["destination"] for each in bindings if _matches(each["routing_key"], routing_key)})


def _matches(pattern: str, routing_key: str) -> bool:
    regex = re.escape(pattern).replace(r"\*", "[^.]*").replace(r"\#", ".*")
    return bool(re.fullmatch(regex, routing_key))


def by_management(management: Management, name: str) -> QueueState:
    """Raises Unavailable. The figures are up to 5 s old."""
    found = management.get("queues", management.vhost, name)
    if found is None:
        return QueueState(name, exists=False)
    return QueueState(
        name,
        exists=True,
        consumers=found.get("consumers", 0),
        ready=found.get("messages_ready", 0),
        unacked=found.get("messages_unacknowledged", 0),
        acks_per_second=found.get("message_stats", {}).get("ack_details", {}).get("rate", 0.0),
        arguments=found.get("arguments", {}),
    )


def observe(settings: Settings, routing_key: str, sibling: str, own: Iterable[str] = ()) -> list[QueueState]:
    """The sibling's queues for this routing key, and some of our own.

    Raises topology.UNREACHABLE or AccessRefused if neither the management API nor the broker can be asked.
    """
    is_over_http = sibling == "menu" and settings.menu_service_url
    usual = topology.MENU_HTTP.name if is_over_http else SIBLING_QUEUES[sibling]
    try:
        management = Management(settings)
        names = management.bound(topology.EXCHANGE, routing_key) or [usual]
        return [by_management(management, name) for name in (*names, *own)]
    except Unavailable:
        with topology.connected(settings, role="explain") as (connection, _):
            return [by_declaring(connection, name) for name in (usual, *own)]
