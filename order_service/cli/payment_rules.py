"""The rules for a Payment Service, each with the conversation that checks it.

A rule is checked with orders of its own, which are refunded afterwards. Whether money is given back, and once, is not
visible on the broker.
"""

from typing import Any

from order_service.cli import talk as shared
from order_service.cli.talk import Rule, Talk
from order_service.contract.events import as_number
from order_service.domain.messages import PaymentCompleted, PaymentRefunded

_ANSWERS, _CHARGES = ("answers",), ("answers", "charges")


class PaymentTalk(Talk):
    """A conversation about a payment of the wanted amount."""

    request, grant, granted_id = "PaymentRequested", PaymentCompleted, "payment_id"
    undo, confirmation = "RefundRequested", PaymentRefunded

    def data(self) -> dict[str, Any]:
        return {"amount": as_number(self.wanted.amount)}

    def undo_data(self, undo_id: str, granted_id: str | None) -> dict[str, Any]:
        amount = None if granted_id is None else as_number(self.wanted.amount)
        return {"refund_id": undo_id, "payment_id": granted_id, "amount": amount}

    def require_taken(self, before: int | None, count: int) -> None:
        # What was charged is not visible; but once another payment is completed, all earlier messages are handled.
        self.granted()


def _payment_is_charged(talk: PaymentTalk) -> None:
    talk.granted()


def _amount_is_right(talk: PaymentTalk) -> None:
    amount = talk.wanted.amount
    talk.require(talk.granted().amount == amount, f"PaymentCompleted with the amount {amount}")


def _late_payment_is_not_charged_again(talk: PaymentTalk) -> None:
    order_id = talk.new_order()
    talk.uncounted.add(order_id)
    talk.give_back(order_id, talk.granted(order_id).payment_id)
    talk.burst([order_id], 1)
    talk.require_taken(None, 0)
    talk.require(len(talk.answers(order_id)) == 1, f"no other PaymentCompleted for order {order_id}")


# fmt: off
PAYMENT_RULES: tuple[Rule, ...] = (
    Rule("answers", 2, "a PaymentRequested is replied to", shared.request_is_answered),
    Rule("charges", None, "a payment is charged", _payment_is_charged, _ANSWERS),
    Rule("amount", None, "the amount requested is charged", _amount_is_right, _CHARGES),
    Rule("refund", 3, "a refund is confirmed, also a repeated one", shared.undo_is_confirmed_each_time, _CHARGES),
    Rule("refund_nothing", 3, "a refund is confirmed if nothing was paid",
         shared.undo_of_nothing_is_confirmed, _ANSWERS),
    Rule("null_refund", 5, "a refund without a payment id is confirmed",
         shared.null_undo_gives_back_everything, _CHARGES),
    Rule("late_payment", 4, "a request that is repeated after the refund is not charged again",
         _late_payment_is_not_charged_again, _CHARGES),
    Rule("repeat", 2, "a repeated request gets the same reply and charges nothing more",
         shared.repeated_request_gets_the_same_reply, _CHARGES),
    Rule("unknown_fields", None, "unknown fields are ignored", shared.unknown_fields_are_ignored, _CHARGES),
    Rule("several_processes", 2, "a request that comes several times at once is charged once",
         shared.several_processes_decide_once, _CHARGES),
    Rule("in_order", None, "the replies for an order come in the order of its requests",
         shared.replies_come_in_order, _CHARGES),
    Rule("kill", 6, "a killed process loses no request and charges none twice", shared.kill_loses_nothing, _CHARGES),
)
# fmt: on
