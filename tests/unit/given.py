"""The names under which the unit tests know `tests.builders`, and decisions in one line."""

from order_service.domain.order import (
    RELEASE,
    Cancel,
    Compensation,
    MenuDeadline,
    PaymentDeadline,
    PaymentFailed,
    PutFailed,
    PutPaid,
    PutPending,
)
from order_service.domain.saga import Decision
from tests import builders
from tests.builders import apply, menu_rejected, new_order

__all__ = ["apply", "new_order"]

NOW, TOTAL, CLOCK = builders.NOW, builders.TOTAL, builders.clock()
DISH_1, DISH_2, DISH_3 = builders.NASI_AYAM, builders.KWETIAU, builders.ES_TEH
after, reserved, completed = builders.order_after, builders.menu_reserved, builders.payment_completed
OUT_OF_STOCK = menu_rejected()
DECLINED = PaymentFailed("card declined")
PUT_PAID, PUT_FAILED, PUT_PENDING, CANCEL = PutPaid(), PutFailed(), PutPending(), Cancel()
MENU_DEADLINE, PAYMENT_DEADLINE = MenuDeadline(), PaymentDeadline()


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
