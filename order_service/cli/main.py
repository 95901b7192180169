"""`python -m order_service`: the group that holds every command."""

from typing import Any

import click

from order_service import process
from order_service.cli import documents, events, orders, setup
from order_service.cli.broker_users import broker
from order_service.cli.compensations import compensations
from order_service.cli.database import database, ids
from order_service.cli.dlq import dlq
from order_service.cli.doctor import doctor
from order_service.cli.outbox import outbox
from order_service.cli.siblings import siblings
from order_service.cli.tokens import token


class _Commands(click.Group):
    def main(self, *arguments: Any, **options: Any) -> Any:
        try:
            return super().main(*arguments, **options)
        except OSError as error:  # click has ended the command if its output was closed, as by `| head`
            process.refuse(f"A file or the output cannot be read or written: {error}")


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Set up the Order Service, print its documents, and try its events."""


for command in (
    setup.migrate,
    setup.declare_topology,
    documents.saga,
    documents.settings,
    documents.metrics,
    documents.asyncapi,
    documents.schemas,
    events.events,
    broker,
    doctor,
    orders.explain,
    orders.timeline,
    orders.stuck,
    outbox,
    compensations,
    database,
    dlq,
    ids,
    siblings,
    token,
):
    main.add_command(command)
events.events.add_command(documents.events)
