"""The operator's commands: `python -m order_service ...`. Each may be repeated."""

import click
import pika
import sqlalchemy as sa
from pika.exceptions import ChannelClosedByBroker

from order_service import process as startup
from order_service.cli import events as cli_events
from order_service.cli import pages
from order_service.contract import topology
from order_service.storage import migrate as schema


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Set up and look after the Order Service."""


@main.command()
def migrate() -> None:
    """Bring the database (DATABASE_URL) up to date."""
    url = startup.begin().database_url
    try:
        schema.upgrade(url)
    except sa.exc.SQLAlchemyError as error:
        raise click.ClickException(f"the database cannot be reached: {startup.first_line(error)}") from error
    click.echo(f"The database is up to date: {sa.make_url(url).render_as_string(hide_password=True)}")


@main.command("topology")
def declare() -> None:
    """Declare the exchange and the queues on the broker (RABBITMQ_URL)."""
    settings = startup.begin()
    urls = settings.rabbitmq_url
    queues = (*topology.QUEUES, topology.MENU_HTTP) if settings.menu_service_url else topology.QUEUES
    try:
        with pika.BlockingConnection(topology.connection_parameters(urls, name="order-service topology")) as connection:
            topology.declare(connection.channel(), queues)
    except ChannelClosedByBroker as error:
        raise click.ClickException(
            f"{error.reply_text}\nA queue or exchange stands there with other arguments. Drain it, delete it in the "
            "console, and run this command again."
        ) from error
    except topology.UNREACHABLE as error:
        raise click.ClickException(f"the broker cannot be reached: {startup.first_line(error)}") from error
    click.echo(f"Declared: {topology.EXCHANGE}, " + ", ".join(queue.name for queue in queues))


@main.command()
def saga() -> None:
    """Print docs/saga.md: the decision table and its states."""
    click.echo(pages.saga_page(), nl=False)


@main.command("settings")
def settings_page() -> None:
    """Print docs/settings.md: every environment variable."""
    click.echo(pages.settings_page(), nl=False)


for command in (cli_events.events, cli_events.print_asyncapi, cli_events.write_schemas):
    main.add_command(command)
