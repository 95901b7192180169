"""The rules for a Payment Service, each with the conversation that checks it.

A rule is checked with orders of its own, which are refunded afterwards. Whether money is given back, and once, is not
visible on the broker.
"""

from order_service.cli.talk import (
    BURST_ORDERS,
    BURST_REPEATS,
    PAYMENT,
    REFUND,
    Rule,
    Talk,
    burst,
    in_order,
    kill,
    processes,
    wait,
)
from order_service.contract.events import as_number

_ANSWERS, _CHARGES = ("answers",), ("answers", "charges")


def _payment_is_answered(talk: Talk) -> None:
    talk.ask(PAYMENT, talk.new_order(), amount=as_number(talk.wanted.amount))


def _payment_is_charged(talk: Talk) -> None:
    talk.pay(talk.new_order())


def _amount_is_right(talk: Talk) -> None:
    amount = talk.wanted.amount
    talk.require(talk.pay(talk.new_order()).amount == amount, f"PaymentCompleted with the amount {amount}")


def _repeated_payment_gets_the_same_reply(talk: Talk) -> None:
    order_id = talk.new_order()
    for _ in range(3):
        talk.pay(order_id)
    talk.require_one_answer(order_id, PAYMENT)


def _refund_is_confirmed_each_time(talk: Talk) -> None:
    order_id = talk.new_order()
    payment_id = talk.pay(order_id).payment_id
    for refund_id in ("check-1", "check-1", "check-2"):
        talk.refund(order_id, payment_id, refund_id)


def _refund_of_nothing_is_confirmed(talk: Talk) -> None:
    for subject in ("no such payment", None):
        talk.refund(talk.new_order(), subject)


def _null_refund_is_confirmed(talk: Talk) -> None:
    order_id = talk.new_order()
    talk.pay(order_id)
    talk.refund(order_id, None)


def _late_payment_is_not_charged_again(talk: Talk) -> None:
    order_id = talk.new_order()
    talk.conversation.uncounted.add(order_id)
    talk.refund(order_id, talk.pay(order_id).payment_id)
    talk.conversation.send(PAYMENT, order_id, amount=as_number(talk.wanted.amount))
    talk.pay(talk.new_order())
    talk.require(len(talk.answers(order_id, PAYMENT)) == 1, f"no other PaymentCompleted for order {order_id}")


def _payment_ignores_unknown_fields(talk: Talk) -> None:
    talk.pay(talk.new_order(), extra={"unknown": {"a": [1]}}, unknown=None)


def _order_is_charged_once_by_several_processes(talk: Talk) -> str:
    orders = [talk.new_order() for _ in range(BURST_ORDERS)]
    burst(talk, PAYMENT, orders, BURST_REPEATS, amount=as_number(talk.wanted.amount))
    for order_id in orders:
        wait(talk, order_id, PAYMENT, BURST_REPEATS)
    return processes(talk)


def _payment_survives_a_kill(talk: Talk) -> None:
    orders = [talk.new_order() for _ in range(BURST_ORDERS)]
    kill(talk, PAYMENT, orders, amount=as_number(talk.wanted.amount))
    talk.pay(talk.new_order())  # what was delivered again is handled by now
    for order_id in orders:
        talk.require_one_answer(order_id, PAYMENT)


def _payment_replies_in_order(talk: Talk) -> None:
    in_order(talk, PAYMENT, REFUND, lambda number: {"refund_id": number, "payment_id": None, "amount": None},
              amount=as_number(talk.wanted.amount))  # fmt: skip


# fmt: off
PAYMENT_RULES: tuple[Rule, ...] = (
    Rule("answers", 2, "a PaymentRequested is replied to", _payment_is_answered),
    Rule("charges", None, "a payment is charged", _payment_is_charged, _ANSWERS),
    Rule("amount", None, "the amount requested is charged", _amount_is_right, _CHARGES),
    Rule("refund", 3, "a refund is confirmed, also a repeated one", _refund_is_confirmed_each_time, _CHARGES),
    Rule("refund_nothing", 3, "a refund is confirmed if nothing was paid", _refund_of_nothing_is_confirmed, _ANSWERS),
    Rule("null_refund", 5, "a refund without a payment id is confirmed", _null_refund_is_confirmed, _CHARGES),
    Rule("late_payment", 4, "a request that is repeated after the refund is not charged again",
         _late_payment_is_not_charged_again, _CHARGES),
    Rule("repeat", 2, "a repeated request gets the same reply and charges nothing more",
         _repeated_payment_gets_the_same_reply, _CHARGES),
    Rule("unknown_fields", None, "unknown fields are ignored", _payment_ignores_unknown_fields, _CHARGES),
    Rule("several_processes", 2, "a request that comes several times at once is charged once",
         _order_is_charged_once_by_several_processes, _CHARGES),
    Rule("in_order", None, "the replies for an order come in the order of its requests",
         _payment_replies_in_order, _CHARGES),
    Rule("kill", 6, "a killed process loses no request and charges none twice", _payment_survives_a_kill, _CHARGES),
)
# fmt: on
