"""The broker connection of a command."""

from collections.abc import Iterator
from contextlib import contextmanager

import click
from pika.adapters.blocking_connection import BlockingChannel
from pika.exceptions import ChannelClosedByBroker

from order_service.config import Settings
from order_service.contract import topology
from order_service.process import AccessRefused, first_line


@contextmanager
def open_channel(settings: Settings, *, role: str, remedy: str) -> Iterator[BlockingChannel]:
    """Open a channel on the broker at RABBITMQ_URL. Raises ClickException if the broker is unreachable.

    If the broker closes the channel, the ClickException also shows `remedy`.
    """
    try:
        with topology.connected(settings.rabbitmq_url, role=role) as (connection, _):
            yield connection.channel()
    except ChannelClosedByBroker as error:
        raise click.ClickException(f"{error.reply_text}\n{remedy}") from error
    except AccessRefused as error:
        raise click.ClickException(
            f"access to the broker is refused: {error}\nCheck RABBITMQ_URL and the rights of its user (docs/rights.md)."
        ) from error
    except topology.UNREACHABLE as error:
        raise click.ClickException(
            f"the broker is unreachable: {first_line(error)}\nCheck that it is running and that RABBITMQ_URL is right."
        ) from error
