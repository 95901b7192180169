"""What the rules for all siblings share: a request that is granted and given back, bursts of it, and a kill."""

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar
from uuid import uuid4

import click

from order_service.cli.conversation import Conversation, NotChecked
from order_service.contract.events import OUTGOING
from order_service.domain.messages import MenuReserved, PaymentCompleted, PaymentRefunded, StockReleased

#: How many orders are sent in a burst, and how often each; few, because their dishes must be in stock.
BURST_ORDERS, BURST_REPEATS = 3, 8
#: How long a kill waits for the first reply, in seconds: the sibling is then between its commit and its ack.
KILL_SECONDS = 0.05
#: How long a killed sibling may take until it replies again, in seconds.
RESTART_SECONDS = 60
#: How long after the last request a second reply to it is waited for, in seconds.
QUIET_SECONDS = 0.5


class Talk(Conversation):
    """A conversation about what an order needs of a sibling, and its compensation; a subclass for each sibling."""

    #: The event that asks for it, the message that grants it, and the field of that which names what is granted.
    request: ClassVar[str]
    grant: ClassVar[type[MenuReserved | PaymentCompleted]]
    granted_id: ClassVar[str]
    #: The event that asks to compensate it, and the message that confirms that.
    undo: ClassVar[str]
    confirmation: ClassVar[type[StockReleased | PaymentRefunded]]

    def data(self) -> dict[str, Any]:
        """The fields of a request that is granted."""
        raise NotImplementedError

    def undo_data(self, undo_id: str, granted_id: str | None) -> dict[str, Any]:
        """The fields of the request to compensate what was granted under this id; None: everything of the order."""
        raise NotImplementedError

    def granted(self, order_id: int | None = None, **more: Any) -> Any:
        """Require that a request is granted; return the message that grants it."""
        reply = self.ask(self.request, order_id or self.new_order(), **self.data(), **more)
        self.require(isinstance(reply, self.grant), self.grant.__name__)
        return reply

    def stock(self) -> int | None:
        """What is left after one more request; None if that is not visible."""
        return None

    def require_taken(self, before: int | None, count: int) -> None:
        """Require that `count` requests took effect since `stock` returned `before`; all earlier ones are handled."""
        raise NotImplementedError

    def give_back(self, order_id: int, granted_id: str | None, undo_id: str = "") -> None:
        """Require that a compensation is confirmed."""
        undo_id = undo_id or str(uuid4())
        self.ask(self.undo, order_id, self.confirmation(undo_id), **self.undo_data(undo_id, granted_id))

    def answers(self, order_id: int) -> set[str]:
        """The different replies so far to the requests for an order."""
        return {f"{reply.type} {reply.digest}" for reply in self.replies_to(self.request, order_id)}

    def require_one_answer(self, order_id: int) -> None:
        self.require(len(self.answers(order_id)) == 1, "the same reply as to the first one, with the same id")

    def require_replies(self, order_id: int, count: int, *, seconds: float | None = None) -> None:
        """Wait for this many replies to the requests for an order, and require that all are the same."""
        if not self.wait(lambda: len(self.replies_to(self.request, order_id)) >= count, seconds=seconds):
            raise self.broken(f"{count} replies for order {order_id}")
        self.require_one_answer(order_id)

    def burst(self, orders: list[int], repeats: int) -> None:
        for _ in range(repeats):
            for order_id in orders:
                self.send(self.request, order_id, **self.data())


@dataclass(frozen=True)
class Rule:
    """`number` is the rule's in docs/siblings.md, if it has one there; without `needs` it is not checked."""

    name: str
    number: int | None
    text: str
    #: Given the sibling's Talk, raises Broken or NotChecked, or returns a note for the user.
    check: Callable[[Any], str | None]
    needs: tuple[str, ...] = ()


def request_is_answered(talk: Talk) -> None:
    talk.ask(talk.request, talk.new_order(), **talk.data())


def repeated_request_gets_the_same_reply(talk: Talk) -> None:
    before, order_id = talk.stock(), talk.new_order()
    for _ in range(3):
        talk.granted(order_id)
    talk.require_one_answer(order_id)
    talk.require_taken(before, 1)


def undo_is_confirmed_each_time(talk: Talk) -> None:
    order_id = talk.new_order()
    granted_id = getattr(talk.granted(order_id), talk.granted_id)
    for undo_id in ("check-1", "check-1", "check-2"):
        talk.give_back(order_id, granted_id, undo_id)


def undo_of_nothing_is_confirmed(talk: Talk) -> None:
    for granted_id in ("no such id", None):
        talk.give_back(talk.new_order(), granted_id)


def null_undo_gives_back_everything(talk: Talk) -> None:
    before, order_id = talk.stock(), talk.new_order()
    talk.granted(order_id)
    talk.give_back(order_id, None)
    talk.require_taken(before, 0)


def unknown_fields_are_ignored(talk: Talk) -> None:
    talk.granted(extra={"unknown": {"a": [1]}}, unknown=None)


def several_processes_decide_once(talk: Talk) -> str:
    before, orders = talk.stock(), [talk.new_order() for _ in range(BURST_ORDERS)]
    talk.burst(orders, BURST_REPEATS)
    for order_id in orders:
        talk.require_replies(order_id, BURST_REPEATS)
    talk.require_taken(before, len(orders))
    queue = talk.queue()
    found = f"{queue.name} has one consumer" if queue.exists else f"{queue.name} does not exist (--queue)"
    return "" if queue.consumers > 1 else f"{found}: run two processes of the sibling for a complete check"


def kill_loses_nothing(talk: Talk) -> None:
    """Kill the sibling while it handles a burst, repeat the requests, and require one decision for each order."""
    before, orders = talk.stock(), [talk.new_order() for _ in range(BURST_ORDERS)]
    pid = talk.wanted.kill_pid
    if pid is None:
        raise NotChecked("name a process of the sibling with --kill, and have it restarted")
    talk.uncounted |= set(orders)
    talk.burst(orders, 1)
    talk.wait(lambda: bool(talk.replies_to(talk.request, orders[0])), seconds=KILL_SECONDS)
    try:
        os.kill(pid, signal.SIGKILL)
    except OSError as error:
        raise click.ClickException(f"process {pid} cannot be killed: {error}") from None
    click.echo(f"Killed process {pid}; start it again within {RESTART_SECONDS} s.", err=True)
    talk.listen(QUIET_SECONDS)
    counts = {order_id: len(talk.replies_to(talk.request, order_id)) for order_id in orders}
    talk.burst(orders, 1)
    for order_id, count in counts.items():
        talk.require_replies(order_id, count + 1, seconds=RESTART_SECONDS)
    talk.require_taken(before, len(orders))
    for order_id in orders:
        talk.require_one_answer(order_id)


def replies_come_in_order(talk: Talk) -> None:
    """Send a request and its compensation at once, and require their replies in this order.

    The compensation of the second order is sent twice, so that a delay of every other reply is found in one of them.
    """
    if talk.queue().consumers != 1:
        raise NotChecked(f"only with exactly one consumer of the sibling's queue ({talk.wanted.queue}, or --queue)")
    for undos in (1, 2, 1):
        order_id = talk.new_order()
        talk.send(talk.request, order_id, **talk.data())
        for _ in range(undos):
            talk.send(talk.undo, order_id, **talk.undo_data("check-1", None))
        talk.require_replies(order_id, 1)
        talk.wait(lambda id=order_id, n=undos: len(talk.replies_to(talk.undo, id)) >= n)  # type: ignore[misc]
        answers = OUTGOING[talk.request].replies
        first, *_ = talk.replies(order_id, *answers, *OUTGOING[talk.undo].replies)
        talk.require(first.type in answers, f"the reply to {talk.request}, then the one to {talk.undo}")
