"""The unit of work: everything that one transaction will write, collected for a single statement."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from order_service import tracing
from order_service.contract import outgoing
from order_service.contract.envelope import Rejection
from order_service.contract.outgoing import Outgoing, trace_of
from order_service.domain import messages
from order_service.domain.messages import Message
from order_service.domain.order import Announcement, Compensation, Effect, Order, State
from order_service.domain.saga import FIRST_SEQUENCE, Decision, Outcome, Policy, awaited_event, decide, is_sent
from order_service.report import Report
from order_service.storage import bulk, compensations, history, orders, outbox
from order_service.storage.database import Database, current_time

#: The names of the requests of REST clients in the history.
_HISTORY_TYPES: dict[type[Message], str] = {
    messages.ReportPaid: "PutPaid", messages.ReportFailed: "PutFailed", messages.ReportPending: "PutPending",
}  # fmt: skip
_CONFIRMATIONS = messages.StockReleased, messages.PaymentRefunded


class UnitOfWork:
    """The changes of one open transaction, all with the time `now`; `write` sends them to the database."""

    def __init__(self, connection: sa.Connection, policy: Policy, now: datetime) -> None:
        self.connection, self.policy, self.now = connection, policy, now
        self._orders: dict[int, Order] = {}
        self._entries: list[history.Entry] = []
        self._unchanging: list[history.Entry] = []
        self._outgoing: list[Outgoing] = []
        self._requested: list[compensations.Row] = []
        self._confirmed: list[str] = []
        #: Published after the commit.
        self.report = Report()
        #: Ended by the commit; those of a transaction that is rolled back are not recorded.
        self.spans: list[Any] = []

    def apply(
        self,
        order: Order,
        message: Message,
        *,
        message_id: str | None = None,
        digest: str | None = None,
        span: Any = None,
    ) -> Decision:
        """Apply a message by the decision table, and add the results; one from the broker has an id and a digest.

        `span`: that of the message, if it has one. Raises InvalidMessage and then adds nothing.
        """
        decision = decide(order, message, policy=self.policy, now=self.now)
        type_name = _HISTORY_TYPES.get(type(message)) or type(message).__name__
        trace = self._decided_in(order, decision, type_name, span) if tracing.is_on() else None
        self.report.decided(order, decision, type_name, message_id, self.now)
        if decision.changed:
            self.update(order)
        # The caller of a refused report has taken money that it must return: an operator may have to look for it.
        is_refused_payment = isinstance(message, messages.ReportPaid) and decision.outcome is Outcome.REFUSED
        if decision.changed or message_id is not None or is_refused_payment:
            self._record(order, type_name, decision.before, message_id, digest)
            if not decision.changed:
                self._unchanging.append(self._entries[-1])
        if isinstance(message, _CONFIRMATIONS):
            id = message.release_id if isinstance(message, messages.StockReleased) else message.refund_id
            self._confirmed.append(id)
            self.report.confirmed(order, type_name, id, message_id)
        for effect in decision.effects:
            self.enqueue(order, effect, sequence=order.version, trace=trace)
            if isinstance(effect, Compensation):
                due_at = self.now + self.policy.compensation_pause if is_sent(effect, self.policy) else None
                self._requested.append(compensations.new_row(order.id, effect, sequence=order.version, due_at=due_at))
                if due_at is None:
                    self.report.manual_refund(order.id, effect)
        return decision

    def _decided_in(self, order: Order, decision: Decision, type_name: str, span: Any) -> tracing.Carrier:
        """Begin the span of a decision; return the trace context for its effects."""
        states = {"order.id": order.id, "order.state.from": decision.before, "order.state.to": decision.after}
        deciding = tracing.span(f"decide {type_name}", "INTERNAL", span or trace_of(order), states)
        if span and self.spans:
            # The messages of one transaction are committed together.
            span.add_link(self.spans[0].get_span_context())
        self.spans += [span, deciding] if span else [deciding]
        return tracing.carrier_of(deciding)

    def update(self, order: Order) -> None:
        """Add an order, locked in this transaction, whose fields have changed."""
        self._orders[order.id] = order

    def enqueue(self, order: Order, effect: Effect, *, sequence: int, trace: tracing.Carrier | None = None) -> None:
        """Add the event of an effect to the outbox, with the order's trace context or another one.

        Unless no service receives it.
        """
        if is_sent(effect, self.policy):
            self._outgoing.append(
                outgoing.event(order, effect, sequence=sequence, policy=self.policy, now=self.now, trace=trace)
            )

    def remind(self, order: Order) -> None:
        """Add the event that the order waits for again, under the same id and with its first sequence."""
        event = awaited_event(order)
        self.enqueue(order, event, sequence=FIRST_SEQUENCE[event])
        is_payment = event is Announcement.PAYMENT_REQUESTED
        type_name = "PaymentReminder" if is_payment else "MenuReminder"
        self.report.reminded(order, type_name, order.event_id(event))
        self._record(order, type_name, order.state, None)

    def dead_letter(self, rejection: Rejection) -> None:
        """Add the rejected message to the outbox, addressed to its dead-letter queue, and MessageRejected."""
        self._outgoing += outgoing.dead_letter(rejection, self.now), outgoing.message_rejected(rejection, self.now)
        self.report.dead_lettered(rejection)

    def _record(
        self, order: Order, type_name: str, before: State, message_id: str | None, digest: str | None = None
    ) -> None:
        entry = history.Entry(order.id, self.now, type_name, str(before), str(order.state), message_id, digest)
        self._entries.append(entry)

    def write(self) -> None:
        """Write everything added; orders in the order of their ids, as they were locked."""
        entries = self._entries
        if superfluous := history.superfluous(self.connection, self._unchanging):
            entries = [entry for entry in entries if entry not in superfluous]
        first, *more = outbox.inserts(self._outgoing, self.now)
        bulk.write(
            self.connection,
            orders.updates([self._orders[id] for id in sorted(self._orders)]),
            history.inserts(entries),
            compensations.inserts(self._requested),
            first,
        )
        for part in more:
            bulk.write(self.connection, part)
        compensations.confirm(self.connection, self._confirmed, self.now)


@contextmanager
def unit_of_work(database: Database, policy: Policy, *, now: datetime | None = None) -> Iterator[UnitOfWork]:
    """Open a transaction; at the end write and commit what was added, or roll back on any exception."""
    with database.writing() as connection:
        work = UnitOfWork(connection, policy, now or current_time(connection))
        yield work
        work.write()
    work.report.publish()
    for span in work.spans:
        span.end()
