"""A second implementation of the saga, written from the design's words and not from the decision table.

`Oracle` knows only the rule of the first deciding event; `MenuLedger` and `PaymentLedger` are what the siblings hold.
`compare` applies a sequence of messages to an order and to all three, and compares them after every message.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime
from decimal import Decimal
from operator import attrgetter

from order_service.domain import order as domain
from order_service.domain.messages import (
    Cancel,
    MenuDeadline,
    MenuRejected,
    MenuReserved,
    Message,
    PaymentCompleted,
    PaymentDeadline,
    PaymentFailed,
    PaymentRefunded,
    ReportFailed,
    ReportPaid,
    ReportPending,
    StockReleased,
)
from order_service.domain.order import FINAL, REFUND, RELEASE, Announcement, Compensation, InvalidMessage, Order
from order_service.domain.saga import Decision, decide
from tests.builders import NOW, compensations, confirmation, new_order, policy

POLICY = policy()


@dataclass(frozen=True)
class Confirm:
    """The sibling confirms the nth request made so far; an unknown id if there are fewer.

    Crossed, a release is confirmed as a refund, and a refund as a release.
    """

    nth: int
    is_crossed: bool = False


Step = Message | Confirm
SENT_BY_SIBLINGS = (MenuReserved, MenuRejected, PaymentCompleted, PaymentFailed)
#: The status that a caller's request asks for.
REQUESTED_STATUS: dict[type[Step], str] = {
    ReportPaid: "paid", ReportFailed: "failed", ReportPending: "pending", Cancel: "cancelled"
}  # fmt: skip
#: Every field of an order that a message may change, except its version.
facts = attrgetter(*(each.name for each in fields(Order) if each.name not in {"version", "effects"}))
FINAL_EVENTS = {"paid": "OrderPaid", "failed": "OrderFailed", "cancelled": "OrderCancelled"}


def covers_order(message: MenuReserved) -> bool:
    """Whether it has one entry for each of the two dishes that every order here is for."""
    return sorted(item.id for item in message.items) == [1, 2]


def total_of(message: MenuReserved) -> Decimal:
    """The total of two of dish 1 and one of dish 2, as every order here is for."""
    prices = {item.id: item.price for item in message.items}
    return 2 * prices[1] + prices[2]


@dataclass
class Oracle:
    """Status and reason by the first deciding event, the outcome for a caller, and which deadline is armed."""

    expected_total: Decimal | None = None
    status: str = "pending"
    reason: str | None = None
    #: The reservation that priced the order, and its total.
    reserved: MenuReserved | None = None
    total: Decimal | None = None
    #: The menu has answered, or its time is up.
    menu_done: bool = False
    #: In order of arrival, by first amount; a payment reported by a caller is (None, None).
    payments: list[tuple[str | None, Decimal | None]] = field(default_factory=list)

    def is_invalid(self, message: Step) -> bool:
        """Only the items of the reservation that would price the order are read."""
        is_read = self.status == "pending" and not self.reserved
        return is_read and isinstance(message, MenuReserved) and not covers_order(message)

    def apply(self, message: Step) -> str | None:
        """Apply one message; return the outcome for the caller who sent it."""
        was_pending = self.status == "pending"
        if was_pending:
            self._decide(message)
        if isinstance(message, MenuReserved | MenuRejected | MenuDeadline):
            self.menu_done = True
        return self._outcome(message, was_pending=was_pending)

    def _decide(self, message: Step) -> None:
        match message:
            case MenuRejected():
                self._end("failed", message.reason)
            case PaymentFailed() | ReportFailed() if not self.payments:
                self._end("failed", "payment_failed")
            case Cancel():
                self._end("cancelled", None)
            case MenuDeadline() if not self.reserved:
                self._end("failed", "expired")
            case PaymentDeadline() if self.reserved:
                self._end("failed", "expired")
            case MenuReserved() if not self.reserved:
                self.reserved, self.total = message, total_of(message)
                if self.expected_total in (None, self.total):
                    self._judge()
                else:
                    self._end("failed", "price_changed")
            case PaymentCompleted(payment_id, amount):
                self._remember(payment_id, amount)
            case ReportPaid():
                self._remember(None, None)

    def _remember(self, payment_id: str | None, amount: Decimal | None) -> None:
        if payment_id not in {id for id, _ in self.payments}:
            self.payments.append((payment_id, amount))
        self._judge()

    def _judge(self) -> None:
        if self.reserved and (self.payments or self.total == 0):
            if not self.payments or self.payments[0][1] in (None, self.total):
                self._end("paid", None)
            else:
                self._end("failed", "amount_mismatch")

    def _end(self, status: str, reason: str | None) -> None:
        self.status, self.reason = status, reason

    def _outcome(self, message: Step, *, was_pending: bool) -> str | None:
        requested = REQUESTED_STATUS.get(type(message))
        if requested is None:
            return None
        if requested == "paid" and was_pending and self.status == "pending":
            return "remembered"
        return "done" if self.status == requested else "refused"

    @property
    def is_armed(self) -> bool:
        """Whether a deadline is armed: the menu's until it is done, the payment's while a reserved order is pending."""
        if self.reserved:
            return self.status == "pending"
        return self.status != "paid" and not self.menu_done

    @property
    def due_at(self) -> datetime | None:
        # The first deadline is that of a reminder, the payment's halfway to its last one.
        return NOW + (POLICY.payment / 2 if self.reserved else POLICY.menu_reply) if self.is_armed else None


@dataclass
class MenuLedger:
    """What the Menu Service holds for the order, by reservation; each is released once."""

    held: dict[str, bool] = field(default_factory=dict)
    closed: bool = False

    def reserve(self, reservation_id: str | None) -> None:
        """Hold stock; a nameless reservation is the same one as the first named one before or after it."""
        if reservation_id is None:
            if not self.held:
                self.held["nameless"] = not self.closed
        elif reservation_id not in self.held:
            self.held[reservation_id] = self.held.pop("nameless", not self.closed)

    def release(self, request: Compensation) -> None:
        """Release one reservation; without a subject, release all and hold nothing more for this order."""
        if request.subject is None:
            self.closed = True
            self.held = dict.fromkeys(self.held, False)
        elif request.subject in self.held:
            self.held[request.subject] = False

    @property
    def stock_held(self) -> int:
        return sum(self.held.values())


@dataclass
class PaymentLedger:
    """What the Payment Service keeps for the order, by payment; one that a caller reported has no id yet."""

    #: The amounts; that of a reported payment is the order's total, which may not be known yet.
    kept: dict[str | None, Decimal | None] = field(default_factory=dict)
    known: dict[str | None, Decimal | None] = field(default_factory=dict)

    def take(self, payment_id: str | None, amount: Decimal | None) -> None:
        if payment_id not in self.known:
            self.known[payment_id] = self.kept[payment_id] = amount

    def refund(self, request: Compensation) -> None:
        """Refund one payment; without a subject, all that was paid for the order."""
        if request.subject is None:
            self.kept.clear()
        else:
            self.kept.pop(request.subject, None)

    def settle(self, total: Decimal | None) -> str | None:
        """Return the id of the payment that pays the order; the first of the total names a reported one."""
        first, *later = self.known
        named = first or next((id for id in later if self.known[id] == total), None)
        if named:
            self.kept.pop(None, None)
        return named


@dataclass
class Comparison:
    """One order under test with its oracle and its siblings' ledgers."""

    order: Order
    oracle: Oracle
    #: All stock is reserved before the first delivery; otherwise each reservation is made as it is delivered.
    reserved_first: bool
    #: The siblings compensate as soon as they are asked; otherwise after the last message.
    compensated_at_once: bool
    menu: MenuLedger = field(default_factory=MenuLedger)
    payment: PaymentLedger = field(default_factory=PaymentLedger)
    requested: list[Compensation] = field(default_factory=list)
    #: The siblings' messages that changed nothing when they came.
    ignored: list[Message] = field(default_factory=list)

    def run(self, steps: Sequence[Step]) -> None:
        if self.reserved_first:
            for step in steps:
                if isinstance(step, MenuReserved) and covers_order(step):
                    self.menu.reserve(step.reservation_id)
        for step in steps:
            # A closed menu reserves nothing more: such a message would not exist.
            if self.reserved_first or not (isinstance(step, MenuReserved) and self.menu.closed):
                self.step(step)
        if not self.compensated_at_once:
            self._compensate(self.requested)
        self._check_ledgers()
        # A message that changed nothing has no effect at any later time either, so it need not be remembered.
        for message in self.ignored:
            assert not decide(copy.copy(self.order), message, policy=POLICY, now=NOW).changed

    def step(self, step: Step) -> None:
        order_before, oracle_before = copy.copy(self.order), copy.copy(self.oracle)
        too_many = self._is_too_many(step)
        invalid = too_many or self.oracle.is_invalid(step) or (isinstance(step, Confirm) and self._is_unknown(step))
        try:
            decision = decide(self.order, self._message(step), policy=POLICY, now=NOW)
        except InvalidMessage:
            assert invalid, f"{step} was refused"
            assert (self.order, self.order.effects) == (order_before, [])
            if too_many:
                # Without the bound it would have decided nothing either.
                self.oracle.apply(step)
                assert (self.order.state.status, self.order.reason) == (self.oracle.status, self.oracle.reason)
            return
        assert not invalid, f"{step} was accepted"
        outcome = self.oracle.apply(step)
        assert decision.outcome == outcome
        if isinstance(step, SENT_BY_SIBLINGS) and not decision.changed:
            self.ignored.append(step)
        self._check_order(decision, order_before)
        self._update_ledgers(step, outcome)
        self._check_effects(step, decision, oracle_before)

    def _check_order(self, decision: Decision, before: Order) -> None:
        order, oracle = self.order, self.oracle
        assert (order.state.status, order.reason, order.due_at) == (oracle.status, oracle.reason, oracle.due_at)
        assert (order.items, order.total_price) == (oracle.reserved.items if oracle.reserved else (), oracle.total)
        assert order.paid_at == (NOW if oracle.status == "paid" else None)
        assert before.state not in FINAL or order.detail == before.detail
        # Raises TypeError for a mutable value, whose change in place would not be recognized as a change.
        hash(facts(order))
        assert decision.changed == (facts(order) != facts(before))
        assert decision.changed or not decision.effects
        assert order.version == before.version + decision.changed

    def _is_too_many(self, step: Step) -> bool:
        """Whether it is a new reservation or payment beyond the bound; the payment that names a reported one is not."""
        held, known = self.menu.held, self.payment.known
        match step:
            case MenuReserved(_, str(id)):
                return len(held.keys() | {id}) > domain.MAX_RESERVATIONS and not held.keys() & {id, "nameless"}
            case PaymentCompleted(id, amount) if len(known.keys() - {None, id}) >= domain.MAX_PAYMENTS:
                is_reported = self.oracle.status == "paid" and next(iter(known)) is None and amount == self.oracle.total
                return id not in known and not (is_reported and self.payment.settle(self.oracle.total) is None)
        return False

    def _is_unknown(self, step: Confirm) -> bool:
        return step.is_crossed or step.nth >= len(self.requested)

    def _message(self, step: Step) -> Message:
        if not isinstance(step, Confirm):
            return step
        if step.nth >= len(self.requested):
            return StockReleased("unknown") if step.nth % 2 else PaymentRefunded("unknown")
        request = self.requested[step.nth]
        if step.is_crossed:
            return PaymentRefunded(request.id) if request.type == RELEASE else StockReleased(request.id)
        return confirmation(request)

    def _update_ledgers(self, step: Step, outcome: str | None) -> None:
        if isinstance(step, MenuReserved):
            self.menu.reserve(step.reservation_id)
        if isinstance(step, PaymentCompleted):
            self.payment.take(step.payment_id, step.amount)
        # A refused report was not taken, and a report of what an order is paid with is not a second payment.
        if isinstance(step, ReportPaid) and (outcome == "remembered" or (outcome == "done" and not self.payment.known)):
            self.payment.take(None, None)
        if self.oracle.status == "paid" and not self.payment.known:
            # A free order needs no payment: one without an id is kept.
            self.payment.take(None, None)

    def _check_effects(self, step: Step, decision: Decision, oracle_before: Oracle) -> None:
        requested = compensations(decision)
        announced = [effect for effect in decision.effects if isinstance(effect, Announcement)]
        assert announced == self._expected_announcements(oracle_before)
        self.requested += requested
        assert len({(each.type, each.subject) for each in self.requested}) == len(self.requested)
        assert all(each.id == self.order.compensation_id(each.type, each.subject) for each in requested)
        if isinstance(step, MenuDeadline):
            null_releases = [each for each in requested if each.type == RELEASE and each.subject is None]
            assert len(null_releases) == (oracle_before.is_armed and not oracle_before.reserved)
            assert null_releases or not decision.effects
        if isinstance(step, Confirm):
            assert (decision.changed, decision.effects) == (False, ())
        if self.oracle.status == "pending":
            assert all(each.type == RELEASE and each.subject is not None for each in requested)
        if self.compensated_at_once:
            self._compensate(requested)

    def _expected_announcements(self, oracle_before: Oracle) -> list[str]:
        """The events that the step from `oracle_before` to the oracle's present state publishes."""
        if self.oracle.status != oracle_before.status:
            return [FINAL_EVENTS[self.oracle.status]]
        return ["PaymentRequested"] if self.oracle.reserved is not oracle_before.reserved else []

    def _compensate(self, requested: list[Compensation]) -> None:
        for each in requested:
            if each.type == RELEASE:
                self.menu.release(each)
            else:
                self.payment.refund(each)

    def _check_ledgers(self) -> None:
        """A paid order holds its stock and its money, a pending one all that came, an ended one nothing."""
        pending, paid = self.oracle.status == "pending", self.oracle.status == "paid"
        refunds = {each.subject: each.amount for each in self.requested if each.type == REFUND}
        assert self.menu.stock_held == (paid or (pending and self.oracle.reserved is not None))
        assert all(amount == (subject and self.payment.known[subject]) for subject, amount in refunds.items())
        if pending:
            assert refunds == {}
        elif paid:
            total = self.oracle.total
            assert self.order.payments[0].id == self.payment.settle(total)
            assert [total if amount is None else amount for amount in self.payment.kept.values()] == [total]
        else:
            assert self.payment.kept == {}
            assert refunds.keys() == self.payment.known.keys()


def compare(
    steps: Sequence[Step],
    *,
    expected_total: Decimal | None = None,
    reserved_first: bool = False,
    compensated_at_once: bool = True,
) -> Order:
    """Apply the steps and return the order; fail where it differs from the oracle and the ledgers."""
    order = new_order(expected_total=expected_total)
    Comparison(order, Oracle(expected_total), reserved_first, compensated_at_once).run(steps)
    return order
