"""The broker's management API, read only. https://www.rabbitmq.com/docs/management#http-api"""

import ssl
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any, cast
from urllib.parse import quote

import httpx2 as httpx
import pika

from order_service.config import Settings
from order_service.process import first_line

#: How long a call may take, in seconds.
SECONDS = 3.0


class Unavailable(Exception):
    """The management API is unreachable, or refuses the login."""


class Management:
    """A client of it at RABBITMQ_MANAGEMENT_URL, else at its usual port on the first node of RABBITMQ_URL.

    With amqps:// that is over HTTPS: the login is not sent in clear unless RABBITMQ_MANAGEMENT_URL says so.
    """

    def __init__(self, settings: Settings, *, seconds: float = SECONDS) -> None:
        broker = pika.URLParameters(settings.rabbitmq_url.split(",")[0])
        scheme, port = ("https", 15671) if broker.ssl_options else ("http", 15672)
        default = httpx.URL(scheme=scheme, host=broker.host, port=port)
        url = httpx.URL(str(settings.management_url)) if settings.management_url else default
        #: Its address, without a login.
        self.url = url.copy_with(userinfo=b"")
        login = url if url.username else cast(pika.PlainCredentials, broker.credentials)
        # Without the proxies of the environment, which are for the internet.
        self._client = httpx.Client(
            base_url=self.url,
            auth=(login.username, login.password),
            transport=httpx.HTTPTransport(verify=_trusted(settings), limits=httpx.Limits(max_keepalive_connections=0)),
            timeout=seconds,
        )
        self.vhost = broker.virtual_host
        #: The broker's time in its last answer, to the second.
        self.broker_time: datetime | None = None

    def get(self, *path: str, **query: str) -> Any:
        """What the API answers; None if there is no such object. Raises Unavailable."""
        try:
            response = self._client.get("/".join(["api", *(quote(part, safe="") for part in path)]), params=query)
            if response.status_code == 404:
                return None
            self.broker_time = parsedate_to_datetime(response.raise_for_status().headers["Date"])
            return response.json()
        except (httpx.HTTPError, ValueError, KeyError) as error:
            raise Unavailable(first_line(error)) from error

    def queues(self, *columns: str) -> Mapping[str, Mapping[str, Any]]:
        """These properties of each queue of the virtual host, by its name. Raises Unavailable, also if it has none."""
        found = self.get("queues", self.vhost, columns=",".join(("name", *columns)))
        if not isinstance(found, list) or not found:
            raise Unavailable(f"it names no queue of the virtual host {self.vhost}")
        return {each["name"]: each for each in found if "name" in each}

    def bound(self, exchange: str, routing_key: str) -> list[str]:
        """The queues that get the messages with this routing key. Raises Unavailable."""
        bindings = self.get("exchanges", self.vhost, exchange, "bindings", "source") or []
        return sorted({each["destination"] for each in bindings if _matches(each["routing_key"], routing_key)})


def _trusted(settings: Settings) -> ssl.SSLContext:
    """Trusts the CAs of the system, and those of RABBITMQ_CA_FILE."""
    context = ssl.create_default_context()
    if settings.rabbitmq_ca_file:
        with suppress(OSError):  # The connection to the broker names a file that cannot be used.
            context.load_verify_locations(settings.rabbitmq_ca_file)
    return context


def _matches(pattern: str, routing_key: str) -> bool:
    """Whether a topic exchange routes this key by a binding with this pattern.

    Without a regular expression, whose time could be exponential: a sibling chooses its binding keys.
    """
    words = routing_key.split(".")
    #: How many words the part of the pattern that was looked at can stand for.
    lengths = {0}
    for part in pattern.split("."):
        if part == "#":
            lengths = set(range(min(lengths), len(words) + 1))
        else:
            lengths = {n + 1 for n in lengths if n < len(words) and part in ("*", words[n])}
        if not lengths:
            return False
    return len(words) in lengths
