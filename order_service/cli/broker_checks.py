"""Check the broker: its queues and rights against the topology, and who consumes."""

from collections.abc import Iterator
from datetime import timedelta

import pika
from pika.exceptions import ChannelClosedByBroker

from order_service import process
from order_service.cli.queues import SIBLING_QUEUES, Management, QueueState, Unavailable, by_declaring, by_management
from order_service.cli.reporting import Finding, Findings, failed, ok
from order_service.config import Settings
from order_service.contract import topology
from order_service.contract.topology import DEAD_LETTER_EXCHANGE, EXCHANGE, QUORUM
from order_service.domain.explanation import duration

#: How far two clocks may be apart; RabbitMQ gives its time in whole seconds.
CLOCK_SLACK = timedelta(seconds=3)
#: The broker updates the figures of its management API at this interval, in seconds, with a margin.
FIGURES_SECONDS = 6
TOPOLOGY = "python -m order_service topology"
_CONSUMERS = "start or restart `python -m consumers`"


def compared_clock(of: str, offset: timedelta) -> Finding:
    """A finding about the clock of the database or the broker, which this host's is ahead of by `offset`."""
    if abs(offset) <= CLOCK_SLACK:
        return ok("clock", f"agrees with that of the {of}")
    apart = f"{duration(abs(offset))} {'ahead of' if offset > timedelta() else 'behind'} that of the {of}"
    return failed("clock", f"this host's clock is {apart}", "synchronize both hosts: timedatectl set-ntp true")


def check_broker(settings: Settings) -> Findings:
    """Check the broker, our queues and their consumers, and those of the siblings. Returns whether it is reachable."""
    management: Management | None = None
    try:
        asked = Management(settings)
        asked.get("vhosts", asked.vhost)
        management = asked
        yield compared_clock("broker", process.utc_now() - (asked.broker_time or process.utc_now()))
    except Unavailable as error:
        yield Finding("broker", "skipped", f"bindings and clock: the management API cannot be used: {error}",
                      "set RABBITMQ_MANAGEMENT_URL, and give its user the tag monitoring")  # fmt: skip
    try:
        with topology.connected(settings, role="doctor") as (connection, _):
            yield ok("broker", "reachable")
            for exchange, key in ((EXCHANGE, "order.created"), (DEAD_LETTER_EXCHANGE, topology.MENU.dead_letters)):
                yield _publishing(connection, exchange, key)
            for queue in topology.declared_queues(menu_over_http=bool(settings.menu_service_url)):
                mend = f"stop the consumers, run `{TOPOLOGY} --recreate`, and start them again"
                exists = yield from _queue(connection, management, queue.name, queue.arguments, queue.bindings, mend)
                if exists:
                    yield _consumers(connection, management, queue.name)
                empty = (
                    f"`dlq discard --all --out FILE`, delete {queue.dead_letters} in the console, and run `{TOPOLOGY}`"
                )
                bound = [(DEAD_LETTER_EXCHANGE, queue.dead_letters)]
                yield from _queue(connection, management, queue.dead_letters, QUORUM, bound, empty)
            yield from _siblings(connection, management, settings)
    except process.AccessRefused as error:
        yield failed("broker", f"refuses this user: {error}", "correct RABBITMQ_URL, or its rights: docs/rights.md")
        return False
    except topology.UNREACHABLE as error:
        yield failed("broker", f"unreachable: {process.first_line(error)}", "start it, or correct RABBITMQ_URL")
        return False
    return True


def _publishing(connection: pika.BlockingConnection, exchange: str, routing_key: str) -> Finding:
    channel = connection.channel()
    try:
        # The broker checks the rights at once, and discards the message at the rollback.
        channel.tx_select()
        channel.basic_publish(exchange, routing_key, b"")
        channel.tx_rollback()
    except ChannelClosedByBroker as error:
        fix = TOPOLOGY if error.reply_code == 404 else "give its user the rights in docs/rights.md"
        return failed("rights", f"cannot publish to {exchange}: {error.reply_text}", fix)
    channel.close()
    return ok("rights", f"may publish to {exchange}")


def _queue(
    connection: pika.BlockingConnection,
    management: Management | None,
    name: str,
    arguments: dict[str, str | int],
    bindings: list[tuple[str, str]],
    mend: str,
) -> Findings:
    """Returns whether the queue exists."""
    if not by_declaring(connection, name).exists:
        yield failed("queue", f"{name} does not exist", TOPOLOGY)
        return False
    try:
        connection.channel().queue_declare(name, durable=True, arguments=arguments)
    except ChannelClosedByBroker as error:
        found = by_management(management, name).arguments if management and error.reply_code == 403 else None
        if error.reply_code == 406 or (found is not None and found != arguments):
            yield failed("queue", f"{name} has other arguments: {error.reply_text}", mend)
            return True
        if found is None:
            yield Finding("queue", "skipped", f"arguments of {name}: {error.reply_text}")
    if management:
        bound = management.get("queues", management.vhost, name, "bindings") or []
        if lost := set(bindings) - {(each["source"], each["routing_key"]) for each in bound}:
            text = ", ".join(f"{key} of {exchange}" for exchange, key in sorted(lost))
            yield failed("queue", f"{name} is not bound to {text}", TOPOLOGY)
            return True
    yield ok("queue", f"{name} is as declared")
    return True


def _consumers(connection: pika.BlockingConnection, management: Management | None, name: str) -> Finding:
    state = by_declaring(connection, name)
    if not state.consumers:
        return failed("consumers", f"none is running; {state}", _CONSUMERS)
    slow = by_management(management, name) if management else state
    if management and slow.is_held:
        # Perhaps only at that moment.
        connection.sleep(FIGURES_SECONDS)
        slow = by_management(management, name)
    if slow.is_held:
        text = f"they hold {slow.unacked} messages of {name} and ack none: stopped, or waiting for the database"
        return failed("consumers", text, _CONSUMERS)
    return ok("consumers", str(state))


def _siblings(
    connection: pika.BlockingConnection, management: Management | None, settings: Settings
) -> Iterator[Finding]:
    """Whether each sibling service on the broker consumes its queue."""
    asked = {} if settings.menu_service_url else {"menu": "order.created"}
    asked |= {"payment": "payment.requested"} if settings.policy.payment_events else {}
    for sibling, key in asked.items():
        names = management.bound(EXCHANGE, key) if management else [SIBLING_QUEUES[sibling]]
        states: list[QueueState] = [by_declaring(connection, name) for name in names]
        if states and all(state.exists and state.consumers for state in states):
            yield ok("siblings", f"{sibling}: {'; '.join(map(str, states))}")
        elif management or any(state.exists for state in states):
            text = "; ".join(map(str, states)) or f"no queue is bound to {key}"
            yield failed("siblings", f"{sibling}: {text}", f"start the {sibling.title()} Service")
        else:
            yield Finding(
                "siblings", "skipped", f"{sibling}: {'; '.join(map(str, states))}, and it may have another name"
            )
