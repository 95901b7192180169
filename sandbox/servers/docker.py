"""RabbitMQ and PostgreSQL from Docker: by its command line for demo and run, by testcontainers in tests.

Without an engine, the image, or a registry to pull it from, Unavailable is raised within a bounded time.
"""

import contextlib
import shutil
import subprocess
import textwrap
import time
import warnings
from collections.abc import Iterator

from sandbox.servers import management, ports
from sandbox.servers.process_group import POLL_SECONDS, succeeds
from sandbox.servers.sources import Say, Unavailable

RABBITMQ_IMAGE = "rabbitmq:4-management"
POSTGRES_IMAGE = "postgres:17"
#: Seconds for pulling an image of about 100 MB. On a slower line, Debian's packages are quicker.
PULL_SECONDS = 180
#: Seconds for a container to be ready.
START_SECONDS = 90

#: The URLs of AMQP and of the management API (None: unreachable).
Urls = tuple[str, str | None]


def require_image(image: str, say: Say) -> None:
    """Pull the image if the engine does not have it. Raises Unavailable if that is not possible."""
    if shutil.which("docker") is None:
        raise Unavailable("Docker is not installed")
    if not succeeds(["docker", "version", "--format", "{{.Server.Version}}"]):
        raise Unavailable("Docker has no running engine (or access is denied)")
    if succeeds(["docker", "image", "inspect", image]):
        return
    say(f"Docker does not have the image {image} yet: pulling it (for {PULL_SECONDS} s at most) ...")
    if not succeeds(["docker", "pull", image], seconds=PULL_SECONDS, quiet=False):
        raise Unavailable(f"Docker could not pull {image} within {PULL_SECONDS} s")


@contextlib.contextmanager
def rabbitmq(name: str, *, keep: bool, say: Say) -> Iterator[tuple[Urls, str]]:
    """RabbitMQ in a container that this machine alone can reach; with `keep`, its volume is kept after the block."""
    require_image(RABBITMQ_IMAGE, say)
    container = f"order-service-{name}"
    amqp, console_port = ports.free_ports(5672, 15672)
    options = ["--name", container, "--hostname", "rabbitmq", "--ulimit", "nofile=8192:8192"]
    options += ["--publish", f"127.0.0.1:{amqp}:5672", "--publish", f"127.0.0.1:{console_port}:15672"]
    options += ["--env", "RABBITMQ_DEFAULT_USER=guest", "--env", "RABBITMQ_DEFAULT_PASS=guest"]
    if keep:
        options += ["--volume", f"{container}:/var/lib/rabbitmq"]
    say(f"Starting {RABBITMQ_IMAGE} with Docker, which takes 10 to 20 seconds ...")
    try:
        _docker("run", "--detach", "--rm", *options, RABBITMQ_IMAGE)
        yield _ready("guest:guest@localhost", amqp, console_port), f"Docker, {RABBITMQ_IMAGE}"
    finally:
        with contextlib.suppress(Unavailable):
            _docker("stop", "--time", "20", container)


def _docker(*arguments: str) -> None:
    done = subprocess.run(["docker", *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)  # noqa: S603, S607
    if done.returncode:
        raise Unavailable(f"`docker {arguments[0]}` failed: {textwrap.shorten(done.stderr[-400:], 300)}")


def _ready(authority: str, amqp_port: int, management_port: int) -> Urls:
    """Both URLs, once the management API responds, which is the last thing to start."""
    management_url = f"http://{authority}:{management_port}"
    deadline = time.monotonic() + START_SECONDS
    while reason := management.refusal(management_url):
        if time.monotonic() > deadline:
            raise Unavailable(f"RabbitMQ in Docker was not ready after {START_SECONDS} s: {reason}")
        time.sleep(POLL_SECONDS)
    return f"amqp://{authority}:{amqp_port}/", management_url


@contextlib.contextmanager
def throwaway_rabbitmq(say: Say) -> Iterator[tuple[Urls, str]]:
    """RabbitMQ in a container of testcontainers (a development requirement), on free ports."""
    with contextlib.ExitStack() as stack:
        with _testcontainers(RABBITMQ_IMAGE, say):
            from testcontainers.community.rabbitmq import RabbitMqContainer

            container = RabbitMqContainer(RABBITMQ_IMAGE, username="guest", password="guest", vhost="/")  # noqa: S106
            stack.enter_context(container.with_exposed_ports(15672))
            exposed = [container.get_exposed_port(port) for port in (5672, 15672)]
        urls = _ready(f"guest:guest@{container.get_container_host_ip()}", *exposed)
        yield urls, f"Docker, {RABBITMQ_IMAGE} by testcontainers"


@contextlib.contextmanager
def throwaway_postgres(say: Say) -> Iterator[tuple[str, str]]:
    """PostgreSQL in a container of testcontainers: the URL of its server, and a description."""
    with contextlib.ExitStack() as stack:
        with _testcontainers(POSTGRES_IMAGE, say):
            from testcontainers.community.postgres import PostgresContainer

            container = PostgresContainer(POSTGRES_IMAGE, username="postgres", password="postgres")  # noqa: S106
            stack.enter_context(container)
            url = container.get_connection_url(driver=None)
        yield url, f"Docker, {POSTGRES_IMAGE} by testcontainers"


@contextlib.contextmanager
def _testcontainers(image: str, say: Say) -> Iterator[None]:
    """Start a container of the image in the block. Errors of testcontainers are raised as Unavailable."""
    require_image(image, say)
    say(f"Starting {image} with testcontainers, which takes about 10 seconds ...")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its deprecation warnings
        try:
            import docker.errors  # type: ignore[import-untyped]

            yield
        except ImportError as error:
            raise Unavailable(f"testcontainers is not installed ({error})") from error
        except (docker.errors.DockerException, OSError, RuntimeError) as error:
            raise Unavailable(f"Docker could not start the container: {textwrap.shorten(str(error), 200)}") from error
