"""A second opinion on the saga, written from the design's words and not from the decision table.

`Oracle` knows only the rule of the first deciding moment; `MenuBooks` and `PaymentBooks` are the siblings' ledgers.
`watch` plays a sequence of messages to the product's order and to all three, and compares them after every message.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal

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
from order_service.domain.order import REFUND, RELEASE, Announcement, Compensation, InvalidMessage, Order
from order_service.domain.saga import Decision, decide
from tests.unit.given import NOW, POLICY, TOTAL, new_order


@dataclass(frozen=True)
class Confirm:
    """The sibling confirms the nth request made so far; an id never heard of if there are fewer."""

    nth: int


Step = Message | Confirm


def covers(message: MenuReserved) -> bool:
    """One entry for each of the two dishes that every order here is for."""
    return sorted(item.id for item in message.items) == [1, 2]


@dataclass
class Oracle:
    """Status and reason by the first deciding moment, the REST answer, and which deadline runs."""

    expected_total: Decimal | None = None
    status: str = "pending"
    reason: str | None = None
    reserved: bool = False
    #: The menu has answered, or its time is up: nothing waits for it any more.
    menu_done: bool = False
    #: In order of arrival, by first amount; a PUT paid is (None, None).
    payments: list[tuple[str | None, Decimal | None]] = field(default_factory=list)

    def is_unusable(self, message: Step) -> bool:
        """Only the reservation that would price the order is read."""
        is_read = self.status == "pending" and not self.reserved
        return is_read and isinstance(message, MenuReserved) and not covers(message)

    def hear(self, message: Step) -> str | None:
        """Take one message in; returns the HTTP status a REST caller should get."""
        was_pending = self.status == "pending"
        if was_pending:
            self._decide(message)
        if isinstance(message, MenuReserved | MenuRejected | MenuDeadline):
            self.menu_done = True
        return self._answer(message, was_pending=was_pending)

    def _decide(self, message: Step) -> None:
        match message:
            case MenuRejected():
                self._end("failed", message.reason)
            case PaymentFailed() | ReportFailed():
                self._end("failed", "payment_failed")
            case Cancel():
                self._end("cancelled", None)
            case MenuDeadline() if not self.reserved:
                self._end("failed", "expired")
            case PaymentDeadline() if self.reserved:
                self._end("failed", "expired")
            case MenuReserved() if not self.reserved:
                self.reserved = True
                if self.expected_total is not None and self.expected_total != TOTAL:
                    self._end("failed", "price_changed")
                    return
                self._judge()
            case PaymentCompleted() | ReportPaid():
                self._remember(message)
                self._judge()

    def _remember(self, message: PaymentCompleted | ReportPaid) -> None:
        named = isinstance(message, PaymentCompleted)
        payment = (message.payment_id, message.amount) if named else (None, None)
        if payment[0] not in {id for id, _ in self.payments}:
            self.payments.append(payment)

    def _judge(self) -> None:
        if self.reserved and self.payments:
            amount = self.payments[0][1]
            if amount is None or amount == TOTAL:
                self._end("paid", None)
            else:
                self._end("failed", "amount_mismatch")

    def _end(self, status: str, reason: str | None) -> None:
        self.status, self.reason = status, reason

    def _answer(self, message: Step, *, was_pending: bool) -> str | None:
        wanted = {ReportPaid: "paid", ReportFailed: "failed", ReportPending: "pending", Cancel: "cancelled"}.get(
            type(message)
        )
        if wanted is None:
            return None
        if wanted == "paid" and was_pending and self.status == "pending":
            return "remembered"
        return "done" if self.status == wanted else "refused"

    @property
    def is_armed(self) -> bool:
        """A deadline runs: the menu's until it is done, the payment's while a reserved order is pending."""
        if self.reserved:
            return self.status == "pending"
        return self.status != "paid" and not self.menu_done


@dataclass
class MenuBooks:
    """What the Menu Service holds for the order, by reservation; each is given back once."""

    held: dict[str, bool] = field(default_factory=dict)
    closed: bool = False

    def publish(self, reservation_id: str | None) -> None:
        """A nameless reservation and the first id after it are one and the same, and so is an id and a nameless."""
        if reservation_id is None:
            if not self.held:
                self.held["nameless"] = not self.closed
        elif reservation_id not in self.held:
            self.held[reservation_id] = self.held.pop("nameless", not self.closed)

    def release(self, wanted: Compensation) -> None:
        """Null: everything is given back, and nothing more will be held."""
        if wanted.subject is None:
            self.closed = True
            self.held = dict.fromkeys(self.held, False)
        elif wanted.subject in self.held:
            self.held[wanted.subject] = False

    @property
    def stock_held(self) -> int:
        return sum(self.held.values())


@dataclass
class PaymentBooks:
    """What the Payment Service keeps for the order, by payment; what a PUT paid stands for has no id yet."""

    kept: dict[str | None, Decimal] = field(default_factory=dict)
    known: dict[str | None, Decimal] = field(default_factory=dict)

    def take(self, payment_id: str | None, amount: Decimal) -> None:
        if payment_id not in self.known:
            self.known[payment_id] = self.kept[payment_id] = amount

    def refund(self, wanted: Compensation) -> None:
        """Null: whatever was paid for the order is given back."""
        if wanted.subject is None:
            self.kept.clear()
        else:
            self.kept.pop(wanted.subject, None)

    def settle(self) -> str | None:
        """The order is paid: by whose payment? What a PUT paid stood for turns out to be a named one, if it is."""
        first, *later = self.known
        namesakes = [] if first else [id for id in later if self.known[id] == TOTAL]
        if first or namesakes:
            self.kept.pop(None, None)
        return namesakes[0] if namesakes else first


@dataclass
class Watch:
    """One order under test with its oracle and its siblings' books."""

    order: Order
    oracle: Oracle
    #: Everything was reserved before the first delivery; otherwise a reservation is made as it is delivered.
    early: bool
    #: The siblings do what they are asked at once; otherwise when all is over.
    prompt: bool
    menu: MenuBooks = field(default_factory=MenuBooks)
    payment: PaymentBooks = field(default_factory=PaymentBooks)
    announced: list[Announcement] = field(default_factory=list)
    requested: list[Compensation] = field(default_factory=list)

    def play(self, steps: Sequence[Step]) -> None:
        if self.early:
            for step in steps:
                if isinstance(step, MenuReserved) and covers(step):
                    self.menu.publish(step.reservation_id)
        for step in steps:
            # A closed menu reserves no more: such a message would not exist.
            if self.early or not (isinstance(step, MenuReserved) and self.menu.closed):
                self.step(step)
        if not self.prompt:
            self._compensate(self.requested)
        self._check_the_books()
        self._check_that_confirmations_count()

    def step(self, step: Step) -> None:
        version, before, was = self.order.version, facts(self.order), copy.copy(self.oracle)
        unusable = self.oracle.is_unusable(step) or (isinstance(step, Confirm) and step.nth >= len(self.requested))
        try:
            decision = decide(self.order, self._message(step), policy=POLICY, now=NOW)
        except InvalidMessage:
            assert unusable, f"{step} was refused"
            assert (self.order.version, facts(self.order), self.order.effects) == (version, before, [])
            return
        assert not unusable, f"{step} was taken"
        answer = self.oracle.hear(step)
        assert (self.order.state.status, self.order.reason) == (self.oracle.status, self.oracle.reason)
        assert decision.outcome == answer
        assert (self.order.due_at is not None) == self.oracle.is_armed
        assert decision.changed == (facts(self.order) != before)
        assert self.order.version == version + decision.changed
        self._enter_the_books(step, answer)
        self._check_the_effects(step, decision, was)

    def _message(self, step: Step) -> Message:
        if not isinstance(step, Confirm):
            return step
        if step.nth >= len(self.requested):
            return StockReleased("unheard of") if step.nth % 2 else PaymentRefunded("unheard of")
        return confirmation(self.requested[step.nth])

    def _enter_the_books(self, step: Step, answer: str | None) -> None:
        if isinstance(step, MenuReserved):
            self.menu.publish(step.reservation_id)
        if isinstance(step, PaymentCompleted):
            self.payment.take(step.payment_id, step.amount)
        # 409 was not taken; and what the order already was paid with is not paid again.
        if isinstance(step, ReportPaid) and (answer == "remembered" or (answer == "done" and not self.payment.known)):
            self.payment.take(None, TOTAL)

    def _check_the_effects(self, step: Step, decision: Decision, was: Oracle) -> None:
        requested = [effect for effect in decision.effects if isinstance(effect, Compensation)]
        announced = [effect for effect in decision.effects if isinstance(effect, Announcement)]
        assert announced == self._due_announcements(was)
        self.announced += announced
        self.requested += requested
        assert len({(each.type, each.subject) for each in self.requested}) == len(self.requested)
        assert len({each.id for each in self.requested}) == len(self.requested)
        if isinstance(step, MenuDeadline):
            nulls = [each for each in requested if each.type == RELEASE and each.subject is None]
            assert len(nulls) == (was.is_armed and not was.reserved)
            assert nulls or not decision.effects
        if self.oracle.status == "pending":
            assert all(each.type == RELEASE and each.subject is not None for each in requested)
        if self.prompt:
            self._compensate(requested)

    def _due_announcements(self, was: Oracle) -> list[str]:
        """What the world is told of the step from `was` to the oracle as it is now."""
        if self.oracle.status != was.status:
            return [{"paid": "OrderPaid", "failed": "OrderFailed", "cancelled": "OrderCancelled"}[self.oracle.status]]
        return ["PaymentRequested"] if self.oracle.reserved and not was.reserved else []

    def _compensate(self, requested: list[Compensation]) -> None:
        for wanted in requested:
            if wanted.type == RELEASE:
                self.menu.release(wanted)
            else:
                self.payment.refund(wanted)

    def _check_the_books(self) -> None:
        """Stock is held and money kept for what is paid; for what is pending, all that came; else nothing."""
        pending, paid = self.oracle.status == "pending", self.oracle.status == "paid"
        refunds = {each.subject: each.amount for each in self.requested if each.type == REFUND}
        assert self.menu.stock_held == (paid or (pending and self.oracle.reserved))
        assert all(amount == (subject and self.payment.known[subject]) for subject, amount in refunds.items())
        if pending:
            assert refunds == {}
        elif paid:
            assert self.order.payments[0].id == self.payment.settle()
            assert sum(self.payment.kept.values()) == TOTAL
        else:
            assert self.payment.kept == {}
            assert refunds.keys() == self.payment.known.keys()

    def _check_that_confirmations_count(self) -> None:
        before = facts(self.order)
        for wanted in self.requested:
            decision = decide(self.order, confirmation(wanted), policy=POLICY, now=NOW)
            assert (decision.changed, decision.effects) == (False, ())
        assert facts(self.order) == before


def confirmation(wanted: Compensation) -> Message:
    return StockReleased(wanted.id) if wanted.type == RELEASE else PaymentRefunded(wanted.id)


def facts(order: Order) -> tuple[object, ...]:
    """Everything about an order that a message may change, but for its version."""
    lists = (*order.reservations, "/", *order.payments, "/", *order.released, "/", *order.refunded)
    price = (order.items, order.total_price, order.reason, order.detail, order.rejected_menu_id)
    return order.state, order.due_at, order.paid_at, order.reminders_left, lists, price


def watch(
    steps: Sequence[Step], *, expected_total: Decimal | None = None, early: bool = False, prompt: bool = True
) -> Watch:
    """Play the steps; fails where the product and the second opinion differ. Returns both for further questions."""
    watched = Watch(new_order(expected_total=expected_total), Oracle(expected_total), early, prompt)
    watched.play(steps)
    return watched
