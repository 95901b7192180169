"""Orders and messages for the unit tests: two of dish 1 and one of dish 2, which cost 56000 together."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from uuid import UUID

from order_service.domain.order import (
    RELEASE,
    Cancel,
    Compensation,
    Item,
    MenuDeadline,
    MenuRejected,
    MenuReserved,
    Message,
    Order,
    PaymentCompleted,
    PaymentDeadline,
    PaymentFailed,
    PutFailed,
    PutPaid,
    PutPending,
)
from order_service.domain.saga import Clock, Decision, decide

NOW = datetime(2025, 3, 1, 12, 0, tzinfo=UTC)
CLOCK = Clock(now=NOW, reply_within=timedelta(seconds=30), pay_within=timedelta(seconds=900))
TOTAL = Decimal(56000)
DISH_1 = Item(1, "Nasi Ayam Bakar", Decimal(18000), 13)
DISH_2 = Item(2, "Kwetiau Goreng", Decimal(20000), 6)
DISH_3 = Item(3, "Es Teh", Decimal(5000), 40)


def new_order(*, expected_total: Decimal | None = None) -> Order:
    """An order as `place_order` records it: the menu's deadline armed, nothing else known."""
    return Order(
        id=7,
        key=UUID("6f9619ff-8b86-4d11-b42d-00c04fc964ff"),
        user_id=3,
        menu_ids=(1, 2, 1),
        created_at=NOW,
        expected_total=expected_total,
        due_at=NOW + CLOCK.reply_within,
        reminders_left=3,
    )


def reserved(reservation_id: str | None = "R1", *items: Item) -> MenuReserved:
    return MenuReserved(items or (DISH_1, DISH_2), reservation_id)


def completed(payment_id: str = "P1", amount: Decimal | int = TOTAL) -> PaymentCompleted:
    return PaymentCompleted(payment_id, Decimal(amount))


OUT_OF_STOCK = MenuRejected("out_of_stock", 2)
DECLINED = PaymentFailed("card declined")
PUT_PAID, PUT_FAILED, PUT_PENDING, CANCEL = PutPaid(), PutFailed(), PutPending(), Cancel()
MENU_DEADLINE, PAYMENT_DEADLINE = MenuDeadline(), PaymentDeadline()


def apply(order: Order, *messages: Message) -> list[Decision]:
    return [decide(order, message, CLOCK) for message in messages]


def after(*messages: Message, expected_total: Decimal | None = None) -> Order:
    """A new order that has seen these messages, in this order."""
    order = new_order(expected_total=expected_total)
    apply(order, *messages)
    return order


def compensations(*decisions: Decision) -> list[Compensation]:
    return [effect for decision in decisions for effect in decision.effects if isinstance(effect, Compensation)]


def told(decision: Decision) -> str:
    """A decision in one line: `state: effects -> answer`, ids of reservations and payments in short."""
    effects = [_in_short(effect) if isinstance(effect, Compensation) else effect.value for effect in decision.effects]
    answer = f" -> {decision.answer}" if decision.answer else ""
    return f"{decision.after}: {', '.join(effects) or 'nothing'}{answer}"


def _in_short(wanted: Compensation) -> str:
    if wanted.type == RELEASE:
        return f"release {wanted.subject}"
    return f"refund {wanted.subject} {wanted.amount}"
