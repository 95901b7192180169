"""The broker's side of a Menu Service that only speaks HTTP: answers OrderCreated for it, with MENU_SERVICE_URL set.

    order-service.menu-http -> read every dish -> take every line -> MenuReserved or MenuRejected, applied here

The answer does not go over the broker: it is applied to the order in the transaction that also forgets the order's
progress, so it counts exactly once. The order's row says what is wanted; the message only says that it is time to look.

Such a menu has no reservations. It takes stock line by line, knows no repeats and takes nothing back. So:

- All lines are looked at before the first is taken, the scarcest first. Two customers can still meet in between, and
  the second one's order then stands half taken. It is rejected with the refused dish, for the true reason.
- A PUT whose answer is lost (timeout, broken connection, 5xx, a killed process) may have been carried out. It is
  written down before it is sent and is never sent again: the order expires early, after a killed process at its
  next reminder.
- A PUT that cannot have left (connection refused) is tried again for as long as the order waits, as is a menu that is
  down: the message waits, and the ones behind it. An unusable answer to a GET makes only its own order wait, for
  its next reminder.
- Whatever was taken for an order that failed or was cancelled has to be put back by hand. It is a release like any
  other, and stays unconfirmed: it is asked for again and again, and each time the log names the dishes. Once they are
  put back, publish `{"order_id": ..., "release_id": ...}` with routing key menu.released, as the menu would.
  Where nothing was taken, the release is confirmed here.
- An order whose total is not the expected one fails before anything is taken for it.

One process takes one order at a time; more processes take more. Do not run a Menu Service on the broker beside it:
both would answer. To go back to one, delete the queue order-service.menu-http, or requests go on gathering there.
"""

import threading
from typing import Literal

import pika
import structlog
from pika.adapters.blocking_connection import BlockingChannel
from pydantic import BaseModel, ValidationError

from consumers.batch import bury, bury_one, is_databases_fault
from consumers.menu_http.client import Menus, MenuServiceDown
from consumers.menu_http.reservation import Stock
from consumers.worker import Worker
from order_service import process as startup
from order_service.config import Settings
from order_service.contract import topology
from order_service.contract.envelope import Delivery, Unreadable, unreadable
from order_service.contract.events import Id
from order_service.storage.database import Database

log = structlog.get_logger(__name__)
#: Few are held at a time, so that several processes share what waits.
PREFETCH = 10


class _Data(BaseModel):
    order_id: Id
    release_id: str = ""
    reservation_id: str | None = None


class _Event(BaseModel):
    """What is read of our own events."""

    type: Literal["OrderCreated", "StockReleaseRequested"]
    data: _Data


class MenuOverHttp(Worker):
    """Consumes as every worker does, but works its messages off one by one: each takes calls over HTTP."""

    def __init__(self, settings: Settings, database: Database, menus: Menus, stop: threading.Event) -> None:
        few = settings.model_copy(update={"batch_size": PREFETCH})
        super().__init__(few, database, [topology.MENU_HTTP], stop)
        self._stock, self._down = Stock(settings, database, menus, stop), False

    def _work_off(self, connection: pika.BlockingConnection, channel: BlockingChannel) -> None:
        if not self._arrived:
            return
        tag, delivery, _ = self._arrived[0]
        try:
            self._handle(delivery)
        except MenuServiceDown as error:
            if not self._down:
                log.warning("the Menu Service is away, waiting for it", error=str(error))
            self._down = True
            connection.process_data_events(time_limit=next(self._retries))
            return
        except Exception as error:
            if is_databases_fault(error):
                self._wait_for_database(connection, error)
                return
            log.exception("a message cannot be processed", queue=delivery.queue)
            bury_one(self._database, delivery, type(error).__name__)
        channel.basic_ack(tag)
        del self._arrived[0]
        self._down, self._retries = False, startup.pauses()

    def _handle(self, delivery: Delivery) -> None:
        try:
            event = _Event.model_validate_json(delivery.body)
            if event.type == "OrderCreated":
                self._stock.reserve(event.data.order_id)
            else:
                self._stock.release(event.data.order_id, event.data.release_id, event.data.reservation_id)
        except ValidationError as error:
            problem = error.errors()[0]
            self._bury(delivery, unreadable("invalid", ".".join(map(str, problem["loc"])) or "body", problem["msg"]))
        except Unreadable as error:
            self._bury(delivery, error)

    def _bury(self, delivery: Delivery, why: Unreadable) -> None:
        with self._database.writing() as connection:
            bury(connection, [(delivery, why)], startup.utc_now())
