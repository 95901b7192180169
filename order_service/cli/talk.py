"""What the rules for a sibling service share: the conversation about dishes and amounts, bursts, a kill."""

import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any
from uuid import uuid4

import click

from order_service.cli.conversation import Conversation, NotChecked
from order_service.contract.events import OUTGOING, as_number
from order_service.domain.messages import MenuReserved, Message, PaymentCompleted, PaymentRefunded, StockReleased

CREATED, RELEASE, PAYMENT, REFUND = "OrderCreated", "StockReleaseRequested", "PaymentRequested", "RefundRequested"
#: How many orders are sent in a burst, and how often each; few, because their dishes must be in stock.
BURST_ORDERS, BURST_REPEATS = 3, 8
#: How long a kill waits for the first reply, in seconds: the sibling is then between its commit and its ack.
KILL_SECONDS = 0.05
#: How long a killed sibling may take until it replies again, in seconds.
RESTART_SECONDS = 60
#: How long after the last request a second reply to it is waited for, in seconds.
QUIET_SECONDS = 0.5


@dataclass(frozen=True)
class Wanted:
    """What to ask of the sibling, and what to expect."""

    #: The current price of two dishes in stock, by menu id.
    prices: Mapping[int, Decimal]
    unknown_id: int
    #: A dish that is sold out; None: order more of the second dish than there is.
    sold_out_id: int | None
    amount: Decimal
    reply_seconds: float
    queue: str
    kill_pid: int | None


@dataclass
class Talk:
    """A conversation about the wanted dishes and amounts."""

    conversation: Conversation
    wanted: Wanted
    orders: list[int] = field(default_factory=list)

    @property
    def dishes(self) -> tuple[int, int]:
        first, second = self.wanted.prices
        return first, second

    def new_order(self) -> int:
        self.orders.append(self.conversation.new_order())
        return self.orders[-1]

    def ask(self, event_type: str, order_id: int, expected: Message | None = None, **data: Any) -> Message:
        return self.conversation.ask(event_type, order_id, expected, **data)

    def require(self, holds: bool, expected: str) -> None:
        self.conversation.require(holds, expected)

    def order(self, portions: Mapping[int, int], order_id: int | None = None, **more: Any) -> Message:
        """The reply to an OrderCreated of these portions by menu id."""
        return self.ask(CREATED, order_id or self.new_order(), **order_data(portions), **more)

    def reserve(self, order_id: int | None = None, **more: Any) -> MenuReserved:
        """Have one portion of the first dish reserved."""
        reply = self.order({self.dishes[0]: 1}, order_id, **more)
        self.require(isinstance(reply, MenuReserved), f"MenuReserved for one portion of dish {self.dishes[0]}")
        assert isinstance(reply, MenuReserved)  # noqa: S101
        return reply

    def release(self, order_id: int, reservation_id: str | None, release_id: str = "") -> None:
        release_id = release_id or str(uuid4())
        expected = StockReleased(release_id)
        self.ask(RELEASE, order_id, expected, release_id=release_id, reservation_id=reservation_id)

    def pay(self, order_id: int, **more: Any) -> PaymentCompleted:
        reply = self.ask(PAYMENT, order_id, amount=as_number(self.wanted.amount), **more)
        self.require(isinstance(reply, PaymentCompleted), "PaymentCompleted")
        assert isinstance(reply, PaymentCompleted)  # noqa: S101
        return reply

    def refund(self, order_id: int, payment_id: str | None, refund_id: str = "") -> None:
        refund_id = refund_id or str(uuid4())
        amount = None if payment_id is None else as_number(self.wanted.amount)
        expected = PaymentRefunded(refund_id)
        self.ask(REFUND, order_id, expected, refund_id=refund_id, payment_id=payment_id, amount=amount)

    def stock(self) -> int | None:
        """The stock of the first dish that remains after one more portion; None if the menu does not count it."""
        return self.reserve().items[0].stock

    def require_stock(self, before: int | None, taken: int) -> None:
        """Raise Broken unless `taken` portions were reserved since `stock` returned `before`."""
        if before is None:
            raise NotChecked("the menu does not count the stock of this dish")
        expected = before - taken - 1
        self.require(self.stock() == expected, f"stock {expected} of dish {self.dishes[0]} in the last MenuReserved")

    def answers(self, order_id: int, request: str) -> set[str]:
        """The different replies so far to one request."""
        found = self.conversation.replies(order_id, *OUTGOING[request].replies)
        return {f"{reply.type} {reply.digest}" for reply in found}

    def require_one_answer(self, order_id: int, request: str) -> None:
        self.require(len(self.answers(order_id, request)) == 1, "the same reply as to the first one, with the same id")


@dataclass(frozen=True)
class Rule:
    """`number` is the rule's in docs/siblings.md, if it has one there; without `needs` it is not checked."""

    name: str
    number: int | None
    text: str
    #: Raises Broken or NotChecked, or returns a note for the user.
    check: Callable[[Talk], str | None]
    needs: tuple[str, ...] = ()


def order_data(portions: Mapping[int, int]) -> dict[str, Any]:
    return {
        "menu_ids": [menu_id for menu_id, quantity in portions.items() for _ in range(quantity)],
        "lines": [{"menu_id": menu_id, "quantity": quantity} for menu_id, quantity in portions.items()],
    }


def burst(talk: Talk, request: str, orders: list[int], repeats: int, **data: Any) -> None:
    for _ in range(repeats):
        for order_id in orders:
            talk.conversation.send(request, order_id, **data)


def processes(talk: Talk) -> str:
    """What to add to a check that only several processes of the sibling make complete."""
    count, queue = talk.conversation.consumers(talk.wanted.queue), talk.wanted.queue
    found = f"{queue} does not exist (--queue)" if count is None else f"{queue} has one consumer"
    return "" if count and count > 1 else f"{found}: run two processes of the sibling for a complete check"


def wait(talk: Talk, order_id: int, request: str, count: int, *, seconds: float | None = None) -> None:
    """Wait for replies to this request, and require that all are the same."""
    if not talk.conversation.wait(lambda: reply_count(talk, order_id, request) >= count, seconds=seconds):
        raise talk.conversation.broken(f"{count} replies for order {order_id}")
    talk.require_one_answer(order_id, request)


def reply_count(talk: Talk, order_id: int, request: str) -> int:
    """How many replies to this request came."""
    return len(talk.conversation.replies(order_id, *OUTGOING[request].replies))


def kill(talk: Talk, request: str, orders: list[int], **data: Any) -> None:
    """Kill the sibling while it handles a burst, repeat the requests, and require one decision for each order."""
    pid = talk.wanted.kill_pid
    if pid is None:
        raise NotChecked("name a process of the sibling with --kill, and have it restarted")
    talk.conversation.uncounted |= set(orders)
    burst(talk, request, orders, 1, **data)
    talk.conversation.wait(lambda: reply_count(talk, orders[0], request) > 0, seconds=KILL_SECONDS)
    try:
        os.kill(pid, signal.SIGKILL)
    except OSError as error:
        raise click.ClickException(f"process {pid} cannot be killed: {error}") from None
    click.echo(f"Killed process {pid}; start it again within {RESTART_SECONDS} s.", err=True)
    talk.conversation.listen(QUIET_SECONDS)
    counts = {order_id: reply_count(talk, order_id, request) for order_id in orders}
    burst(talk, request, orders, 1, **data)
    for order_id, count in counts.items():
        wait(talk, order_id, request, count + 1, seconds=RESTART_SECONDS)


def in_order(talk: Talk, request: str, undo: str, undo_data: Callable[[str], dict[str, Any]], **data: Any) -> None:
    """Send a request and its compensation at once, and require their replies in this order.

    The compensation of the second order is sent twice, so that a delay of every other reply is found in one of them.
    """
    if talk.conversation.consumers(talk.wanted.queue) != 1:
        raise NotChecked(f"only with exactly one consumer of the sibling's queue ({talk.wanted.queue}, or --queue)")
    expected = (*OUTGOING[request].replies, *OUTGOING[undo].replies)
    for undos in (1, 2, 1):
        order_id = talk.new_order()
        talk.conversation.send(request, order_id, **data)
        for _ in range(undos):
            talk.conversation.send(undo, order_id, **undo_data("check-1"))
        wait(talk, order_id, request, 1)
        talk.conversation.wait(lambda id=order_id, n=undos: reply_count(talk, id, undo) >= n)  # type: ignore[misc]
        types = [reply.type for reply in talk.conversation.replies(order_id, *expected)]
        talk.require(types[:1] != list(OUTGOING[undo].replies), f"the reply to {request}, then the one to {undo}")
