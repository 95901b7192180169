"""What one transaction did, for the metrics and the log; reported once it is committed."""

import logging
from collections import Counter
from datetime import datetime

from order_service import metrics, process
from order_service.contract.envelope import Rejection
from order_service.contract.events import EVENTS
from order_service.domain.order import FINAL, Compensation, Order, State, amount_text
from order_service.domain.saga import Decision
from order_service.metrics import Metric

_log = logging.getLogger(__name__)
#: Ends of an order that an operator should look at.
_WARNED = {"expired", "amount_mismatch"}


class Report:
    """Collects events in the order they happen. The logged phrases and their fields are an interface."""

    def __init__(self) -> None:
        self._events: list[process.Event] = []
        #: By counter and its labels.
        self._counted: Counter[tuple[Metric, str, str]] = Counter()
        self._paid_after: list[float] = []

    def placed(self, order: Order, *, request_id: str | None) -> None:
        """The request's id, because one thread records the orders of many requests."""
        self._counted[metrics.ORDERS, "pending", ""] += 1
        self._add(logging.INFO, "order placed", order, to=order.state.value, request_id=request_id)

    def decided(self, order: Order, decision: Decision, type_name: str, message_id: str | None, now: datetime) -> None:
        """Report a change of state, and the compensations requested with it."""
        before, after = decision.before, decision.after
        if before is not after:
            if after in FINAL:
                self._counted[metrics.ORDERS, str(after), order.reason or ""] += 1
            if after is State.PAID:
                self._paid_after.append((now - order.created_at).total_seconds())
            level = logging.WARNING if order.reason in _WARNED else logging.INFO
            self._add(level, "order changed", order, type=type_name, message_id=message_id, to=str(after),
                      reason=order.reason, detail=order.detail, **{"from": str(before)})  # fmt: skip
        for effect in decision.effects:
            if isinstance(effect, Compensation):
                self._add(logging.INFO, "compensation requested", order, type=effect.type, message_id=effect.id,
                          subject=effect.subject, amount=_text(effect), reason=effect.reason)  # fmt: skip

    def confirmed(self, order: Order, type_name: str, compensation_id: str, message_id: str | None) -> None:
        self._add(logging.INFO, "compensation confirmed", order, type=type_name, message_id=message_id,
                  compensation_id=compensation_id)  # fmt: skip

    def reminded(self, order: Order, type_name: str, message_id: str) -> None:
        self._add(logging.INFO, "reminder sent", order, type=type_name, message_id=message_id)

    def manual_refund(self, order_id: int, refund: Compensation) -> None:
        """Report a refund that an operator makes."""
        fields = {"order_id": order_id, "refund_id": refund.id, "payment_id": refund.subject, "reason": refund.reason}
        self._events.append((logging.ERROR, "payment must be refunded manually", fields | {"amount": _text(refund)}))

    def consumed(self, type_name: str, outcome: str) -> None:
        self._counted[metrics.CONSUMED, type_name, outcome] += 1

    def dead_lettered(self, rejected: Rejection) -> None:
        queue = rejected.delivery.queue
        # Bounded, because a sender may name any type.
        self.consumed(rejected.type if rejected.type in EVENTS else "unknown", "dead_lettered")
        self._counted[metrics.DEAD_LETTERS, queue, rejected.code] += 1
        headers = rejected.delivery.properties.get("headers") or {}
        fields = {
            "queue": queue, "order_id": rejected.order_id, "message_id": rejected.message_id, "type": rejected.type,
            "correlation_id": rejected.delivery.properties.get("correlation_id"), "error": rejected.code,
            "reason": str(rejected)[:500], "trace_id": trace_id(headers.get("traceparent")),
        }  # fmt: skip
        self._events.append((logging.WARNING, "message dead-lettered", fields))

    def _add(self, level: int, event: str, order: Order, **fields: object) -> None:
        if not _log.isEnabledFor(level):
            return
        ids = {"order_id": order.id, "correlation_id": str(order.id), "trace_id": trace_id(order.traceparent)}
        self._events.append((level, event, ids | fields))

    def publish(self) -> None:
        """Count and log everything; called after the commit."""
        for (metric, *labels), number in self._counted.items():
            metric.count(*labels, by=number)
        metrics.PENDING_TO_PAID.observe_all(self._paid_after)
        process.log_events(__name__, self._events)


def trace_id(traceparent: object) -> str | None:
    """The trace id of a traceparent (https://www.w3.org/TR/trace-context), for the log."""
    return traceparent[3:35] if isinstance(traceparent, str) and len(traceparent) >= 55 else None


def _text(effect: Compensation) -> str | None:
    return None if effect.amount is None else amount_text(effect.amount)
