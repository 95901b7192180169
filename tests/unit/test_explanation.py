"""What an order waits for, in words: each state and cause, in both languages."""

from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from order_service.domain.explanation import Cause, Facts, Unsent, duration, explain, rupiah
from order_service.domain.messages import Cancel, Message
from tests import builders
from tests.builders import NOW

LATER = NOW + timedelta(seconds=12)


def facts(*messages: Message, left: int | None = None, **more: Any) -> Facts:
    """The facts 12 s after an order was placed and these messages were applied, with this number of reminders left."""
    order = builders.order_after(*messages)
    if left is not None:
        order.reminders_left = left
    return Facts(order, builders.policy(), LATER, since=NOW, **more)


UNSENT, RETURNED = Unsent(NOW, 0, LATER), Unsent(NOW, 3, LATER + timedelta(seconds=4))
RESERVED, PAID = builders.menu_reserved(), builders.payment_completed()
CASES = [
    (facts(), Cause.ON_TIME, "menu", [
        "Order 7 waits for the Menu Service to reserve its dishes, since 2025-03-01T12:00:00Z (12 s ago).",
        "OrderCreated is sent again at 2025-03-01T12:00:30Z (in 18 s), at most 3 more times.",
        "The order expires at 2025-03-01T12:02:00Z (in 1 min)."]),
    (facts(left=2, answers={"menu": NOW}), Cause.SILENT, "menu", [
        "OrderCreated was sent and repeated, but the Menu Service has not answered.",
        "The Menu Service last answered an order at 2025-03-01T12:00:00Z (12 s ago)."]),
    (facts(unsent=UNSENT), Cause.UNSENT, "menu", ["OrderCreated has been in the outbox since 2025-03-01T12:00:00Z"]),
    (facts(unsent=replace(UNSENT, since=LATER)), Cause.ON_TIME, "menu", ["Order 7 waits"]),
    (facts(unsent=RETURNED), Cause.RETURNED, "menu", ["refused OrderCreated 3 times", "again at 2025-03-01T12:00:16Z"]),
    (facts(PAID), Cause.ON_TIME, "menu", ["Order 7 has a payment, and waits for the Menu Service"]),
    (facts(RESERVED), Cause.ON_TIME, "payment", [
        "Order 7 waits for the payment of Rp56.000", "PaymentRequested is sent again at 2025-03-01T12:07:30Z (in 7 min)",
        "The Payment Service has not answered any order recently.", "expires at 2025-03-01T12:15:00Z (in 14 min)."]),
    (facts(RESERVED, left=0), Cause.SILENT, "payment", ["PaymentRequested was sent and repeated"]),
    (facts(RESERVED, PAID), Cause.ENDED, None, ["Order 7 was paid at 2025-03-01T12:00:00Z."]),
    (facts(builders.payment_failed()), Cause.ENDED, None, ["failed at 2025-03-01T12:00:00Z (payment_failed)."]),
    (facts(Cancel(), unconfirmed_compensations=2), Cause.ENDED, None, [
        "Order 7 was cancelled", "2 releases or refunds are not confirmed yet."]),
]  # fmt: skip


@pytest.mark.parametrize(("found", "cause", "waits_for", "sentences"), CASES)
def test_explanation_names_cause_times_and_the_other_side(
    found: Facts, cause: Cause, waits_for: str | None, sentences: list[str]
) -> None:
    text = explain(found, english=True)

    assert (found.cause, found.waits_for) == (cause, waits_for)
    assert [sentence for sentence in sentences if sentence not in text] == []
    assert "None" not in text


@pytest.mark.parametrize("found", [case[0] for case in CASES])
def test_indonesian_explanation_has_the_same_times_and_names(found: Facts) -> None:
    english, indonesian = (set(explain(found, english=each).split()) for each in (True, False))

    def facts_in(words: set[str]) -> set[str]:
        return {
            word.strip("().,") for word in words if any(c.isdigit() for c in word) or word[:5] in ("Order", "Payme")
        }

    assert facts_in(english) - {"Order"} == facts_in(indonesian)


def test_passed_deadline_is_the_first_cause_and_promises_nothing() -> None:
    found = replace(facts(unsent=UNSENT), now=NOW + timedelta(minutes=1))

    text = explain(found, english=True)

    assert found.cause is Cause.OVERDUE
    assert "Its deadline passed at 2025-03-01T12:00:30Z (30 s ago), and nothing happened" in text
    assert "is sent again" not in text
    assert "expires" not in text


@pytest.mark.parametrize(
    ("seconds", "text"), [(-3, "0 s"), (59.9, "59 s"), (60, "1 min"), (7200, "2 h"), (200_000, "2 d")]
)
def test_duration_has_one_unit(seconds: float, text: str) -> None:
    assert duration(timedelta(seconds=seconds)) == text


@pytest.mark.parametrize(
    ("amount", "text"), [("0", "Rp0"), ("62000.00", "Rp62.000"), ("1E+6", "Rp1.000.000"), ("1234.5", "Rp1.234,5")]
)
def test_amounts_are_written_as_in_indonesia(amount: str, text: str) -> None:
    assert rupiah(Decimal(amount)) == text
