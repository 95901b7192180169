"""What an order waits for, in plain words: facts in, text out, in Indonesian and in English."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from functools import cached_property
from typing import Any

from order_service.domain.order import AWAITING_MENU, FINAL, Order, State, amount_text
from order_service.domain.saga import Policy, awaited_event, expires_at

#: How late an event or a deadline may be before that needs an explanation.
SLACK = timedelta(seconds=10)
#: The facts about an order that programs read, beside its state.
FIELDS = (
    "cause", "waits_for", "since", "next_reminder_at", "expires_at", "last_answer_at", "unconfirmed_compensations",
)  # fmt: skip
#: Units of durations, in seconds, in Indonesian and in English.
_UNITS = ((86400, "hari", "d"), (3600, "jam", "h"), (60, "menit", "min"), (1, "detik", "s"))


class Cause(StrEnum):
    """Why an order waits."""

    ENDED = "ended"
    #: No longer than it should.
    ON_TIME = "on_time"
    #: Its deadline has passed, and nothing happened.
    OVERDUE = "overdue"
    #: Its event was never handed to a working broker.
    UNSENT = "unsent"
    #: The broker returned or refused its event.
    RETURNED = "returned"
    #: Its event was sent and repeated, without an answer.
    SILENT = "silent"
    #: The same, and the answer may be among the messages that the consumers do not process.
    UNREAD = "unread"


@dataclass(frozen=True)
class Unsent:
    """The awaited event in the outbox."""

    since: datetime
    attempts: int
    due_at: datetime


@dataclass(frozen=True)
class Facts:
    """What is known about an order at a moment; its properties are what programs read."""

    order: Order
    policy: Policy
    now: datetime
    #: When the order entered its state.
    since: datetime
    unsent: Unsent | None = None
    #: When each sibling service last answered any order, if that was recently.
    answers: Mapping[str, datetime] = field(default_factory=dict)
    unconfirmed_compensations: int = 0
    #: Whether replies of the service that it waits for are not processed; only the broker knows.
    has_unread_replies: bool = False

    @cached_property
    def cause(self) -> Cause:
        order = self.order
        if order.state in FINAL:
            return Cause.ENDED
        if order.due_at and self.now - order.due_at > SLACK:
            return Cause.OVERDUE
        if self.unsent:
            late = Cause.UNSENT if self.now - self.unsent.since > SLACK else Cause.ON_TIME
            return Cause.RETURNED if self.unsent.attempts else late
        reminders = self.policy.menu_reminders if order.state in AWAITING_MENU else 1
        if order.reminders_left >= reminders:
            return Cause.ON_TIME
        return Cause.UNREAD if self.has_unread_replies else Cause.SILENT

    @property
    def is_stuck(self) -> bool:
        return self.cause not in (Cause.ENDED, Cause.ON_TIME)

    @property
    def waits_for(self) -> str | None:
        """The sibling service: menu or payment."""
        if self.order.state in FINAL:
            return None
        return "menu" if self.order.state in AWAITING_MENU else "payment"

    @property
    def last_answer_at(self) -> datetime | None:
        """When the service that it waits for last answered any order."""
        return self.answers.get(self.waits_for or "")

    @property
    def event(self) -> str:
        """The type of the event that asks for the answer."""
        return awaited_event(self.order).value

    @property
    def next_reminder_at(self) -> datetime | None:
        return self.order.due_at if self.waits_for and self.order.reminders_left else None

    @property
    def expires_at(self) -> datetime | None:
        return expires_at(self.order, policy=self.policy) if self.waits_for else None

    @property
    def fields(self) -> dict[str, Any]:
        """The facts for programs, whose names are an interface."""
        order = self.order
        about = {"order_id": order.id, "status": order.state.status, "state": order.state.value}
        return about | {name: getattr(self, name) for name in FIELDS}


#: Sentences in Indonesian and in English.
_TEXTS: dict[str, tuple[str, str]] = {
    State.AWAITING_MENU: (
        "Pesanan {id} menunggu {sibling} mencadangkan hidangannya, sejak {since}.",
        "Order {id} waits for the {sibling} to reserve its dishes, since {since}.",
    ),
    State.AWAITING_MENU_PREPAID: (
        "Pesanan {id} sudah menerima pembayaran dan menunggu {sibling} mencadangkan hidangan, sejak {since}.",
        "Order {id} has a payment, and waits for the {sibling} to reserve its dishes, since {since}.",
    ),
    State.AWAITING_PAYMENT: (
        "Pesanan {id} menunggu pembayaran sebesar {total}, sejak {since}.",
        "Order {id} waits for the payment of {total}, since {since}.",
    ),
    State.PAID: ("Pesanan {id} dibayar pada {at}.", "Order {id} was paid at {at}."),
    State.FAILED: ("Pesanan {id} gagal pada {at} ({reason}).", "Order {id} failed at {at} ({reason})."),
    State.CANCELLED: ("Pesanan {id} dibatalkan pada {at}.", "Order {id} was cancelled at {at}."),
    Cause.OVERDUE: (
        "Tenggatnya lewat pada {due}, dan tidak terjadi apa-apa: publishers tampaknya tidak berjalan.",
        "Its deadline passed at {due}, and nothing happened: the publishers do not seem to run.",
    ),
    Cause.UNSENT: (
        "{event} menunggu di outbox sejak {unsent} dan belum diterima broker: publishers tidak berjalan, atau tidak "
        "dapat menghubungi broker.",
        "{event} has been in the outbox since {unsent}, and no broker has accepted it: the publishers do not run, or "
        "cannot reach the broker.",
    ),
    Cause.RETURNED: (
        "{event} ditolak atau dikembalikan broker {attempts} kali, biasanya karena antrean {sibling} belum ada; dicoba "
        "lagi pada {retry}.",
        "The broker returned or refused {event} {attempts} times, usually because the {sibling} has no queue for it; "
        "it is tried again at {retry}.",
    ),
    Cause.SILENT: (
        "{event} sudah dikirim dan diulang, tetapi {sibling} belum menjawab.",
        "{event} was sent and repeated, but the {sibling} has not answered.",
    ),
    Cause.UNREAD: (
        "{event} sudah dikirim dan diulang; jawabannya mungkin ada di antara pesan yang tidak diproses consumers.",
        "{event} was sent and repeated; the answer may be among the messages that the consumers do not process.",
    ),
    "answered": (
        "{sibling} terakhir menjawab sebuah pesanan pada {answer}.",
        "The {sibling} last answered an order at {answer}.",
    ),
    "unanswered": (
        "Tidak ada jawaban {sibling} untuk pesanan mana pun belakangan ini.",
        "The {sibling} has not answered any order recently.",
    ),
    "reminder": (
        "Tanpa jawaban, {event} dikirim lagi pada {due}, paling banyak {reminders} kali lagi.",
        "Without an answer, {event} is sent again at {due}, at most {reminders} more times.",
    ),
    "expiry": (
        "Pesanan kedaluwarsa pada {expires}.",
        "The order expires at {expires}.",
    ),
    "compensations": (
        "{compensations} pelepasan stok atau pengembalian dana belum dikonfirmasi.",
        "{compensations} releases or refunds are not confirmed yet.",
    ),
}  # fmt: skip
#: The same in a few words: of an order that waits as it should, and of each cause of another one.
_PHRASES: dict[str, tuple[str, str]] = {
    State.AWAITING_MENU: ("menunggu {sibling}", "waits for the {sibling}"),
    State.AWAITING_MENU_PREPAID: ("sudah dibayar, menunggu {sibling}", "paid, waits for the {sibling}"),
    State.AWAITING_PAYMENT: ("menunggu pembayaran", "waits for the payment"),
    Cause.OVERDUE: ("tenggat lewat, publishers tidak berjalan", "deadline passed, the publishers do not run"),
    Cause.UNSENT: ("{event} menunggu di outbox", "{event} waits in the outbox"),
    Cause.RETURNED: ("{event} ditolak broker {attempts} kali", "the broker refused {event} {attempts} times"),
    Cause.SILENT: ("{sibling} belum menjawab", "the {sibling} has not answered"),
    Cause.UNREAD: ("consumers tidak memproses jawaban", "the consumers do not process replies"),
}
_SIBLINGS = {"menu": "Menu Service", "payment": "Payment Service"}


def explain(facts: Facts, *, english: bool) -> str:
    """One paragraph: what the order waits for and since when, why, what happens next, and what the other side does."""
    order, unsent, now = facts.order, facts.unsent, facts.now
    names = [order.state.value, *([facts.cause.value] if facts.is_stuck else [])]
    if facts.waits_for:
        if facts.cause is not Cause.UNREAD:
            names.append("answered" if facts.last_answer_at else "unanswered")
        if facts.cause is not Cause.OVERDUE:
            names += ["reminder", "expiry"] if facts.next_reminder_at else ["expiry"]
    if facts.unconfirmed_compensations:
        names.append("compensations")
    moments = {
        "since": facts.since, "due": order.due_at, "answer": facts.last_answer_at, "expires": facts.expires_at,
        "unsent": unsent and unsent.since, "retry": unsent and unsent.due_at,
    }  # fmt: skip
    values = {name: _moment(at, now, english=english) for name, at in moments.items() if at} | {
        "id": order.id, "sibling": _SIBLINGS.get(facts.waits_for or ""), "total": rupiah(order.total_price),
        "at": f"{facts.since:%FT%TZ}", "reason": order.reason, "event": facts.event,
        "attempts": unsent and unsent.attempts, "reminders": order.reminders_left,
        "compensations": facts.unconfirmed_compensations,
    }  # fmt: skip
    return " ".join(_TEXTS[name][english].format(**values) for name in names)


def phrase(facts: Facts, *, english: bool) -> str:
    """A few words on what the order waits for; empty if it has ended."""
    if not facts.waits_for:
        return ""
    text = _PHRASES[facts.cause if facts.is_stuck else facts.order.state][english]
    attempts = facts.unsent and facts.unsent.attempts
    return text.format(sibling=_SIBLINGS[facts.waits_for], event=facts.event, attempts=attempts)


def rupiah(amount: Decimal | None) -> str:
    """An amount as it is written in Indonesia, such as `Rp62.000`."""
    if amount is None:
        return amount_text(amount)
    return f"Rp{amount.normalize():,f}".translate(str.maketrans(",.", ".,"))


def duration(length: timedelta, *, english: bool = True) -> str:
    """A duration in its largest unit, such as `42 s`."""
    seconds = max(0, int(length.total_seconds()))
    size, *names = next((unit for unit in _UNITS if seconds >= unit[0]), _UNITS[-1])
    return f"{seconds // size} {names[english]}"


def _moment(at: datetime, now: datetime, *, english: bool) -> str:
    length = duration(abs(at - now), english=english)
    future, past = ("in {}", "{} ago") if english else ("dalam {}", "{} yang lalu")
    return f"{at:%FT%TZ} ({(future if at > now else past).format(length)})"
