"""The commands around the contract: documents to print, and events to try by hand."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4

import click
import pika
from pika.adapters.blocking_connection import BlockingChannel
from pika.exceptions import AMQPError, ChannelClosedByBroker, NackError, UnroutableError
from pika.spec import Basic, BasicProperties
from pydantic import ValidationError

from order_service import process as startup
from order_service.contract import asyncapi, samples, topology
from order_service.contract import event_tables as event_pages
from order_service.contract.compatibility import breaking_changes
from order_service.contract.envelope import CONTENT_TYPE, Delivery, Unreadable, read, utc_text
from order_service.contract.events import EVENTS, INCOMING, OUTGOING, exact_decimal
from order_service.contract.schemas import data_schema

#: How soon Ctrl-C ends the watch, in seconds.
STOP_LOOK_SECONDS = 0.5
_BY_ROUTING_KEY = {model.routing_key: name for name, model in EVENTS.items()}
_FILE = click.argument("file", type=click.File("rb"))
_TYPE = click.option("--type", "named", type=click.Choice(list(EVENTS)), help="What bare data is.")
_KEY = click.option("--routing-key", type=click.Choice(list(_BY_ROUTING_KEY)), help="The same, by its routing key.")


@click.command("asyncapi")
def print_asyncapi() -> None:
    """Print the AsyncAPI document."""
    click.echo(json.dumps(asyncapi.document(), indent=2, ensure_ascii=False))


@click.command("schemas")
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False))
def write_schemas(directory: Path) -> None:
    """Write the JSON Schema of every event into DIRECTORY, unless that would break a sibling."""
    directory.mkdir(parents=True, exist_ok=True)
    made = {directory / f"{name}.json": data_schema(name) for name in EVENTS}
    broken = []
    for path, schema in made.items():
        if path.exists():
            old = json.loads(path.read_text(encoding="utf-8"))
            changes = breaking_changes(old, schema, incoming=path.stem in INCOMING)
            broken += [f"{path.stem} {change}" for change in changes]
    if broken:
        raise click.ClickException(
            "nothing written, for siblings rely on what is there:\n  " + "\n  ".join(broken) + "\n"
            "Take the change back, or raise SCHEMA_VERSION in order_service/contract/envelope.py and tell the siblings."
        )
    for path, schema in made.items():
        path.write_text(json.dumps(schema, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    click.echo(f"{len(made)} schemas are in {directory}")


@click.group()
def events() -> None:
    """Try the contract by hand: print, check, publish and watch events."""


@events.command()
def page() -> None:
    """Print docs/events.md."""
    click.echo(event_pages.events_page(), nl=False)


@events.command()
@click.argument("event_type", metavar="TYPE", type=click.Choice(list(EVENTS), case_sensitive=False))
@click.option("--order", "order_id", type=click.IntRange(1, 2**31 - 1), default=7, help="The order it is about.")
def sample(event_type: str, order_id: int) -> None:
    """Print a whole event of this TYPE, with a fresh id."""
    event = samples.event(event_type, id=str(uuid4()), at=utc_text(startup.utc_now()), order_id=order_id)
    click.echo(json.dumps(event, indent=2, ensure_ascii=False))


@events.command()
@_FILE
@_TYPE
@_KEY
def validate(file: BinaryIO, named: str | None, routing_key: str | None) -> None:
    """Say OK, or what is wrong with each field of the event in FILE (- reads standard input)."""
    body = file.read()
    click.echo(f"OK: {_checked(body, named or _BY_ROUTING_KEY.get(routing_key or ''))}")


@events.command()
@_FILE
@_TYPE
@_KEY
@click.option("--unchecked", is_flag=True, help="Publish it although it is not valid; needs --routing-key.")
def publish(file: BinaryIO, named: str | None, routing_key: str | None, unchecked: bool) -> None:
    """Publish the event in FILE (- reads standard input), confirmed, under the routing key of its type."""
    body, named = file.read(), named or _BY_ROUTING_KEY.get(routing_key or "")
    if unchecked and not routing_key:
        raise click.UsageError("--unchecked needs --routing-key, for nothing in the file is believed")
    event_type = str(named) if unchecked else _checked(body, named)
    key = routing_key or EVENTS[event_type].routing_key
    properties = _properties(body, event_type)
    with _channel() as channel:
        channel.confirm_delivery()
        try:
            channel.basic_publish(topology.EXCHANGE, key, body, properties, mandatory=True)
        except UnroutableError:
            raise click.ClickException(
                f"no queue is bound to {key}, so nobody got it. What comes in needs "
                "`python -m order_service topology`; what goes out needs the sibling's own queue."
            ) from None
        except NackError:
            raise click.ClickException("the broker refused it; look at its alarms and queues, then try again") from None
    click.echo(f"Published to {topology.EXCHANGE} as {key}, id {properties.message_id}")


@events.command()
def tail() -> None:
    """Print one line for each event on the exchange, from now on, until Ctrl-C."""

    def show(_: BlockingChannel, deliver: Basic.Deliver, __: BasicProperties, body: bytes) -> None:
        click.echo(_line(deliver.routing_key or "", body))

    with _channel() as channel:
        queue = channel.queue_declare("", exclusive=True).method.queue
        channel.queue_bind(queue, topology.EXCHANGE, "#")
        channel.basic_consume(queue, show, auto_ack=True, exclusive=True)
        # By a flag: a KeyboardInterrupt that meets the wrong moment of the interpreter is only printed.
        stop = startup.stop_on_signal()
        click.echo(f"Watching {topology.EXCHANGE}; Ctrl-C ends it", err=True)
        while channel.consumer_tags:
            channel.connection.process_data_events(time_limit=STOP_LOOK_SECONDS)
            if stop.is_set():
                return
    raise click.ClickException("the broker ended the watch; run the command again")


def _checked(body: bytes, named: str | None) -> str:
    """The type of a valid event, enveloped or bare. Raises ClickException with one line for each wrong field."""
    try:
        return read(Delivery("", "", body, {"type": named} if named else {})).type
    except Unreadable as error:
        why = error
    problems = [(each.field, each.problem) for each in why.errors]
    if why.code == "unknown_type" and why.type in OUTGOING:
        # The reader knows only what comes in, but it has found an object and its type.
        document = json.loads(body, parse_float=exact_decimal)
        try:
            OUTGOING[why.type].model_validate(document["data"] if "specversion" in document else document)
            return why.type
        except ValidationError as error:
            problems = [(".".join(["data", *map(str, each["loc"])]), each["msg"]) for each in error.errors()]
    lines = "".join(f"\n  {field}: {problem}" for field, problem in problems)
    hint = "" if why.type else "\nIf it is the bare data of an event, name its type with --type."
    raise click.ClickException(f"this is no valid {why.type or 'event'}:{lines}{hint}")


def _properties(body: bytes, event_type: str) -> BasicProperties:
    """What makes the message readable in the broker's console."""
    try:
        document = json.loads(body)
    except ValueError:
        document = None
    event: dict[str, Any] = document if isinstance(document, dict) else {}
    enveloped = "specversion" in event
    data = event.get("data") if enveloped else event
    order_id = data.get("order_id") if isinstance(data, dict) else None
    return BasicProperties(
        type=event_type,
        message_id=str(event.get("id") if enveloped else uuid4()),
        correlation_id=None if order_id is None else str(order_id)[:255],
        app_id="order-service events",
        timestamp=int(time.time()),
        content_type=CONTENT_TYPE if enveloped else "application/json",
        delivery_mode=2,
        headers={"traceparent": str(event["traceparent"])} if "traceparent" in event else None,
    )


def _line(routing_key: str, body: bytes) -> str:
    """Time, type, order and the short fields of an event; whatever it is, it never raises."""
    now = datetime.now(UTC).strftime("%H:%M:%S")
    try:
        document = json.loads(body)
        data = document["data"] if "specversion" in document else document
        shown = " ".join(f"{name}={json.dumps(value)[:60]}" for name, value in data.items() if name != "order_id")
        order_id = data.get("order_id")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        order_id, shown = None, f"not an event: {body[:60]!r}"
    name = _BY_ROUTING_KEY.get(routing_key, ascii(routing_key))
    return f"{now}  {click.style(f'{name:<22}', bold=True)} order {ascii(order_id)[:12]:<6} {shown}"


@contextmanager
def _channel() -> Iterator[BlockingChannel]:
    """A channel on the broker (RABBITMQ_URL), where the exchange stands. Raises ClickException saying what to do."""
    nodes = topology.connection_parameters(startup.begin().rabbitmq_url, name="order-service events")
    try:
        with pika.BlockingConnection(nodes) as connection:
            channel = connection.channel()
            channel.exchange_declare(topology.EXCHANGE, passive=True)
            yield channel
    except ChannelClosedByBroker as error:
        raise click.ClickException(
            f"{error.reply_text}\nRun `python -m order_service topology` first, or ask for the missing permission."
        ) from error
    except (AMQPError, OSError) as error:
        raise click.ClickException(
            f"the broker cannot be reached: {startup.first_line(error)}\nIs it running, and does RABBITMQ_URL name it?"
        ) from error
