"""What an order announces, as data of the contract. An event can be built again at any time from the order's row."""

from order_service.contract import events
from order_service.domain.order import RELEASE, Announcement, Compensation, Effect, Order
from order_service.domain.saga import Clock


def event_id(order: Order, effect: Effect) -> str:
    """The one id under which this is sent, however often."""
    return effect.id if isinstance(effect, Compensation) else order.event_id(effect.value)


def data_of(order: Order, effect: Effect, clock: Clock) -> events.EventData:
    """The data of the event; one that names a deadline can be built while that deadline is armed."""
    if isinstance(effect, Compensation):
        return _compensation(order, effect)
    about = {"order_id": order.id, "user_id": order.user_id}
    match effect:
        case Announcement.ORDER_CREATED:
            reply_by = order.due_at and order.due_at + order.reminders_left * clock.reply_within
            menu_ids, lines = list(order.menu_ids), _lines(order)
            return events.OrderCreated(
                **about, menu_ids=menu_ids, lines=lines, created_at=order.created_at, reply_by=reply_by
            )
        case Announcement.PAYMENT_REQUESTED:
            return events.PaymentRequested(**about, amount=order.total_price, pay_by=order.due_at)
        case Announcement.ORDER_PAID:
            payment_id = order.payments[0].id
            return events.OrderPaid(
                **about, total_price=order.total_price, payment_id=payment_id, paid_at=order.paid_at
            )
        case Announcement.ORDER_FAILED:
            return events.OrderFailed(**about, reason=order.reason, detail=order.detail)
        case Announcement.ORDER_CANCELLED:
            return events.OrderCancelled(**about)


def _compensation(order: Order, wanted: Compensation) -> events.EventData:
    about = {"order_id": order.id, "reason": wanted.reason}
    if wanted.type == RELEASE:
        return events.StockReleaseRequested(
            **about, release_id=wanted.id, reservation_id=wanted.subject, lines=_lines(order)
        )
    return events.RefundRequested(**about, refund_id=wanted.id, payment_id=wanted.subject, amount=wanted.amount)


def _lines(order: Order) -> list[events.Line]:
    return [events.Line(menu_id=menu_id, quantity=quantity) for menu_id, quantity in order.lines.items()]
