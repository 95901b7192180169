"""What messages would do to their orders, by the decision table; nothing is written."""

from collections.abc import Sequence
from typing import Any

from order_service import handlers
from order_service.contract.envelope import Rejection, Reply
from order_service.contract.topology import MENU_HTTP
from order_service.domain.messages import Message
from order_service.domain.order import Order
from order_service.domain.saga import Decision, Policy
from order_service.storage.database import Database, current_time
from order_service.storage.orders import UnreadableOrder
from order_service.unit_of_work import UnitOfWork

#: How many messages are rehearsed in one transaction, which locks their orders on PostgreSQL.
BATCH = 100


class _Rehearsal(UnitOfWork):
    """A unit of work that keeps its decisions, by order and message id, and is never written."""

    decisions: dict[tuple[int, str | None], Decision]

    def apply(self, order: Order, message: Message, *, message_id: str | None = None, **details: Any) -> Decision:
        decision = super().apply(order, message, message_id=message_id, **details)
        self.decisions[order.id, message_id] = decision
        return decision


def rehearse(database: Database, policy: Policy, messages: Sequence[Reply | Rejection]) -> list[str]:
    """The transition that each of these messages would cause, applied in this order, in words."""
    found: list[str] = []
    for start in range(0, len(messages), BATCH):
        batch = messages[start : start + BATCH]
        unreadable: dict[int | None, UnreadableOrder] = {}
        while True:
            replies = [each for each in batch if isinstance(each, Reply) and each.order_id not in unreadable]
            try:
                with database.reading() as connection:
                    work = _Rehearsal(connection, policy, current_time(connection))
                    work.decisions = {}
                    rejected = handlers.apply_replies(work, replies)
                break
            except UnreadableOrder as error:
                unreadable[error.order_id] = error
        rejections = {id(each.delivery): each for each in (*batch, *rejected) if isinstance(each, Rejection)}
        for each in batch:
            if rejection := rejections.get(id(each.delivery)):
                found.append(_again(rejection))
            elif each.order_id in unreadable:
                found.append(f"dead-lettered again: internal_error: {unreadable[each.order_id]}")
            else:
                found.append(_transition(work.decisions.pop((each.order_id or 0, each.message_id), None)))
    return found


def _again(rejection: Rejection) -> str:
    if rejection.delivery.queue == MENU_HTTP.name and not rejection.delivery.oversized:
        return "handed to the Menu Service over HTTP"
    return f"dead-lettered again: {rejection}"


def _transition(decision: Decision | None) -> str:
    if decision is None:
        return "nothing: this message was applied before"
    effects = ", ".join(str(getattr(effect, "type", effect)) for effect in decision.effects)
    change = f"{decision.before} -> {decision.after}" if decision.changed else f"stays {decision.before}"
    return f"{change}: {effects}" if effects else change
