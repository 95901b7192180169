"""The broker connection of a command."""

from collections.abc import Iterator
from contextlib import contextmanager

import click
import pika
from pika.adapters.blocking_connection import BlockingChannel
from pika.exceptions import ChannelClosedByBroker

from order_service.config import Settings
from order_service.contract import topology
from order_service.process import first_line


@contextmanager
def open_channel(settings: Settings, *, name: str, remedy: str) -> Iterator[BlockingChannel]:
    """Open a channel on the broker at RABBITMQ_URL. Raises ClickException if the broker is unreachable.

    If the broker closes the channel, the ClickException also shows `remedy`.
    """
    nodes = topology.connection_parameters(settings.rabbitmq_url, name=name)
    try:
        with pika.BlockingConnection(nodes) as connection:
            yield connection.channel()
    except ChannelClosedByBroker as error:
        raise click.ClickException(f"{error.reply_text}\n{remedy}") from error
    except topology.UNREACHABLE as error:
        raise click.ClickException(
            f"the broker is unreachable: {first_line(error)}\nCheck that it is running and that RABBITMQ_URL is right."
        ) from error
