"""The commands to create, validate, publish and watch events by hand."""

import json
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from itertools import islice
from typing import BinaryIO
from uuid import uuid4

import click
from pika.adapters.blocking_connection import BlockingChannel
from pika.exceptions import NackError, UnroutableError
from pika.spec import Basic, BasicProperties
from pydantic import ValidationError

from order_service import process
from order_service.cli.broker import event_properties, open_channel
from order_service.contract import samples
from order_service.contract.envelope import Delivery, Rejection, read, utc_text
from order_service.contract.events import EVENTS, MAX_ID, OUTGOING, event_json
from order_service.contract.topology import EXCHANGE, published_on

#: The longest time until `tail` stops after Ctrl-C, in seconds.
STOP_CHECK_SECONDS = 0.5
#: The most fields of an event in a line; no event of ours has more.
MOST_FIELDS = 20
_TYPE_BY_ROUTING_KEY = {model.routing_key: name for name, model in EVENTS.items()}
#: The exchanges to which events are published, this service's first.
_EXCHANGES = list(dict.fromkeys([EXCHANGE, *map(published_on, EVENTS)]))
_FILE = click.argument("file", type=click.File("rb"))
_TYPE = click.option("--type", "event_type", type=click.Choice(list(EVENTS)), help="The event type of bare data.")
_KEY = click.option(
    "--routing-key", type=click.Choice(list(_TYPE_BY_ROUTING_KEY)), help="The event type, by its routing key."
)


@click.group()
def events() -> None:
    """Create, validate, publish and watch events by hand."""


@events.command()
@click.argument("event_type", metavar="TYPE", type=click.Choice(list(EVENTS), case_sensitive=False))
@click.option("--order", "order_id", type=click.IntRange(1, MAX_ID), default=7, help="The order's id.")
def sample(event_type: str, order_id: int) -> None:
    """Print an example event of this TYPE, with a new id."""
    event = samples.event(event_type, id=str(uuid4()), at=utc_text(process.utc_now()), order_id=order_id)
    click.echo(json.dumps(event, indent=2, ensure_ascii=False))


@events.command()
@_FILE
@_TYPE
@_KEY
def validate(file: BinaryIO, event_type: str | None, routing_key: str | None) -> None:
    """Validate the event in FILE and print each error. Use - for standard input."""
    click.echo(f"OK: {_validated_type(file.read(), event_type or _TYPE_BY_ROUTING_KEY.get(routing_key or ''))}")


@events.command()
@_FILE
@_TYPE
@_KEY
@click.option("--unchecked", is_flag=True, help="Publish without validation; requires --routing-key.")
@click.option("--exchange", type=click.Choice(_EXCHANGES), help="Default: the exchange of the event's publisher.")
def publish(
    file: BinaryIO, event_type: str | None, routing_key: str | None, unchecked: bool, exchange: str | None
) -> None:
    """Publish the event in FILE and wait for the confirm. Use - for standard input."""
    if unchecked and not routing_key:
        raise click.UsageError("--unchecked requires --routing-key, because the event is not read")
    body, event_type = file.read(), event_type or _TYPE_BY_ROUTING_KEY.get(routing_key or "")
    event_type = str(event_type) if unchecked else _validated_type(body, event_type)
    routing_key = routing_key or EVENTS[event_type].routing_key
    exchange = exchange or published_on(_TYPE_BY_ROUTING_KEY[routing_key])
    properties = event_properties(body, event_type)
    with _exchange() as channel:
        channel.confirm_delivery()
        try:
            channel.basic_publish(exchange, routing_key, body, properties, mandatory=True)
        except UnroutableError:
            raise click.ClickException(
                f"no queue is bound to {routing_key}, so the event was not delivered. For an event that the Order "
                "Service consumes, run `python -m order_service topology`; any other needs a queue of the sibling."
            ) from None
        except NackError:
            raise click.ClickException("the broker rejected the event; check its alarms and queues") from None
    click.echo(f"Published to {exchange} as {routing_key}, id {properties.message_id}")


@events.command()
def tail() -> None:
    """Print one line for each new event on the exchanges of all publishers, until Ctrl-C."""

    def show(_: BlockingChannel, deliver: Basic.Deliver, __: BasicProperties, body: bytes) -> None:
        click.echo(_line(deliver.routing_key or "", body))

    with _exchange() as channel:
        queue = channel.queue_declare("", exclusive=True).method.queue
        for exchange in _EXCHANGES:
            channel.queue_bind(queue, exchange, "#")
        channel.basic_consume(queue, show, auto_ack=True, exclusive=True)
        # A KeyboardInterrupt raised inside a destructor or a callback of C code is printed and ignored; a flag is not.
        stop = process.stop_on_signal()
        click.echo(f"Watching {', '.join(_EXCHANGES)}; Ctrl-C to stop", err=True)
        while channel.consumer_tags:
            channel.connection.process_data_events(time_limit=STOP_CHECK_SECONDS)
            if stop.is_set():
                return
    raise click.ClickException("the broker cancelled the subscription; run the command again")


def _exchange() -> AbstractContextManager[BlockingChannel]:
    remedy = "If an exchange does not exist, run `python -m order_service topology`."
    return open_channel(process.begin(), role="events", remedy=remedy)


def _validated_type(body: bytes, event_type: str | None) -> str:
    """The type of a valid event, enveloped or bare. Raises ClickException with one line for each wrong field."""
    try:
        return read(Delivery("", "", body, {"type": event_type} if event_type else {})).type
    except Rejection as error:
        found_type, problems = error.type, [(each.field, each.problem) for each in error.errors]
        is_outgoing = error.code == "unknown_type" and error.type in OUTGOING
    if found_type and is_outgoing:
        # read() decodes incoming events only, but by now the body is known to be a JSON object of an outgoing type.
        document = event_json(body)
        try:
            OUTGOING[found_type].model_validate(document["data"] if "specversion" in document else document)
            return found_type
        except ValidationError as error:
            problems = [(".".join(["data", *map(str, each["loc"])]), each["msg"]) for each in error.errors()]
    lines = "".join(f"\n  {field}: {problem}" for field, problem in problems)
    hint = "" if found_type else "\nIf this is the bare data of an event, give its type with --type."
    raise click.ClickException(f"this is not a valid {found_type or 'event'}:{lines}{hint}")


def _line(routing_key: str, body: bytes) -> str:
    """The time, type, order and shortened fields of an event. Never raises, even if the body is not an event."""
    now = datetime.now(UTC).strftime("%H:%M:%S")
    try:
        document = json.loads(body)
        data = document["data"] if "specversion" in document else document
        fields = {process.printable(name)[:60]: value for name, value in islice(data.items(), MOST_FIELDS)}
        shown = " ".join(f"{name}={json.dumps(value)[:60]}" for name, value in fields.items() if name != "order_id")
        order_id = data.get("order_id")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        order_id, shown = None, f"not an event: {body[:60]!r}"
    name = _TYPE_BY_ROUTING_KEY.get(routing_key, ascii(routing_key))
    return f"{now}  {click.style(f'{name:<22}', bold=True)} order {ascii(order_id)[:12]:<6} {shown}"
