"""Any sequence of messages, held against the first deciding moment and the siblings' books.

The default run is the same every time. SAGA_EXAMPLES=100000 looks further, at random.
"""

import itertools
import os
from collections import defaultdict
from decimal import Decimal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from order_service.domain.messages import MenuRejected
from tests.unit.given import (
    CANCEL,
    DECLINED,
    DISH_1,
    DISH_2,
    DISH_3,
    MENU_DEADLINE,
    OUT_OF_STOCK,
    PAYMENT_DEADLINE,
    PUT_FAILED,
    PUT_PAID,
    PUT_PENDING,
    TOTAL,
    completed,
    reserved,
)
from tests.unit.saga_oracle import Confirm, watch

#: What runs in less than ten seconds.
EXAMPLES = int(os.environ.get("SAGA_EXAMPLES", "3000"))
repeatable = settings(
    max_examples=EXAMPLES,
    derandomize="SAGA_EXAMPLES" not in os.environ,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)

AMOUNTS = [TOTAL, Decimal("56000.00"), Decimal("55999.99"), Decimal(112000)]
RESERVATIONS = st.builds(reserved, st.sampled_from([None, "R1", "R2"]))
UNUSABLE = st.builds(
    lambda id, items: reserved(id, *items),
    st.sampled_from([None, "R1", "R2"]),
    st.sampled_from([(DISH_1,), (DISH_1, DISH_3), (DISH_1, DISH_2, DISH_3), (DISH_1, DISH_1, DISH_2)]),
)
PAYMENTS = st.builds(completed, st.sampled_from(["P1", "P2", "P3"]), st.sampled_from(AMOUNTS))
ENDS = st.sampled_from(
    [OUT_OF_STOCK, MenuRejected("menu_not_found", 1), DECLINED, PUT_FAILED, CANCEL, MENU_DEADLINE, PAYMENT_DEADLINE]
)
#: Ends are rarer than what they put an end to: most sequences get somewhere first.
STEPS = st.one_of(
    RESERVATIONS,
    RESERVATIONS,
    PAYMENTS,
    PAYMENTS,
    st.sampled_from([PUT_PAID, PUT_PAID, PUT_PENDING]),
    st.one_of(UNUSABLE, ENDS, st.builds(Confirm, st.integers(0, 4))),
)
EXPECTED_TOTALS = st.sampled_from([None, None, None, TOTAL, Decimal("56000.0"), Decimal(55000)])


@repeatable
@given(st.lists(STEPS, max_size=12), EXPECTED_TOTALS, st.booleans(), st.booleans())
def test_the_first_deciding_moment_decides_and_the_books_balance(steps, expected_total, early, prompt):
    watch(steps, expected_total=expected_total, early=early, prompt=prompt)


#: What all short sequences are made of.
POOL = {
    "reserved R1": reserved("R1"),
    "reserved R2": reserved("R2"),
    "reserved": reserved(None),
    "rejected": OUT_OF_STOCK,
    "P1 right": completed("P1"),
    "P2 right": completed("P2"),
    "P1 wrong": completed("P1", 1),
    "PUT paid": PUT_PAID,
    "PUT failed": PUT_FAILED,
    "declined": DECLINED,
    "cancel": CANCEL,
    "menu deadline": MENU_DEADLINE,
    "payment deadline": PAYMENT_DEADLINE,
}
#: Sets that leave no choice, and where they end, by the design's words.
DECIDED = {
    ("reserved R1",): "pending",
    ("P1 right", "P2 right", "PUT paid"): "pending",
    ("reserved R1", "reserved R2", "reserved"): "pending",
    ("reserved R1", "P1 right"): "paid",
    ("reserved", "P1 right"): "paid",
    ("reserved R1", "PUT paid"): "paid",
    ("reserved R1", "P1 right", "P1 right"): "paid",
    ("reserved R1", "P1 right", "P2 right"): "paid",
    ("reserved R1", "P1 right", "PUT paid"): "paid",
    ("reserved R1", "P1 right", "P2 right", "PUT paid"): "paid",
    ("reserved R1", "reserved R2", "P1 right", "PUT paid"): "paid",
    ("reserved", "reserved R1", "reserved R2", "P1 right"): "paid",
    ("reserved R1", "P1 wrong"): "failed",
    ("reserved R1", "reserved R2", "P1 wrong"): "failed",
    ("rejected",): "failed",
    ("rejected", "reserved R1"): "failed",
    ("rejected", "P1 right"): "failed",
    ("rejected", "P1 right", "PUT paid"): "failed",
    ("rejected", "declined", "PUT failed", "menu deadline"): "failed",
    ("declined", "reserved R1"): "failed",
    ("PUT failed", "P1 right", "P2 right"): "failed",
    ("menu deadline", "P1 right"): "failed",
    ("cancel",): "cancelled",
    ("cancel", "reserved R1", "reserved R2"): "cancelled",
    ("cancel", "P1 right", "PUT paid"): "cancelled",
}


@pytest.mark.parametrize(("names", "status"), DECIDED.items(), ids=[" + ".join(names) for names in DECIDED])
def test_a_set_that_leaves_no_choice_ends_alike_in_every_order(names: tuple[str, ...], status: str):
    endings = {watch([POOL[name] for name in order]).order.state.status for order in itertools.permutations(names)}

    assert endings == {status}


def test_every_sequence_of_up_to_four_messages_agrees_with_the_oracle():
    endings = defaultdict(set)
    reasons = set()

    for length in range(5):
        for names in itertools.product(POOL, repeat=length):
            order = watch([POOL[name] for name in names], early=True, prompt=False).order
            endings[tuple(sorted(names))].add(order.state.status)
            reasons.add(order.reason)

    assert len(endings) == 2380
    assert reasons == {None, "out_of_stock", "payment_failed", "amount_mismatch", "expired"}
    for names, status in DECIDED.items():
        assert endings[tuple(sorted(names))] == {status}
