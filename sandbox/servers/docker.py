"""RabbitMQ and PostgreSQL from Docker: with the project's compose file for demo and run, with testcontainers in tests.

An engine without the image, and without a registry to pull it from, is common: then this raises Unavailable in good
time, and the caller goes on to the next way.
"""

import contextlib
import os
import shutil
import subprocess
import textwrap
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

from sandbox.servers import management, process_group, rabbitmq_node
from sandbox.servers.sources import Say, Unavailable

RABBITMQ_IMAGE = "rabbitmq:4-management"
POSTGRES_IMAGE = "postgres:17"
#: Seconds for a question to the engine; one that takes longer is of no use.
ENGINE_SECONDS = 15
#: Seconds for pulling an image of about 100 MB; Debian's packages are the faster way on a slower line.
PULL_SECONDS = 180
#: Seconds for a container to come up.
START_SECONDS = 90

PROJECT_DIR = Path(__file__).parents[2]


def require_image(image: str, say: Say) -> None:
    """Make sure that an engine runs and has the image, pulling it if need be. Raises Unavailable otherwise."""
    docker = shutil.which("docker")
    if docker is None:
        raise Unavailable("Docker is not installed")
    if _fails([docker, "version", "--format", "{{.Server.Version}}"]):
        raise Unavailable("Docker has no running engine (or we may not use it)")
    if not _fails([docker, "image", "inspect", image]):
        return
    say(f"Docker has no image {image} yet: pulling it (for {PULL_SECONDS} s at most) ...")
    try:
        pulled = subprocess.run([docker, "pull", image], timeout=PULL_SECONDS, check=False)  # noqa: S603
    except subprocess.TimeoutExpired:
        raise Unavailable(f"Docker could not pull {image} within {PULL_SECONDS} s") from None
    if pulled.returncode:
        raise Unavailable(f"Docker could not pull {image}")


def _fails(command: list[str]) -> bool:
    try:
        return subprocess.run(command, capture_output=True, timeout=ENGINE_SECONDS, check=False).returncode != 0  # noqa: S603
    except subprocess.TimeoutExpired:
        return True


def compose_command() -> list[str]:
    """`docker compose`, or the older `docker-compose`. Raises Unavailable when there is neither."""
    docker, classic = shutil.which("docker"), shutil.which("docker-compose")
    if docker and not _fails([docker, "compose", "version"]):
        return [docker, "compose"]
    if classic:
        return [classic]
    raise Unavailable("Docker is there, but neither `docker compose` nor `docker-compose`")


@contextlib.contextmanager
def compose_rabbitmq(name: str, *, keep: bool, say: Say) -> Iterator[tuple[str, str, str]]:
    """The compose file's RabbitMQ, as a compose project of its own; its volume outlives the block if `keep`."""
    require_image(RABBITMQ_IMAGE, say)
    compose = [*compose_command(), "--project-name", f"order-service-{name}", "--file", "docker-compose.yml"]
    ports = rabbitmq_node.free_ports(preferred=(5672, 15672))
    user = os.environ.get("RABBITMQ_USER", "order_service")
    password = os.environ.get("RABBITMQ_PASSWORD", "order_service")
    env = {**os.environ, "RABBITMQ_PORT": str(ports.amqp), "RABBITMQ_CONSOLE_PORT": str(ports.management)}
    say(f"Starting RabbitMQ with `{' '.join(compose)} up`, which takes 10 to 20 seconds ...")
    try:
        _compose([*compose, "up", "--detach", "rabbitmq"], env)
        console = f"http://{user}:{password}@localhost:{ports.management}"
        _wait_management(console)
        yield f"amqp://{user}:{password}@localhost:{ports.amqp}/", console, f"Docker, {RABBITMQ_IMAGE} by compose"
    finally:
        with contextlib.suppress(Unavailable):
            _compose([*compose, "down", "--timeout", "20", *([] if keep else ["--volumes"])], env)


def _compose(command: list[str], env: dict[str, str]) -> None:
    """Run one compose command; its chatter is shown only when it fails."""
    done = subprocess.run(  # noqa: S603
        command, cwd=PROJECT_DIR, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise Unavailable(f"`{' '.join(command)}` failed: {textwrap.shorten(done.stderr[-400:], 300)}")


def _wait_management(url: str) -> None:
    """Return once the management API answers, which it does last of all. Raises Unavailable after START_SECONDS."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            management.Management(url).call("GET", "whoami")
        except management.ManagementError as error:
            if time.monotonic() > deadline:
                raise Unavailable(f"RabbitMQ in Docker was not ready after {START_SECONDS} s: {error}") from error
            time.sleep(process_group.POLL_SECONDS)
        else:
            return


@contextlib.contextmanager
def throwaway_rabbitmq(say: Say) -> Iterator[tuple[str, str, str]]:
    """RabbitMQ in a container of testcontainers (a development requirement), on free ports."""
    require_image(RABBITMQ_IMAGE, say)
    say(f"Starting {RABBITMQ_IMAGE} with testcontainers, which takes about 10 seconds ...")
    with contextlib.ExitStack() as stack:
        with _translated():
            from testcontainers.community.rabbitmq import RabbitMqContainer

            container = RabbitMqContainer(RABBITMQ_IMAGE, username="guest", password="guest", vhost="/")  # noqa: S106
            stack.enter_context(container.with_exposed_ports(15672))
            address = container.get_container_host_ip()
            amqp, console = container.get_exposed_port(5672), container.get_exposed_port(15672)
        _wait_management(f"http://guest:guest@{address}:{console}")
        yield (
            f"amqp://guest:guest@{address}:{amqp}/",
            f"http://guest:guest@{address}:{console}",
            f"Docker, {RABBITMQ_IMAGE} by testcontainers",
        )


@contextlib.contextmanager
def throwaway_postgres(say: Say) -> Iterator[str]:
    """PostgreSQL in a container of testcontainers: the URL of its server."""
    require_image(POSTGRES_IMAGE, say)
    say(f"Starting {POSTGRES_IMAGE} with testcontainers, which takes about 5 seconds ...")
    with contextlib.ExitStack() as stack:
        with _translated():
            from testcontainers.community.postgres import PostgresContainer

            container = PostgresContainer(POSTGRES_IMAGE, username="postgres", password="postgres")  # noqa: S106
            stack.enter_context(container)
            url = container.get_connection_url(driver=None)
        yield url


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """testcontainers' errors as Unavailable, and its deprecation warnings, which are not ours, unheard."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            import docker.errors  # type: ignore[import-untyped]

            yield
        except ImportError as error:
            raise Unavailable(f"testcontainers is not installed ({error})") from error
        except (docker.errors.DockerException, OSError, RuntimeError) as error:
            reason = textwrap.shorten(str(error), 200)
            raise Unavailable(f"Docker could not start the container: {reason}") from error
