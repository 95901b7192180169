"""Taking stock at a Menu Service that only speaks HTTP, each line at most once; menu_http.py says what that is worth.

Every PUT is written down before it is sent, and so is what became of the one before. So after a crash at any point the
database knows all that was taken, but for one PUT.
"""

import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import TypeVar

import sqlalchemy as sa
import structlog

from consumers.batch import is_databases_fault
from consumers.menu_http import progress as takings
from consumers.menu_http.client import TOTAL_SECONDS, Menus, MenuServiceDown, NoUsableAnswer, Refused
from consumers.menu_http.progress import Taking
from order_service import handlers
from order_service import process as startup
from order_service.config import Settings
from order_service.contract.envelope import Reply, unreadable
from order_service.domain.order import (
    AWAITING_MENU,
    Item,
    MenuDeadline,
    MenuRejected,
    MenuReserved,
    Message,
    Order,
    StockReleased,
)
from order_service.domain.saga import Clock
from order_service.process import utc_now
from order_service.storage import orders as order_rows
from order_service.storage.database import Database

log = structlog.get_logger(__name__)
#: A PUT noted less long ago than this may still be under way in another process.
UNDER_WAY = timedelta(seconds=3 * TOTAL_SECONDS)
T = TypeVar("T")


def reservation_of(order: Order) -> str:
    """What the stock taken for an order is called."""
    return f"menu-http-{order.id}"


def untaken(order: Order) -> str:
    """The reservation of an order whose price stood in the way before anything was taken."""
    return f"menu-http-{order.id}-untaken"


class Stock:
    """What the consumer does for one order; nothing is kept between two messages but what is in the database."""

    def __init__(self, settings: Settings, database: Database, menus: Menus, stop: threading.Event) -> None:
        self._settings, self._database, self._menus, self._stop = settings, database, menus, stop

    def reserve(self, order_id: int) -> None:
        """Take the stock of an order that still waits for it. May be repeated: goes on only where that is safe.

        Raises MenuServiceDown, then to be tried again, and Unreadable for an unknown order.
        """
        with self._database.reading() as connection:
            order = order_rows.read_orders(connection, [order_id]).get(order_id)
            seen = takings.find(connection, order_id)
        if order is None:
            raise unreadable("unknown_order", "data.order_id", "names no order of ours", order_id=order_id)
        if order.state not in AWAITING_MENU:
            return
        if seen and seen.asked is not None:
            if utc_now() - seen.at < UNDER_WAY:
                log.info("perhaps in hand elsewhere, leaving it to its next reminder", order_id=order_id)
            else:
                self._give_up(order, seen, "nobody knows how its PUT ended")
            return
        try:
            items = {menu_id: self._look(order, seen, menu_id) for menu_id in order.lines}
        except Refused as refusal:
            self._reject(order, seen, refusal)
        except NoUsableAnswer as error:
            log.warning("leaving it to its next reminder", order_id=order_id, error=str(error))
        else:
            self._take(order, seen, items)

    def release(self, order_id: int, release_id: str, reservation_id: str | None) -> None:
        """Confirm where nothing was taken; else report, and leave it unconfirmed. Raises Unreadable."""
        with self._database.writing() as connection:
            order = order_rows.lock_orders(connection, [order_id]).get(order_id)
            if order is None:
                raise unreadable("unknown_order", "data.order_id", "names no order of ours", order_id=order_id)
            held = takings.find(connection, order_id)
            named = reservation_id or reservation_of(order)
            if held is None and named in order.reservations and named != untaken(order):
                # Another menu's reservation too: only that menu could give it back.
                held = Taking(order_id, tuple(order.lines), None, utc_now())
            if held and (held.taken or held.asked is not None):
                self._report(order, held, f"release {release_id} is left unconfirmed")
                return
            confirmed = Reply(release_id, order_id, "StockReleased", StockReleased(release_id))
            for _, error in handlers.apply_replies(connection, [confirmed], self._changes()):
                raise unreadable("invalid", error.field_name or "data", str(error), order_id=order_id)

    def _look(self, order: Order, seen: Taking | None, menu_id: int) -> Item:
        """The dish, with enough of it unless it is taken already. Raises as Menus.read does."""
        item = self._menus.read(menu_id)
        if item.stock < order.lines[menu_id] and not (seen and menu_id in seen.taken):
            raise Refused("out_of_stock", menu_id)
        return item

    def _take(self, order: Order, seen: Taking | None, items: dict[int, Item]) -> None:
        """Take what is not taken yet, and answer; all lines have been looked at."""
        total = sum(items[menu_id].price * quantity for menu_id, quantity in order.lines.items())
        if not seen and order.expected_total not in (None, total):
            self._answer(order, None, MenuReserved(tuple(items.values()), untaken(order)))
            return
        taken = seen.taken if seen else ()
        # A line that is refused before anything was taken leaves nothing to put back.
        scarcest_first = sorted(items, key=lambda menu_id: items[menu_id].stock - order.lines[menu_id])
        for menu_id in [each for each in scarcest_first if each not in taken]:
            asking = Taking(order.id, taken, menu_id, utc_now())
            if not self._insist(partial(self._note, seen, asking)):
                log.info("ended meanwhile, or in hand elsewhere", order_id=order.id)
                self._insist(partial(self._note, seen, asking._replace(asked=None)))
                return
            seen = asking
            try:
                items[menu_id] = self._take_line(order, asking, items[menu_id])
            except Refused as refusal:
                self._reject(order, asking._replace(asked=None), refusal)
                return
            except NoUsableAnswer as error:
                self._give_up(order, asking, str(error))
                return
            taken = (*taken, menu_id)
        self._answer(order, None, MenuReserved(tuple(items.values()), reservation_of(order)))

    def _take_line(self, order: Order, asking: Taking, item: Item) -> Item:
        """The item as the menu says it is after the PUT. Raises as Menus.take does."""
        quantity = order.lines[item.id]
        try:
            left = self._menus.take(item.id, quantity)
        except MenuServiceDown:
            self._insist(partial(self._note, asking, asking._replace(asked=None)))
            raise
        return replace(item, stock=max(item.stock - quantity, 0) if left is None else left)

    def _note(self, seen: Taking | None, now: Taking, connection: sa.Connection) -> bool:
        """Write the progress down; False where the next PUT must not be sent any more."""
        order = order_rows.lock_orders(connection, [now.order_id]).get(now.order_id)
        awaited = order is not None and order.state in AWAITING_MENU
        # `now` is found where the reply to its commit was lost.
        if takings.find(connection, now.order_id) not in (seen, now) or (now.asked is not None and not awaited):
            return False
        takings.put(connection, now)
        return True

    def _reject(self, order: Order, seen: Taking | None, refusal: Refused) -> None:
        """Fail the order; what was taken for it then counts as a late reservation, which is asked back."""
        rejected = MenuRejected(refusal.reason, refusal.menu_id)
        if seen and seen.taken:
            self._report(order, seen, f"rejected half taken, {refusal}")
            self._answer(order, seen, rejected, MenuReserved((), reservation_of(order)))
        else:
            self._answer(order, None, rejected)

    def _answer(self, order: Order, left: Taking | None, *messages: Message) -> None:
        """Apply the menu's answer, and keep only what is left half taken."""
        replies = [Reply(reservation_of(order), order.id, type(each).__name__, each) for each in messages]

        def write(connection: sa.Connection) -> None:
            handlers.apply_replies(connection, replies, self._changes())
            takings.drop(connection, order.id)
            if left:
                takings.put(connection, left)

        self._insist(write)

    def _give_up(self, order: Order, seen: Taking, problem: str) -> None:
        """Let the menu's time be up now: the order expires, and whatever is held for it is asked back."""
        self._report(order, seen, f"given up, {problem}")
        self._insist(lambda connection: handlers.change_order(connection, order.id, MenuDeadline(), self._changes()))

    def _report(self, order: Order, held: Taking, problem: str) -> None:
        put_back = {menu_id: order.lines[menu_id] for menu_id in held.taken}
        perhaps = {} if held.asked is None else {held.asked: order.lines[held.asked]}
        log.error("this menu takes no stock back, somebody has to put it there", order_id=order.id, problem=problem,
                  portions_by_menu_id=put_back, perhaps_also=perhaps)  # fmt: skip

    def _insist(self, write: Callable[[sa.Connection], T]) -> T:
        """Write, however long the database is away: nobody else knows how the PUT ended. Raises when stopped."""
        pauses = startup.pauses()
        while True:
            try:
                with self._database.writing() as connection:
                    return write(connection)
            except sa.exc.SQLAlchemyError as error:
                if not is_databases_fault(error) or self._stop.wait(next(pauses)):
                    raise
                log.warning("the transaction failed, trying again", error=startup.first_line(error))

    def _changes(self) -> handlers.Changes:
        clock = Clock(utc_now(), self._settings.reply_within, self._settings.pay_within)
        return handlers.Changes(clock, timedelta(seconds=self._settings.compensation_seconds))
