"""Answer OrderCreated and StockReleaseRequested for a Menu Service that only speaks HTTP (MENU_SERVICE_URL).

    order-service.menu-http -> read every dish -> take every line -> MenuReserved or MenuRejected, applied here

The answer is not sent through the broker: it is applied to the order in the transaction that deletes the order's
progress, so it is applied exactly once. The order's row determines what is reserved; the message only triggers the
work.

Such a service has no reservations: it takes stock line by line, does not recognize duplicates, and cannot return stock.
Therefore:

- All lines are read before any is taken, and the scarcest is taken first. Another order can still take stock in
  between; this order is then partially taken, and is rejected with the refused menu item and its reason.
- A PUT whose response is lost (timeout, broken connection, 5xx, killed process) may have been executed. It is recorded
  before it is sent and never sent again: the order expires early, after a killed process at its next reminder.
- A PUT that was certainly not sent (connection refused) is retried for as long as the order waits, as is any request
  while the menu is unreachable: the message is tried again with growing delays, and the others in between, because it
  may be unreachable for one dish only. After an unusable response to a GET the order waits for its next reminder.
- Stock taken for an order that failed or was cancelled must be returned manually. Its release stays unconfirmed and is
  requested repeatedly, and each time the log lists the menu items. Once the stock is returned, run
  `python -m order_service compensations confirm` with the release's id. If nothing was taken, the release is confirmed
  here.
- An order whose total is not the expected one fails before anything is taken for it.

One process reserves one order at a time; more processes reserve more. Do not run a Menu Service on the broker as well:
both would answer. To return to one, delete the queue order-service.menu-http, or requests collect there.
"""

from collections.abc import Sequence
from functools import partial
from typing import Literal

from pydantic import BaseModel, ValidationError

from consumers.menu_http.client import Menus, MenuServiceDown
from consumers.menu_http.reservation import Interrupted, StockReserver
from consumers.worker import Worker
from order_service.backoff import Postponed
from order_service.config import Settings
from order_service.contract.envelope import Delivery, Rejection, rejection
from order_service.contract.events import Id
from order_service.contract.topology import MENU_HTTP
from order_service.process import RECONNECT, Outage, StopFlag
from order_service.storage.database import Database
from order_service.unit_of_work import unit_of_work

#: Small, so that several processes share the waiting messages.
PREFETCH = 10
#: How many times PREFETCH messages one process holds if the menu was unreachable for all of them.
MOST_SUBSCRIPTIONS = 20
#: The wait while all messages are postponed, in seconds.
PAUSE_SECONDS = 0.1


class _Data(BaseModel):
    order_id: Id
    release_id: str = ""
    reservation_id: str | None = None


class _Event(BaseModel):
    """The fields that are used from the service's own events."""

    type: Literal["OrderCreated", "StockReleaseRequested"]
    data: _Data


class MenuHttpConsumer(Worker):
    """A worker that processes its messages one by one, because each requires HTTP requests."""

    def __init__(self, settings: Settings, database: Database, menus: Menus, stop: StopFlag) -> None:
        super().__init__(settings.model_copy(update={"batch_size": PREFETCH}), database, [MENU_HTTP], stop)
        self._reserver = StockReserver(settings.policy, database, menus, stop, self.loop)
        self._outage = Outage("the Menu Service")
        #: The tags of messages for which the Menu Service was unreachable.
        self._postponed = Postponed[int](RECONNECT)
        #: The same, whether or not they may be tried again.
        self._tried: set[int] = set()
        self._subscriptions = 0

    def _subscribe(self) -> None:
        super()._subscribe()
        self._tried, self._subscriptions = set(), 1

    def _batch(self) -> Sequence[tuple[int, Delivery]]:
        """All that have arrived, because the first ones may be postponed."""
        return self._arrived

    def _process_batch(self, batch: Sequence[tuple[int, Delivery]]) -> None:
        """Process and ack the first message that is not postponed."""
        if len(self._tried) == self._subscriptions * PREFETCH and self._subscriptions < MOST_SUBSCRIPTIONS:
            self._receive_more()
        postponed = self._postponed.current()
        due = [each for each in batch if each[0] not in postponed]
        if not due:
            self._channel.connection.process_data_events(time_limit=PAUSE_SECONDS)
            return
        # First one that was not tried: each attempt at the others may take as long as a request.
        tag, delivery = min(due, key=lambda each: each[0] in self._tried)
        try:
            self._handle(delivery)
        except MenuServiceDown as error:
            # Perhaps for one dish only, so the other messages are tried too.
            self._outage.note(error)
            self._postponed.add(tag)
            self._tried.add(tag)
            return
        except Interrupted:
            return
        except Exception as error:
            self._dead_letter_failed(delivery, error)
        self._channel.basic_ack(tag)
        self._arrived.remove((tag, delivery))
        self._tried.discard(tag)
        self._delays = RECONNECT.jittered()
        if not postponed:
            self._outage.end()

    def _receive_more(self) -> None:
        """Subscribe once more: the broker sends no further message without an ack, and all of them were tried."""
        self._subscriptions += 1
        note_arrival, tag = partial(self._note_arrival, MENU_HTTP.name), f"{MENU_HTTP.name} {self._subscriptions}"
        self._channel.basic_consume(MENU_HTTP.name, note_arrival, consumer_tag=f"order-service:{tag}")

    def _handle(self, delivery: Delivery) -> None:
        try:
            event = _event(delivery)
            if event.type == "OrderCreated":
                self._reserver.reserve(delivery, event.data.order_id)
            else:
                data = event.data
                self._reserver.release(delivery, data.order_id, data.release_id, data.reservation_id)
        except Rejection as error:
            with unit_of_work(self._database, self._settings.policy) as work:
                work.dead_letter(error)


def _event(delivery: Delivery) -> _Event:
    if delivery.oversized:
        raise rejection(delivery, "oversized", "body", delivery.oversized.problem)
    try:
        return _Event.model_validate_json(delivery.body)
    except ValidationError as error:
        problem = error.errors()[0]
        raise rejection(delivery, "invalid", ".".join(map(str, problem["loc"])) or "body", problem["msg"]) from None
