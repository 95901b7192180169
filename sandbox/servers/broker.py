"""Find a RabbitMQ for `make demo`, `make run` and the tests, or start one that stops with the block.

Sources, in this order: the broker at RABBITMQ_URL, or at its default; Docker; a private node of the installed
`rabbitmq-server`, which is installed from Debian's package if need be and permissions allow. A broker that was already
running is never emptied: `fresh_vhost` creates an empty vhost on it.
"""

import contextlib
import logging
import os
import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlsplit, urlunsplit

import pika
from pika.exceptions import AMQPError

from sandbox.servers import apt, management, rabbitmq_node
from sandbox.servers import docker as containers
from sandbox.servers.docker import Urls
from sandbox.servers.management import Management
from sandbox.servers.sources import Say, Source, Unavailable, first_available, print_line
from sandbox.siblings.kit import connection_parameters

DEFAULT_URL = "amqp://guest:guest@localhost:5672/"
#: Seconds for a broker to accept a connection, which takes a few milliseconds.
CONNECT_SECONDS = 5
#: AMQP and management ports that `make run` prefers, so that the defaults of all commands find its broker.
DEFAULT_PORTS = (5672, 15672)

ADVICE = """No RabbitMQ is available. Provide one of these three, then run the same command again:
  1. a broker that is already running:  export RABBITMQ_URL=amqp://user:password@host:5672/
     (with its management plugin; RABBITMQ_MANAGEMENT_URL=http://user:password@host:15672 if that is elsewhere)
  2. Docker:                            a running engine that has, or can pull, the image rabbitmq:4-management
  3. a local rabbitmq-server:           sudo apt-get install rabbitmq-server   (a private node of it is started here)
What was tried:"""


@dataclass(frozen=True)
class Broker:
    """A reachable broker. The URLs include user and password; `how` says what it is and why it was chosen."""

    amqp_url: str
    management_url: str | None
    how: str


@contextlib.contextmanager
def running(
    data_dir: Path,
    *,
    docker: Source[Urls] | None = None,
    docker_only: bool = False,
    needs_management: bool = True,
    keep: bool = False,
    say: Say = print_line,
) -> Iterator[Broker]:
    """A broker for the length of the block. Raises Unavailable, with advice, if there is none.

    `docker` replaces the container. Without `keep`, a broker started here is empty and on free ports; with it, its
    data is kept (in data_dir, or a Docker volume), and it has the default ports if they are free.
    """
    docker = docker or (lambda say: containers.rabbitmq(data_dir.parent.name, keep=keep, say=say))
    sources: list[Source[Urls]] = [
        lambda _: _configured(needs_management=needs_management),
        docker,
        lambda say: _private(data_dir, keep=keep, say=say),
    ]
    with first_available("RabbitMQ", [docker] if docker_only else sources, advice=ADVICE, say=say) as (urls, how):
        yield Broker(*urls, how)


@contextlib.contextmanager
def _configured(*, needs_management: bool) -> Iterator[tuple[Urls, str]]:
    configured = os.environ.get("RABBITMQ_URL")
    refusals = []
    for url in re.split(r"\s*,\s*", configured or DEFAULT_URL):  # of a cluster's addresses, the first reachable one
        name = f"{'RABBITMQ_URL' if configured else 'the default'} {masked(url)}"
        reason = refusal(url)
        if reason is None:
            break
        refusals.append(f"{name}: {reason}")
    else:
        raise Unavailable("; ".join(refusals))
    management_url = management_of(url)
    reason = management.refusal(management_url)
    if reason and needs_management:
        raise Unavailable(
            f"{name} is reachable, but its management API, which creates fresh vhosts, is not ({reason}; "
            "RABBITMQ_MANAGEMENT_URL sets its address)"
        )
    yield (url, None if reason else management_url), name + (" (its management API is unreachable)" if reason else "")


@contextlib.contextmanager
def _private(data_dir: Path, *, keep: bool, say: Say) -> Iterator[tuple[Urls, str]]:
    if rabbitmq_node.script() is None:
        apt.install("rabbitmq-server", say=say)
    ports = rabbitmq_node.free_ports(preferred=DEFAULT_PORTS if keep else (0, 0))
    say("Starting a private RabbitMQ node, which takes 5 to 10 seconds ...")
    with rabbitmq_node.running(data_dir, ports, keep=keep):
        urls = f"amqp://guest:guest@localhost:{ports.amqp}/", f"http://guest:guest@localhost:{ports.management}"
        yield urls, f"a private node on port {ports.amqp}, data in {data_dir}"


def refusal(url: str) -> str | None:
    """Why the broker at this URL cannot be used; None if it accepts a connection."""
    logger = logging.getLogger("pika")
    level = logger.level
    logger.setLevel(logging.CRITICAL)  # it logs each failed attempt as an error
    try:
        parameters = connection_parameters(url)
        parameters.socket_timeout = parameters.stack_timeout = parameters.blocked_connection_timeout = CONNECT_SECONDS
        pika.BlockingConnection(parameters).close()
    except (AMQPError, OSError, ValueError) as error:  # pika raises ValueError for a reset, too
        return f"no broker responds ({_cause(error)})"
    finally:
        logger.setLevel(level)
    return None


def _cause(error: BaseException) -> str:
    """The innermost error, which has the text: pika wraps it in errors without any."""
    while error.args and isinstance(error.args[0], BaseException):
        error = error.args[0]
    inner = getattr(error, "exception", None)
    return _cause(inner) if inner else str(error) or type(error).__name__


def management_of(amqp_url: str) -> str:
    """The URL of the management API: RABBITMQ_MANAGEMENT_URL, or port 15672 with the same host and login."""
    if configured := os.environ.get("RABBITMQ_MANAGEMENT_URL"):
        return configured
    parts = urlsplit(amqp_url)
    login = f"{parts.username or 'guest'}:{parts.password or 'guest'}"
    return f"http://{login}@{parts.hostname or 'localhost'}:15672"


@contextlib.contextmanager
def fresh_vhost(broker: Broker, name: str) -> Iterator[str]:
    """The AMQP URL of an empty vhost, which is deleted after the block. A random suffix makes its name unique."""
    if broker.management_url is None:
        raise Unavailable(f"a fresh vhost needs the management API, which is not reachable ({broker.how})")
    api = Management(broker.management_url)
    vhost = f"{name}-{secrets.token_hex(4)}"
    api.create_vhost(vhost)
    try:
        yield urlunsplit(urlsplit(broker.amqp_url)._replace(path="/" + quote(vhost, safe="")))
    finally:
        api.delete_vhost(vhost)


def masked(url: str) -> str:
    """The URL with its password hidden, for display."""
    # To the last "@": a password may contain what ends an authority, such as "/".
    return re.sub("(password=)[^&]*", r"\1***", re.sub("(://[^:/@]*):.*@", r"\1:***@", url))
