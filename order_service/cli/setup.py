"""The commands that set up the database and the broker."""

import click
import sqlalchemy as sa

from order_service import process
from order_service.cli.broker import open_channel
from order_service.config import masked
from order_service.contract import topology
from order_service.storage import migrate as migrations


@click.command()
def migrate() -> None:
    """Migrate the database (DATABASE_URL). May be repeated."""
    url = process.begin().database_url
    try:
        migrations.upgrade(url)
    except sa.exc.SQLAlchemyError as error:
        raise click.ClickException(f"the database is unreachable: {process.first_line(error)}") from error
    click.echo(f"The database is up to date: {masked(url)}")


@click.command("topology")
def declare_topology() -> None:
    """Declare exchange and queues (RABBITMQ_URL). May be repeated."""
    settings = process.begin()
    queues = (*topology.QUEUES, topology.MENU_HTTP) if settings.menu_service_url else topology.QUEUES
    remedy = (
        "If the exchange or a queue exists with different arguments, drain it, delete it in the management console and "
        "repeat this command."
    )
    with open_channel(settings, name="order-service topology", remedy=remedy) as channel:
        topology.declare(channel, queues)
    click.echo(f"Declared: {topology.EXCHANGE}, " + ", ".join(queue.name for queue in queues))
