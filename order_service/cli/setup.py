"""The commands that set up the database and the broker."""

import click

from order_service import process
from order_service.cli.broker import open_channel
from order_service.cli.open_database import requires_database
from order_service.cli.recreate import declare, recreate_queue
from order_service.contract import topology
from order_service.credentials import masked

_RECREATE = """The services work with these queues as they are. To replace them and keep their messages, stop
`python -m consumers` (not for a dead-letter queue), run `python -m order_service topology --recreate`, and start it
again."""


@click.command()
def migrate() -> None:
    """Migrate the database (DATABASE_URL). May be repeated. Exits with 2 if the database cannot be used."""
    from order_service.storage.migrate import upgrade  # alembic takes 0.2 s to import, which other commands save

    url = process.begin().database_url
    with requires_database(url):
        upgrade(url)
    click.echo(f"The database is up to date: {masked(url)}")


@click.command("topology")
@click.option("--recreate", is_flag=True, help="Replace queues that exist with other arguments; keep their messages.")
def declare_topology(recreate: bool) -> None:
    """Declare exchanges and queues (RABBITMQ_URL). May be repeated.

    Exits with 2 if a queue exists with other arguments, or the broker cannot be used.
    """
    settings = process.begin()
    queues = topology.declared_queues(menu_over_http=bool(settings.menu_service_url))
    remedy = (
        "If an exchange exists with another type, stop the publishers, delete it in the management console, and repeat "
        "this command."
    )
    with open_channel(settings, role="topology", remedy=remedy) as channel:
        for queue in queues if recreate else ():
            recreate_queue(channel.connection, queue)
        if problems := declare(channel.connection, queues):
            process.refuse("\n".join([*dict.fromkeys(problems), _RECREATE]))
    click.echo("Declared: " + ", ".join([*topology.EXCHANGES, *(queue.name for queue in queues)]))
