"""Check the broker: its queues and rights against the topology, and who consumes."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

import pika
from pika.exceptions import ChannelClosedByBroker

from order_service import process
from order_service.cli.broker import SIBLING_QUEUES, by_declaring, by_management
from order_service.cli.reporting import counted
from order_service.config import Settings
from order_service.contract import topology
from order_service.contract.topology import DEAD_LETTER_EXCHANGE, EXCHANGE
from order_service.domain.explanation import duration
from order_service.management import Management, Unavailable

#: How far two clocks may be apart; RabbitMQ gives its time in whole seconds.
CLOCK_SLACK = timedelta(seconds=3)
#: The broker updates the figures of its management API at this interval, in seconds, with a margin.
FIGURES_SECONDS = 6
TOPOLOGY = "python -m order_service topology"
CONSUMERS = "start or restart `python -m consumers`"


@dataclass(frozen=True)
class Finding:
    """The result of one check: ok, failed or skipped; `fix` is what to do."""

    check: str
    text: str
    fix: str = ""
    status: str = "failed"


def ok(check: str, text: str) -> Finding:
    return Finding(check, text, status="ok")


REACHABLE = ok("broker", "reachable")


def compared_clock(of: str, offset: timedelta) -> Finding:
    """A finding about the clock of the database or the broker, which this host's is ahead of by `offset`."""
    if abs(offset) <= CLOCK_SLACK:
        return ok("clock", f"agrees with that of the {of}")
    apart = f"{duration(abs(offset))} {'ahead of' if offset > timedelta() else 'behind'} that of the {of}"
    return Finding("clock", f"this host's clock is {apart}", "synchronize both hosts: timedatectl set-ntp true")


def check_broker(settings: Settings) -> Iterator[Finding]:
    """Check the broker, our queues and their consumers, and those of the siblings."""
    management: Management | None = None
    asked = Management(settings)
    try:
        asked.get("vhosts", asked.vhost)
        yield compared_clock("broker", process.utc_now() - (asked.broker_time or process.utc_now()))
        management = asked
    except Unavailable as error:
        text = f"bindings and clock: the management API cannot be used: {error}"
        yield Finding("broker", text, "set RABBITMQ_MANAGEMENT_URL, and give its user the tag monitoring", "skipped")
    try:
        with topology.connected(settings, role="doctor") as (connection, _):
            yield REACHABLE
            yield from _Checks(connection, management).all(settings)
    except process.AccessRefused as error:
        yield Finding("broker", f"refuses this user: {error}", "correct RABBITMQ_URL, or its rights: docs/rights.md")
    except topology.UNREACHABLE as error:
        yield Finding("broker", f"unreachable: {process.first_line(error)}", "start it, or correct RABBITMQ_URL")


class _Checks:
    """What is checked once the broker is reachable, with its management API if there is one."""

    def __init__(self, connection: pika.BlockingConnection, management: Management | None) -> None:
        self._connection, self._management = connection, management

    def all(self, settings: Settings) -> Iterator[Finding]:
        for exchange, key in ((EXCHANGE, "order.created"), (DEAD_LETTER_EXCHANGE, topology.MENU.dead_letters)):
            yield self._publishing(exchange, key)
        for queue in topology.declared_queues(menu_over_http=bool(settings.menu_service_url)):
            for each in queue.declarations:
                yield from self._queue(each)
            if by_declaring(self._connection, queue.name).exists:
                yield self._consumers(queue.name)
        if not settings.menu_service_url:
            yield self._sibling("menu", "order.created")
        if settings.policy.payment_events:
            yield self._sibling("payment", "payment.requested")

    def _publishing(self, exchange: str, routing_key: str) -> Finding:
        channel = self._connection.channel()
        try:
            # The broker checks the rights at once, and discards the message at the rollback.
            channel.tx_select()
            channel.basic_publish(exchange, routing_key, b"")
            channel.tx_rollback()
        except ChannelClosedByBroker as error:
            fix = TOPOLOGY if error.reply_code == 404 else "give its user the rights in docs/rights.md"
            return Finding("rights", f"cannot publish to {exchange}: {error.reply_text}", fix)
        channel.close()
        return ok("rights", f"may publish to {exchange}")

    def _queue(self, declared: topology.Declaration) -> Iterator[Finding]:
        name, arguments = declared.name, dict(declared.arguments)
        if not by_declaring(self._connection, name).exists:
            yield Finding("queue", f"{name} does not exist", TOPOLOGY)
            return
        management = self._management
        try:
            self._connection.channel().queue_declare(name, durable=True, arguments=arguments)
        except ChannelClosedByBroker as error:
            found = by_management(management, name).arguments if management and error.reply_code == 403 else None
            if error.reply_code == 406 or (found is not None and found != arguments):
                mend = f"run `{TOPOLOGY} --recreate`, which keeps its messages"
                if not name.endswith(".dlq"):
                    mend = f"stop the consumers, {mend}, and start them again"
                yield Finding("queue", f"{name} has other arguments: {error.reply_text}", mend)
                return
            if found is None:
                yield Finding("queue", f"arguments of {name}: {error.reply_text}", status="skipped")
        bound = management and management.get("queues", management.vhost, name, "bindings")
        lost = set(declared.bindings) - {(each["source"], each["routing_key"]) for each in bound or ()}
        if management and lost:
            text = ", ".join(f"{key} of {exchange}" for exchange, key in sorted(lost))
            yield Finding("queue", f"{name} is not bound to {text}", TOPOLOGY)
        else:
            yield ok("queue", f"{name} is as declared")

    def _consumers(self, name: str) -> Finding:
        state = by_declaring(self._connection, name)
        if not state.consumers:
            return Finding("consumers", f"none is running; {state}", CONSUMERS)
        slow = by_management(self._management, name) if self._management else state
        if self._management and slow.is_held:
            # Perhaps only at that moment.
            self._connection.sleep(FIGURES_SECONDS)
            slow = by_management(self._management, name)
        if slow.is_held:
            held = counted(slow.unacked or 0, "message")
            text = f"they hold {held} of {name} and ack none: stopped, or waiting for the database"
            return Finding("consumers", text, CONSUMERS)
        return ok("consumers", str(state))

    def _sibling(self, sibling: str, routing_key: str) -> Finding:
        """Whether a sibling service on the broker consumes its queue."""
        names = self._management.bound(EXCHANGE, routing_key) if self._management else [SIBLING_QUEUES[sibling]]
        states = [by_declaring(self._connection, name) for name in names]
        text = f"{sibling}: {'; '.join(map(str, states)) or f'no queue is bound to {routing_key}'}"
        if states and all(state.exists and state.consumers for state in states):
            return ok("siblings", text)
        if self._management or any(state.exists for state in states):
            return Finding("siblings", text, f"start the {sibling.title()} Service")
        return Finding("siblings", f"{text}, and it may have another name", status="skipped")
