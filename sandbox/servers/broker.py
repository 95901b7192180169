"""Finds a RabbitMQ for `make demo`, `make run` and the tests, or starts one; what it starts, it stops.

The ways, in this order: the broker at RABBITMQ_URL, or at its default, when it answers; Docker; a private node of the
installed `rabbitmq-server`, which is installed from Debian's package when it is missing and we may. What is taken is
said, with the reason why the ways before it were not. A broker that was found running is used, never emptied: whoever
wants a clean one asks for a fresh vhost.
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

from sandbox.servers import apt, rabbitmq_node
from sandbox.servers.docker import compose_rabbitmq
from sandbox.servers.management import Management, ManagementError
from sandbox.servers.sources import Say, Unavailable, Way, first, say_aloud, told

DEFAULT_URL = "amqp://guest:guest@localhost:5672/"
#: Seconds for a broker to answer a connection. One that is there answers in a few milliseconds.
ANSWER_SECONDS = 5
#: AMQP and management ports that `make run` takes when they are free, so that the commands' defaults find its broker.
WELL_KNOWN_PORTS = (5672, 15672)

THREE_WAYS = """No RabbitMQ can be had. Any one of these three will do, then run the same command again:
  1. a broker that is already running:  export RABBITMQ_URL=amqp://user:password@host:5672/
     (with its management plugin; RABBITMQ_MANAGEMENT_URL=http://user:password@host:15672 if that is elsewhere)
  2. Docker:                            a running engine that has, or can pull, the image rabbitmq:4-management
  3. a local rabbitmq-server:           sudo apt-get install rabbitmq-server   (it is started here, privately)
What was tried:"""


@dataclass(frozen=True)
class Broker:
    """A broker that answers. The URLs carry user and password; `how` says in words what it is and why it was taken."""

    amqp_url: str
    management_url: str | None
    how: str


#: What a way yields: the URLs of AMQP and of the management API, and what it is.
Address = tuple[str, str | None, str]


@contextlib.contextmanager
def running(
    data_dir: Path,
    *,
    docker: Way[Address] | None = None,
    docker_only: bool = False,
    needs_management: bool = True,
    keep: bool = False,
    say: Say = say_aloud,
) -> Iterator[Broker]:
    """A broker for the length of the block; raises Unavailable with the three ways when there is none.

    `docker` is how to use Docker; by default, the compose file. Without `keep`, what is started here starts empty, on
    free ports; with it, its data outlives the block (in data_dir, or a Docker volume), and it takes the well-known
    ports where they are free. A broker found without management API is passed over when `needs_management`.
    """
    docker = docker or (lambda say: compose_rabbitmq(data_dir.parent.name, keep=keep, say=say))
    ways: list[Way[Address]] = [
        lambda say: _found(needs_management=needs_management),
        docker,
        lambda say: _private(data_dir, keep=keep, say=say),
    ]
    with contextlib.ExitStack() as stack:
        address, reasons = first([docker] if docker_only else ways, stack, say=say, message=THREE_WAYS)
        amqp_url, management_url, what = address
        broker = Broker(amqp_url, management_url, told(what, reasons))
        say(f"RabbitMQ: {broker.how}")
        yield broker


@contextlib.contextmanager
def _found(*, needs_management: bool) -> Iterator[Address]:
    configured = os.environ.get("RABBITMQ_URL")
    which = "RABBITMQ_URL" if configured else "the default"
    refusals = []
    for url in re.split(r"\s*,\s*", configured or DEFAULT_URL):  # of a cluster's addresses, the first that answers
        name = f"{which} {masked(url)}"
        if reason := refusal(url):
            refusals.append(f"{name}: {reason}")
        else:
            break
    else:
        raise Unavailable("; ".join(refusals))
    management_url = management_of(url)
    try:
        Management(management_url).call("GET", "whoami")
    except ManagementError as error:
        if needs_management:
            raise Unavailable(
                f"{name} answers, but its management API, which makes the fresh vhosts, does not ({error}; "
                "RABBITMQ_MANAGEMENT_URL says where it is)"
            ) from error
        yield url, None, f"{name}, which answers (its management API does not, so there is no console)"
    else:
        yield url, management_url, f"{name}, which answers"


@contextlib.contextmanager
def _private(data_dir: Path, *, keep: bool, say: Say) -> Iterator[Address]:
    if rabbitmq_node.script() is None:
        apt.install("rabbitmq-server", service="rabbitmq-server", say=say)
    ports = rabbitmq_node.free_ports(preferred=WELL_KNOWN_PORTS if keep else ())
    say("Starting a private RabbitMQ node, which takes 5 to 10 seconds ...")
    with rabbitmq_node.running(data_dir, ports, keep=keep):
        yield (
            f"amqp://guest:guest@localhost:{ports.amqp}/",
            f"http://guest:guest@localhost:{ports.management}",
            f"a private node on port {ports.amqp}, data in {data_dir}",
        )


def refusal(url: str) -> str | None:
    """Why the broker at this URL cannot be used; None when it answers and lets us in."""
    logger = logging.getLogger("pika")
    level = logger.level
    logger.setLevel(logging.CRITICAL)  # it would log each failed attempt as an error; here it is an answer
    try:
        parameters = pika.URLParameters(url)
        parameters.socket_timeout = parameters.stack_timeout = parameters.blocked_connection_timeout = ANSWER_SECONDS
        pika.BlockingConnection(parameters).close()
    except (AMQPError, OSError) as error:
        return f"no broker answers ({_cause(error)})"
    finally:
        logger.setLevel(level)
    return None


def _cause(error: BaseException) -> str:
    """pika wraps what happened in several errors without text of their own: the innermost one tells."""
    while error.args and isinstance(error.args[0], BaseException):
        error = error.args[0]
    inner = getattr(error, "exception", None)
    return _cause(inner) if inner else str(error) or type(error).__name__


def management_of(amqp_url: str) -> str:
    """Where the broker's management API is: RABBITMQ_MANAGEMENT_URL, or port 15672 of the same host and user."""
    if configured := os.environ.get("RABBITMQ_MANAGEMENT_URL"):
        return configured
    parts = urlsplit(amqp_url)
    login = f"{parts.username or 'guest'}:{parts.password or 'guest'}"
    return f"http://{login}@{parts.hostname or 'localhost'}:15672"


@contextlib.contextmanager
def fresh_vhost(broker: Broker, name: str) -> Iterator[str]:
    """The AMQP URL of an empty vhost, which exists for the length of the block.

    The name gets a random end, so that no vhost of somebody else on a shared broker is ever met, let alone deleted.
    """
    if broker.management_url is None:
        raise Unavailable(f"a fresh vhost needs the management API, which is not reachable ({broker.how})")
    management = Management(broker.management_url)
    vhost = f"{name}-{secrets.token_hex(4)}"
    management.create_vhost(vhost)
    try:
        yield urlunsplit(urlsplit(broker.amqp_url)._replace(path="/" + quote(vhost, safe="")))
    finally:
        management.delete_vhost(vhost)


def masked(url: str) -> str:
    """The URL without its password, for showing."""
    password = urlsplit(url).password
    return url.replace(f":{password}@", ":***@") if password else url
