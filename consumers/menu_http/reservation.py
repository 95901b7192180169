"""Reserve stock at a Menu Service that only speaks HTTP, each line at most once; consumer.py describes the limits.

Every PUT, with the result of the previous one, is recorded before it is sent. After a crash at any point the database
therefore contains everything that was taken, except the result of one PUT.
"""

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import TypeVar

import sqlalchemy as sa
import structlog

from consumers.menu_http import progress
from consumers.menu_http.client import TOTAL_SECONDS, Menus, MenuServiceDown, NoUsableAnswer, Refused, stock_of
from consumers.menu_http.progress import Progress
from order_service import handlers
from order_service.contract.envelope import Delivery, Rejection, Reply, rejection
from order_service.domain.messages import Item, MenuDeadline, MenuRejected, MenuReserved, Message, StockReleased
from order_service.domain.order import AWAITING_MENU, Order
from order_service.domain.saga import Policy
from order_service.ops import Loop
from order_service.process import Outage, StopFlag
from order_service.storage import orders
from order_service.storage.database import Database, current_time
from order_service.storage.errors import is_transient
from order_service.unit_of_work import UnitOfWork, unit_of_work

log = structlog.get_logger(__name__)
#: A PUT recorded less than this long ago may still be in progress in another process.
IN_PROGRESS = timedelta(seconds=3 * TOTAL_SECONDS)
T = TypeVar("T")


class Interrupted(Exception):
    """The process was stopped before the result of a PUT could be recorded; the message is delivered again."""


def reservation_id(order: Order) -> str:
    return f"menu-http-{order.id}"


def empty_reservation_id(order: Order) -> str:
    """The reservation id of an order whose price was not the expected one, so that nothing was taken."""
    return f"menu-http-{order.id}-untaken"


class StockReserver:
    """Reserves and releases the stock of one order at a time; all state between two messages is in the database."""

    def __init__(self, policy: Policy, database: Database, menus: Menus, stop: StopFlag, loop: Loop) -> None:
        self._policy, self._database, self._menus, self._stop, self._loop = policy, database, menus, stop, loop

    def reserve(self, delivery: Delivery, order_id: int) -> None:
        """Take the stock of an order that still waits for it. May be repeated: continues only where that is safe.

        Raises MenuServiceDown, after which the caller must retry, and Rejection for an unknown order.
        """
        with self._database.reading() as connection:
            order = orders.read_orders(connection, [order_id]).get(order_id)
            seen, now = progress.find(connection, order_id), current_time(connection)
        if order is None:
            raise _unknown_order(delivery, order_id)
        if order.state not in AWAITING_MENU:
            return
        if seen and seen.asked is not None:
            if now - seen.at < IN_PROGRESS:
                log.info(
                    "a PUT may be in progress in another process, waiting for the next reminder", order_id=order_id
                )
            else:
                self._abandon(order, seen, "the answer to its PUT is unknown")
            return
        try:
            items = {menu_id: self._read_item(order, seen, menu_id) for menu_id in order.lines}
        except Refused as refusal:
            self._reject(delivery, order, seen, refusal)
        except NoUsableAnswer as error:
            log.warning("no usable answer, waiting for the next reminder", order_id=order_id, error=str(error))
        else:
            self._take(delivery, order, seen, items)

    def release(self, delivery: Delivery, order_id: int, release_id: str, named: str | None) -> None:
        """Confirm a release if nothing was taken; otherwise log what must be returned manually. Raises Rejection."""
        with unit_of_work(self._database, self._policy) as work:
            order = orders.lock_orders(work.connection, [order_id]).get(order_id)
            if order is None:
                raise _unknown_order(delivery, order_id)
            held = progress.find(work.connection, order_id)
            wanted = named or reservation_id(order)
            if held is None and wanted in order.reservations and wanted != empty_reservation_id(order):
                # Also the reservation of another menu: only that menu can release it.
                held = Progress(order_id, tuple(order.lines), None, work.now)
            if held and (held.taken or held.asked is not None):
                self._report(order, held, f"release {release_id} stays unconfirmed")
                return
            confirmation = Reply(release_id, order_id, "StockReleased", StockReleased(release_id), delivery)
            for refused in handlers.apply_replies(work, [confirmation]):
                raise Rejection(delivery, refused.code, refused.errors, order_id=order_id)

    def _read_item(self, order: Order, seen: Progress | None, menu_id: int) -> Item:
        """The dish, with enough stock unless it is taken already. Raises as Menus.read does."""
        self._loop.turn()
        item = self._menus.read(menu_id)
        if stock_of(item) < order.lines[menu_id] and not (seen and menu_id in seen.taken):
            raise Refused("out_of_stock", menu_id)
        return item

    def _take(self, delivery: Delivery, order: Order, seen: Progress | None, items: dict[int, Item]) -> None:
        """Take the lines that are not taken yet, and answer; all lines have been read."""
        total = sum(items[menu_id].price * quantity for menu_id, quantity in order.lines.items())
        if not seen and order.expected_total not in (None, total):
            self._answer(delivery, order, None, MenuReserved(tuple(items.values()), empty_reservation_id(order)))
            return
        taken = seen.taken if seen else ()
        # A line that is refused before anything was taken leaves nothing to return.
        scarcest_first = sorted(items, key=lambda menu_id: stock_of(items[menu_id]) - order.lines[menu_id])
        for menu_id in [each for each in scarcest_first if each not in taken]:
            asking = Progress(order.id, taken, menu_id, self._write(lambda work: work.now))
            if not self._write(partial(_save_progress, seen, asking)):
                log.info("the order has ended, or is in progress in another process", order_id=order.id)
                self._write(partial(_save_progress, seen, asking._replace(asked=None)))
                return
            seen = asking
            try:
                items[menu_id] = self._take_line(order, asking, items[menu_id])
            except Refused as refusal:
                self._reject(delivery, order, asking._replace(asked=None), refusal)
                return
            except NoUsableAnswer as error:
                self._abandon(order, asking, str(error))
                return
            taken = (*taken, menu_id)
        self._answer(delivery, order, None, MenuReserved(tuple(items.values()), reservation_id(order)))

    def _take_line(self, order: Order, asking: Progress, item: Item) -> Item:
        """The item with the stock that remains after the PUT. Raises as Menus.take does."""
        quantity = order.lines[item.id]
        try:
            left = self._menus.take(item.id, quantity)
        except MenuServiceDown:
            self._write(partial(_save_progress, asking, asking._replace(asked=None)))
            raise
        return replace(item, stock=max(stock_of(item) - quantity, 0) if left is None else left)

    def _reject(self, delivery: Delivery, order: Order, seen: Progress | None, refusal: Refused) -> None:
        """Fail the order; stock taken for it counts as a late reservation, whose release is requested."""
        rejected = MenuRejected(refusal.reason, refusal.menu_id)
        if seen and seen.taken:
            self._report(order, seen, f"rejected partially taken, {refusal}")
            self._answer(delivery, order, seen, rejected, MenuReserved((), reservation_id(order)))
        else:
            self._answer(delivery, order, None, rejected)

    def _answer(self, delivery: Delivery, order: Order, left: Progress | None, *messages: Message) -> None:
        """Apply the menu's answer, and keep the progress only of an order that is partially taken."""
        replies = [Reply(reservation_id(order), order.id, type(each).__name__, each, delivery) for each in messages]

        def write(work: UnitOfWork) -> None:
            handlers.apply_replies(work, replies)
            progress.delete(work.connection, order.id)
            if left:
                progress.save(work.connection, left)

        self._write(write)

    def _abandon(self, order: Order, seen: Progress, problem: str) -> None:
        """Apply the menu deadline now: the order expires, and the release of everything held is requested."""
        self._report(order, seen, f"abandoned, {problem}")
        self._write(lambda work: handlers.change_order(work, order.id, MenuDeadline()))

    def _report(self, order: Order, held: Progress, problem: str) -> None:
        taken = {menu_id: order.lines[menu_id] for menu_id in held.taken}
        possibly_taken = {} if held.asked is None else {held.asked: order.lines[held.asked]}
        log.error("stock must be returned manually", order_id=order.id, problem=problem,
                  portions_by_menu_id=taken, possibly_taken=possibly_taken)  # fmt: skip

    def _write(self, change: Callable[[UnitOfWork], T]) -> T:
        """Commit a change, retrying while the database is unreachable: only this process has the result of the PUT.

        Raises Interrupted when the process is stopped first.
        """
        outage = Outage("the database")
        while True:
            self._loop.turn()
            try:
                with unit_of_work(self._database, self._policy) as work:
                    result = change(work)
            except sa.exc.SQLAlchemyError as error:
                if not is_transient(error):
                    raise
                outage.note(error)
            else:
                outage.end()
                return result
            # Not before the first attempt: the process may have been stopped while the PUT was in progress.
            if self._stop.wait(outage.pause()):
                raise Interrupted


def _save_progress(seen: Progress | None, now: Progress, work: UnitOfWork) -> bool:
    """Record the progress; return False if the next PUT must not be sent."""
    order = orders.lock_orders(work.connection, [now.order_id]).get(now.order_id)
    is_awaited = order is not None and order.state in AWAITING_MENU
    # `now` is found if the answer to an earlier commit was lost.
    if progress.find(work.connection, now.order_id) not in (seen, now) or (now.asked is not None and not is_awaited):
        return False
    progress.save(work.connection, now)
    return True


def _unknown_order(delivery: Delivery, order_id: int) -> Rejection:
    return rejection(delivery, "unknown_order", "data.order_id", "names no order of ours", order_id=order_id)
