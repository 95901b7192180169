"""The commands that print the broker's users, their rights, and the file that creates them."""

import json

import click

from order_service import process
from order_service.contract import topology
from order_service.contract.broker_rights import USERS, definitions
from order_service.contract.event_tables import table
from order_service.credentials import secret


@click.group()
def broker() -> None:
    """Give each process and each sibling service its own user of the broker."""


@broker.command("definitions")
@click.option("--vhost", default="/", show_default=True, help="The virtual host for all of it.")
def print_definitions(vhost: str) -> None:
    """Print RabbitMQ's definitions: topology, users, rights.

    The passwords are read from ORDER_SERVICE_PASSWORD, ORDER_TOPOLOGY_PASSWORD, MENU_SERVICE_PASSWORD,
    PAYMENT_SERVICE_PASSWORD and ORDER_OPERATOR_PASSWORD, or from the files that the variables with _FILE appended name.
    Only their salted hashes are printed.
    """
    queues = topology.declared_queues(menu_over_http=bool(process.begin().menu_service_url))
    click.echo(json.dumps(definitions(_passwords(), vhost=vhost, queues=queues), indent=2))


@broker.command()
def rights() -> None:
    """Print the table of users and rights in docs/rights.md."""
    click.echo(rights_table(), nl=False)


def _passwords() -> dict[str, str]:
    """The password of each user. Exits with 2, naming every variable without one."""
    passwords, problems = {}, []
    for user in USERS:
        try:
            passwords[user.name] = secret(user.password_variable)
        except ValueError as error:
            problems.append(f"{user.password_variable}: {error}")
    if problems:
        process.refuse("\n".join(problems))
    return passwords


def rights_table() -> str:
    """Users and rights, in Markdown."""
    rows = []
    for user in USERS:
        topics = [f"{exchange}: write {write}, read {read}" for exchange, (write, read) in user.topics.items()]
        rights = [user.configure, user.write, user.read]
        rows.append([f"`{user.name}`", *map(_code, rights), *(_code(", ".join(each)) for each in (topics, user.tags))])
    return table(["user", "configure", "write", "read", "routing keys", "tags"], rows)


def _code(text: str) -> str:
    # A bar would end the cell.
    escaped = text.replace("|", r"\|")
    return f"`{escaped}`" if text else ""
