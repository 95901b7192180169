"""Any sequence of messages, compared with the first deciding event and the siblings' ledgers.

The default run generates the same sequences every time. SAGA_EXAMPLES=100000 generates more, at random.
"""

import itertools
import os
from collections import defaultdict
from decimal import Decimal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from order_service.domain import order
from order_service.domain.messages import (
    Cancel,
    MenuDeadline,
    Message,
    PaymentDeadline,
    ReportFailed,
    ReportPaid,
    ReportPending,
)
from tests.builders import (
    ES_TEH,
    FREE,
    KWETIAU,
    NASI_AYAM,
    TOTAL,
    menu_rejected,
    menu_reserved,
    payment_completed,
    payment_failed,
)
from tests.unit.saga_oracle import Confirm, Step, compare

#: Takes less than ten seconds.
EXAMPLES = int(os.environ.get("SAGA_EXAMPLES", "3000"))
repeatable = settings(
    max_examples=EXAMPLES,
    derandomize="SAGA_EXAMPLES" not in os.environ,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)

AMOUNTS = [TOTAL, Decimal("56000.00"), Decimal("56000.0001"), Decimal("55999.99"), Decimal(55000), Decimal(0)]
INVALID_ITEMS = [(NASI_AYAM,), (NASI_AYAM, ES_TEH), (NASI_AYAM, KWETIAU, ES_TEH), (NASI_AYAM, NASI_AYAM, KWETIAU)]
RESERVATION_IDS = st.sampled_from([None, "R1", "R2"])
RESERVATIONS = st.builds(
    lambda id, items: menu_reserved(id, *items), RESERVATION_IDS, st.sampled_from([(), (), (), FREE])
)
INVALID_RESERVATIONS = st.builds(
    lambda id, items: menu_reserved(id, *items), RESERVATION_IDS, st.sampled_from(INVALID_ITEMS)
)
PAYMENTS = st.builds(payment_completed, st.sampled_from(["P1", "P2", "P3"]), st.sampled_from(AMOUNTS))
REPORTS: list[Message] = [ReportPaid(), ReportPaid(), ReportPending()]
ENDS: list[Message] = [
    menu_rejected(), menu_rejected("menu_not_found", 1), payment_failed(), ReportFailed(), Cancel(), MenuDeadline(),
    PaymentDeadline(),
]  # fmt: skip
#: Messages that end an order are rarer than the others, so that most sequences are not ended by their first message.
STEPS: st.SearchStrategy[Step] = st.one_of(
    RESERVATIONS,
    RESERVATIONS,
    PAYMENTS,
    PAYMENTS,
    st.sampled_from(REPORTS),
    st.one_of(INVALID_RESERVATIONS, st.sampled_from(ENDS), st.builds(Confirm, st.integers(0, 4), st.booleans())),
)
EXPECTED_TOTALS = st.sampled_from([None, None, None, TOTAL, Decimal("56000.0"), Decimal(55000), Decimal(0)])


@repeatable
@given(st.lists(STEPS, max_size=12), EXPECTED_TOTALS, st.booleans(), st.booleans())
def test_the_first_deciding_event_decides_and_the_ledgers_balance(
    steps: list[Step], expected_total: Decimal | None, reserved_first: bool, compensated_at_once: bool
) -> None:
    compare(
        steps, expected_total=expected_total, reserved_first=reserved_first, compensated_at_once=compensated_at_once
    )


@settings(repeatable, max_examples=EXAMPLES // 6)
@given(st.lists(STEPS, max_size=12), EXPECTED_TOTALS, st.integers(1, 2), st.booleans())
def test_reservations_and_payments_beyond_the_bounds_decide_nothing(
    steps: list[Step], expected_total: Decimal | None, bound: int, compensated_at_once: bool
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(order, "MAX_RESERVATIONS", 1)
        patch.setattr(order, "MAX_PAYMENTS", bound)
        compare(steps, expected_total=expected_total, compensated_at_once=compensated_at_once)


#: The messages of which all short sequences are made.
POOL: dict[str, Message] = {
    "reserved R1": menu_reserved("R1"),
    "reserved R2": menu_reserved("R2"),
    "reserved": menu_reserved(None),
    "reserved free": menu_reserved("R1", *FREE),
    "rejected": menu_rejected(),
    "P1 right": payment_completed("P1"),
    "P2 right": payment_completed("P2"),
    "P1 wrong": payment_completed("P1", 1),
    "report paid": ReportPaid(),
    "report failed": ReportFailed(),
    "declined": payment_failed(),
    "cancel": Cancel(),
    "menu deadline": MenuDeadline(),
    "payment deadline": PaymentDeadline(),
}
#: Sets of messages that lead to one status in any order, as the design has it.
DECIDED = {
    ("reserved R1",): "pending",
    ("P1 right", "P2 right", "report paid"): "pending",
    ("reserved R1", "reserved R2", "reserved"): "pending",
    ("reserved R1", "P1 right"): "paid",
    ("reserved", "P1 right"): "paid",
    ("reserved R1", "report paid"): "paid",
    ("reserved R1", "P1 right", "P1 right"): "paid",
    ("reserved R1", "P1 right", "P2 right"): "paid",
    ("reserved R1", "P1 right", "report paid"): "paid",
    ("reserved R1", "P1 right", "P2 right", "report paid"): "paid",
    ("reserved R1", "reserved R2", "P1 right", "report paid"): "paid",
    ("reserved", "reserved R1", "reserved R2", "P1 right"): "paid",
    ("reserved free",): "paid",
    ("reserved free", "payment deadline", "report paid"): "paid",
    ("reserved R1", "P1 wrong"): "failed",
    ("reserved R1", "reserved R2", "P1 wrong"): "failed",
    ("rejected",): "failed",
    ("rejected", "reserved R1"): "failed",
    ("rejected", "P1 right"): "failed",
    ("rejected", "P1 right", "report paid"): "failed",
    ("rejected", "declined", "report failed", "menu deadline"): "failed",
    ("declined", "reserved R1"): "failed",
    ("report failed", "reserved R1", "reserved R2"): "failed",
    ("menu deadline", "P1 right"): "failed",
    ("cancel",): "cancelled",
    ("cancel", "reserved R1", "reserved R2"): "cancelled",
    ("cancel", "P1 right", "report paid"): "cancelled",
}


def test_every_sequence_of_up_to_four_messages_agrees_with_the_oracle() -> None:
    statuses = defaultdict(set)
    reasons = set()

    for names in itertools.chain.from_iterable(itertools.product(POOL, repeat=length) for length in range(5)):
        order = compare([POOL[name] for name in names], reserved_first=True, compensated_at_once=False)
        statuses[tuple(sorted(names))].add(order.state.status)
        reasons.add(order.reason)

    assert len(statuses) == 3060
    assert reasons == {None, "out_of_stock", "payment_failed", "amount_mismatch", "expired"}
    for names, status in DECIDED.items():
        assert statuses[tuple(sorted(names))] == {status}
