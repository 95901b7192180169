"""The board of orders: one thread reads what has changed, for all viewers; each has a stream of it.

What is shown follows from the newest rows of the database alone, so neither a lost notification nor a late commit
leaves the board wrong for longer than a few seconds.
"""

import secrets
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import sqlalchemy as sa
import structlog
from pydantic_core import to_json

from order_service import metrics
from order_service.config import Settings
from order_service.contract import topology
from order_service.domain import explanation
from order_service.domain.explanation import Cause, Facts
from order_service.domain.order import State
from order_service.management import Management, Unavailable
from order_service.process import STOP_SECONDS, Attempt, StopFlag, first_line
from order_service.storage import board, facts, figures
from order_service.storage.board import COLUMNS, SHOWN
from order_service.storage.changes import Changes
from order_service.storage.database import Database, current_time
from order_service.storage.orders import UnreadableOrder
from order_service.web import failures
from order_service.web.placing import UnreadableOrders

log = structlog.get_logger(__name__)
Json = dict[str, Any]
#: The least times between two looks at the orders, and between two at everything else, in seconds.
TICK_SECONDS, FIGURES_SECONDS = 0.25, 5.0
#: The pauses are at least this many times as long as what they follow, but a look is never later than this, in seconds:
#: the board takes little of what a busy service has.
PAUSE_SHARE, MOST_SECONDS = 30, 1.0
#: Older figures are not sent to a new viewer, who would take the database to be answering, in seconds.
CURRENT_SECONDS = 3 * FIGURES_SECONDS
#: How long the thread goes on without viewers, so that one that reconnects misses nothing, in seconds.
IDLE_SECONDS = 30.0
#: How many events are kept for viewers that reconnect.
KEPT_EVENTS = 64
#: The interval of comments, by which a page notices that it has lost its connection, in seconds.
HEARTBEAT_SECONDS = 4.0
#: The age of the outbox's oldest message that is reported, and the time that the broker has to answer, in seconds.
OUTBOX_SECONDS, BROKER_SECONDS = 10, 1.0


def card(found: Facts) -> Json:
    """What the board shows of an order; texts are in Indonesian and in English."""
    order = found.order
    names = {item.id: item.name for item in order.items}
    is_failed = order.state is State.FAILED
    return {
        "id": order.id,
        "version": order.version,
        "user": order.user_id,
        "state": order.state.value,
        "column": next(name for name, states in COLUMNS.items() if order.state in states),
        "items": [[id, names.get(id), count] for id, count in Counter(order.menu_ids).items()],
        "total": order.total_price,
        "created_at": order.created_at,
        "since": found.since,
        "expires_at": found.expires_at,
        "is_stuck": found.is_stuck,
        "waits": [explanation.phrase(found, english=english) for english in (False, True)],
        "reason": order.reason,
        "message": [failures.message(order, english=english) for english in (False, True)] if is_failed else None,
    }


class Board:
    """The orders that the board shows, and the events that tell its viewers what has changed."""

    def __init__(self, database: Database, settings: Settings, unreadable: UnreadableOrders, stop: StopFlag) -> None:
        self._database, self._settings, self._unreadable, self._stop = database, settings, unreadable, stop
        self._broker = Management(settings, seconds=BROKER_SECONDS) if settings.management_url else None
        # Its own limit is one for each piece of an answer.
        self._asking = Attempt(self._read_queues, BROKER_SECONDS)
        self._changed = threading.Condition()
        self._viewers = 0
        self._thread: threading.Thread | None = None
        self._forget()

    def _forget(self) -> None:
        #: Distinguishes the events of this process from those of others and of earlier times.
        self._token = secrets.token_hex(4)
        self._facts: dict[int, Facts] = {}
        self._versions: dict[int, int] = {}
        self._revision, self._figures, self._figures_at = 0, "", 0.0
        self._events: deque[tuple[int, str]] = deque(maxlen=KEPT_EVENTS)
        self._is_ready = False

    def close(self) -> None:
        """End the thread, whose stop flag must be set, unless it waits for a database that does not answer."""
        with self._changed:
            self._changed.notify_all()
        if self._thread:
            self._thread.join(STOP_SECONDS)

    def stream(self, last_event_id: str | None, seconds: float, has_left: Callable[[], bool]) -> Iterator[str]:
        """What follows the event with this id; if that is unknown, everything first. Comments in between."""
        end, position, commented = time.monotonic() + seconds, last_event_id or "", 0.0
        with self._changed:
            if self._thread is None and not self._stop.is_set():
                thread = threading.Thread(target=self._run, name="board", daemon=True)
                thread.start()  # If it fails, the next viewer tries again.
                self._thread = thread
            self._viewers += 1
        try:
            while not (self._stop.is_set() or has_left()) and time.monotonic() < end:
                with self._changed:
                    position, pieces = self._following(position)
                    if not pieces:
                        self._changed.wait(TICK_SECONDS)
                        position, pieces = self._following(position)
                if pieces or time.monotonic() - commented > HEARTBEAT_SECONDS:
                    commented = time.monotonic()
                    yield "".join(pieces) or ": still here\n\n"
        finally:
            with self._changed:
                self._viewers -= 1

    def _following(self, position: str) -> tuple[str, Sequence[str]]:
        """The events after this one, and the position after them."""
        if not self._is_ready:
            return position, ()
        token, _, number = position.partition("-")
        seen = int(number) if number.isdecimal() and len(number) < 20 else -1
        oldest = self._events[0][0] if self._events else self._revision + 1
        newest = f"{self._token}-{self._revision}"
        if token == self._token and oldest - 1 <= seen <= self._revision:
            return newest, [text for revision, text in self._events if revision > seen]
        cards = [card(found) for found in self._facts.values()]
        is_current = time.monotonic() - self._figures_at < CURRENT_SECONDS
        return newest, [self._event("snapshot", cards), self._figures if is_current else ""]

    def _event(self, name: str, data: object) -> str:
        return f"event: {name}\nid: {self._token}-{self._revision}\ndata: {to_json(data).decode()}\n\n"

    def _run(self) -> None:
        changes, figures_at, is_available = Changes(self._database), 0.0, True
        viewed_at = time.monotonic()
        while not self._stop.is_set():
            began = time.monotonic()
            with self._changed:
                viewed_at = began if self._viewers else viewed_at
                if began - viewed_at > IDLE_SECONDS:
                    self._forget()
                    self._thread = None
                    break
            try:
                is_due, has_changed = began >= figures_at, changes.any() is not False
                # The broker's time to answer does not count: it is no work for the database.
                alerts = self._broker_alerts() if is_due else None
                began = time.monotonic()
                if is_due or has_changed:
                    self._look(alerts)
                took, is_available = time.monotonic() - began, True
                if is_due:
                    figures_at = began + max(FIGURES_SECONDS, took * PAUSE_SHARE)
            except Exception as error:  # If this thread ended, the board would stay as it is.
                if is_available:
                    log.warning("cannot read the orders of the board", error=first_line(error))
                changes.close()
                took, is_available, figures_at = 0.0, False, 0.0
            self._stop.wait(min(MOST_SECONDS, max(TICK_SECONDS, took * PAUSE_SHARE)))
        changes.close()

    def _look(self, broker_alerts: Sequence[Json] | None) -> None:
        """Read what has changed, and, if the broker was asked, the figures.

        With the figures also the pending orders again, whose causes change with time.
        """
        with_figures = broker_alerts is not None
        pending = [id for id, found in self._facts.items() if found.waits_for]
        entries = board.DAY_ENTRIES if with_figures and not self._is_ready else board.RECENT_ENTRIES
        unreadable: list[UnreadableOrder] = []
        with self._database.reading() as connection:
            versions = board.versions(connection, pending, entries=entries)
            changed = {id for id, version in versions.items() if self._versions.get(id) != version}
            again = changed.union(pending) if with_figures else changed
            read = (
                facts.of_orders(connection, sorted(again), policy=self._settings.policy, unreadable=unreadable)
                if again
                else []
            )
            read_figures = self._read_figures(connection, read, unreadable) if with_figures else None
        self._unreadable.report(unreadable)
        with self._changed:
            shown = {each.order.id: each for each in read}
            told = [card(each) for id, each in shown.items() if id in changed or card(self._facts[id]) != card(each)]
            self._facts = _newest(self._facts | shown)
            self._versions = {id: self._versions[id] for id in self._facts if id in self._versions} | versions
            if told and self._is_ready:
                self._tell("cards", told)
            if read_figures:
                read_figures["alerts"] += broker_alerts
                self._figures, self._figures_at = self._tell("figures", read_figures), time.monotonic()
                self._is_ready = True
            self._changed.notify_all()

    def _tell(self, name: str, data: object) -> str:
        self._revision += 1
        text = self._event(name, data)
        self._events.append((self._revision, text))
        return text

    def _read_figures(
        self, connection: sa.Connection, shown: Sequence[Facts], unreadable: list[UnreadableOrder]
    ) -> Json:
        # Behind many newer ones, those that wait for long are not shown.
        late = facts.late(connection, policy=self._settings.policy, limit=SHOWN, unreadable=unreadable)
        found = figures.read(connection, self._settings.compensation_attempts)
        return {
            "now": current_time(connection),
            "pending": int(sum(found[metrics.PENDING].values())),
            "ended": board.ended(connection),
            "hour": board.last_hour(connection),
            "alerts": _alerts({each.order.id: each for each in [*shown, *late]}.values(), found),
        }

    def _broker_alerts(self) -> list[Json]:
        """What the management API says of our queues; nothing without RABBITMQ_MANAGEMENT_URL."""
        if self._broker is None:
            return []
        if not (queues := self._asking.result()):
            return [{"code": "broker"}]
        own = [queue for queue in (topology.MENU, topology.PAYMENT) if queue.name in queues]
        letters = sum(queues.get(queue.dead_letters, {}).get("messages_ready", 0) for queue in own)
        unread = [queue.name for queue in own if not queues[queue.name].get("consumers", 0)]
        alerts: list[Json] = [{"code": "dead_letters", "count": letters}] if letters else []
        return alerts + [{"code": "consumers", "queue": name} for name in unread]

    def _read_queues(self) -> Mapping[str, Mapping[str, Any]]:
        """Those of the broker; none while it does not tell."""
        try:
            return self._broker.queues("consumers", "messages_ready") if self._broker else {}
        except Unavailable:
            return {}


def _newest(found: dict[int, Facts]) -> dict[int, Facts]:
    """The newest of each column: of the pending orders by their number, of the others by their end."""
    kept: dict[int, Facts] = {}
    for name, states in COLUMNS.items():
        of_column = [each for each in found.values() if each.order.state in states]
        of_column.sort(key=lambda each: each.order.id if name == "pending" else each.since.timestamp(), reverse=True)
        kept |= {each.order.id: each for each in of_column[:SHOWN]}
    return kept


def _alerts(pending: Iterable[Facts], found: figures.Figures) -> list[Json]:
    """What is wrong, as far as the database shows it."""
    outbox, manual = found[metrics.OUTBOX_OLDEST][()], found[metrics.UNCONFIRMED][()]
    alerts: list[Json] = [{"code": "outbox", "seconds": int(outbox)}] if outbox > OUTBOX_SECONDS else []
    causes: dict[tuple[Cause, str | None], list[Facts]] = {}
    for each in pending:
        # The publishers pass deadlines, so this cause concerns no sibling service.
        causes.setdefault((each.cause, None if each.cause is Cause.OVERDUE else each.waits_for), []).append(each)
    for (cause, sibling), waiting in causes.items():
        # Customers take their time to pay: a sibling is silent if it has answered none since.
        has_answered = any(each.last_answer_at and each.last_answer_at > each.since for each in waiting)
        if cause in (Cause.OVERDUE, Cause.RETURNED) or (cause is Cause.SILENT and not has_answered):
            alerts.append({"code": cause.value, "sibling": sibling, "count": len(waiting)})
    return alerts + ([{"code": "compensations", "count": int(manual)}] if manual else [])
