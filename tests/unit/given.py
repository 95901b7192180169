"""The names under which the unit tests know `tests.builders`, and decisions in one line."""

from order_service.domain.messages import (
    Cancel,
    MenuDeadline,
    PaymentDeadline,
    PaymentFailed,
    ReportFailed,
    ReportPaid,
    ReportPending,
)
from order_service.domain.order import RELEASE, Compensation
from order_service.domain.saga import Decision
from tests import builders
from tests.builders import apply, menu_rejected, new_order

__all__ = ["apply", "new_order"]

NOW, TOTAL, POLICY = builders.NOW, builders.TOTAL, builders.policy()
DISH_1, DISH_2, DISH_3 = builders.NASI_AYAM, builders.KWETIAU, builders.ES_TEH
after, reserved, completed = builders.order_after, builders.menu_reserved, builders.payment_completed
OUT_OF_STOCK = menu_rejected()
DECLINED = PaymentFailed("card declined")
PUT_PAID, PUT_FAILED, PUT_PENDING, CANCEL = ReportPaid(), ReportFailed(), ReportPending(), Cancel()
MENU_DEADLINE, PAYMENT_DEADLINE = MenuDeadline(), PaymentDeadline()


def compensations(*decisions: Decision) -> list[Compensation]:
    return [effect for decision in decisions for effect in decision.effects if isinstance(effect, Compensation)]


def told(decision: Decision) -> str:
    """A decision in one line: `state: effects -> outcome`, ids of reservations and payments in short."""
    effects = [_in_short(effect) if isinstance(effect, Compensation) else effect.value for effect in decision.effects]
    outcome = f" -> {decision.outcome}" if decision.outcome else ""
    return f"{decision.after}: {', '.join(effects) or 'nothing'}{outcome}"


def _in_short(wanted: Compensation) -> str:
    if wanted.type == RELEASE:
        return f"release {wanted.subject}"
    return f"refund {wanted.subject} {wanted.amount}"
