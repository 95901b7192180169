"""The rules for a Menu Service, each with the conversation that checks it.

A rule is checked with orders of its own, which are released afterwards.
"""

from collections.abc import Mapping
from typing import Any

from order_service.cli import talk as shared
from order_service.cli.conversation import NotChecked
from order_service.cli.talk import Rule, Talk
from order_service.domain.messages import MenuRejected, MenuReserved, Message, StockReleased

#: More dishes than this are not ordered at once to find out whether a menu rejects them.
MOST_DISHES = 1000
_ANSWERS, _RESERVES = ("answers",), ("answers", "reserves")


class MenuTalk(Talk):
    """A conversation about one portion of the first dish."""

    request, grant, granted_id = "OrderCreated", MenuReserved, "reservation_id"
    undo, confirmation = "StockReleaseRequested", StockReleased

    @property
    def dishes(self) -> tuple[int, int]:
        first, second = self.wanted.prices
        return first, second

    def data(self) -> dict[str, Any]:
        return _ordered({self.dishes[0]: 1})

    def undo_data(self, undo_id: str, granted_id: str | None) -> dict[str, Any]:
        return {"release_id": undo_id, "reservation_id": granted_id}

    def order(self, portions: Mapping[int, int], order_id: int | None = None) -> Message:
        """The reply to an OrderCreated of these portions by menu id."""
        return self.ask(self.request, order_id or self.new_order(), **_ordered(portions))

    def stock(self) -> int | None:
        stock: int | None = self.granted().items[0].stock
        return stock

    def require_taken(self, before: int | None, count: int) -> None:
        if before is None:
            raise NotChecked("the menu does not count the stock of this dish")
        expected = before - count - 1
        self.require(self.stock() == expected, f"stock {expected} of dish {self.dishes[0]} in the last MenuReserved")


def _ordered(portions: Mapping[int, int]) -> dict[str, Any]:
    return {
        "menu_ids": [menu_id for menu_id, quantity in portions.items() for _ in range(quantity)],
        "lines": [{"menu_id": menu_id, "quantity": quantity} for menu_id, quantity in portions.items()],
    }


def _two_dishes_are_reserved(talk: MenuTalk) -> None:
    reply = talk.order(dict.fromkeys(talk.dishes, 1))
    entries = sorted(item.id for item in reply.items) if isinstance(reply, MenuReserved) else []
    talk.require(entries == sorted(talk.dishes), f"MenuReserved with one entry for each of the dishes {talk.dishes}")


def _prices_are_current(talk: MenuTalk) -> None:
    reply = talk.order(dict.fromkeys(talk.dishes, 1))
    prices = {item.id: item.price for item in reply.items} if isinstance(reply, MenuReserved) else {}
    expected = ", ".join(f"{price} for dish {menu_id}" for menu_id, price in talk.wanted.prices.items())
    talk.require(prices == talk.wanted.prices, f"MenuReserved with the price {expected}")


def _unknown_dish_is_rejected(talk: MenuTalk) -> None:
    order_id, unknown = talk.new_order(), talk.wanted.unknown_id
    for _ in range(2):
        reply = talk.order({unknown: 1}, order_id)
        talk.require(
            reply == MenuRejected("menu_not_found", unknown), f"MenuRejected, menu_not_found, menu_id {unknown}"
        )


def _nothing_is_reserved_if_one_dish_is_sold_out(talk: MenuTalk) -> None:
    first, second = talk.dishes
    before, sold_out, quantity = talk.stock(), talk.wanted.sold_out_id, 1
    if sold_out is None:
        reply = talk.order({second: 1})
        stock: int | None = reply.items[0].stock if isinstance(reply, MenuReserved) else None
        if stock is None or stock > MOST_DISHES:
            raise NotChecked("name a dish that is sold out with --sold-out")
        sold_out, quantity = second, stock + 1
    reply = talk.order({first: 1, sold_out: quantity})
    talk.require(reply == MenuRejected("out_of_stock", sold_out), f"MenuRejected, out_of_stock, menu_id {sold_out}")
    talk.require_taken(before, 0)


def _reservation_is_released_once(talk: MenuTalk) -> None:
    before, order_id = talk.stock(), talk.new_order()
    reservation_id = talk.granted(order_id).reservation_id
    for subject in (reservation_id, reservation_id, None):
        talk.give_back(order_id, subject)
    talk.require_taken(before, 0)


def _nothing_is_reserved_after_a_null_release(talk: MenuTalk) -> None:
    before, order_id = talk.stock(), talk.new_order()
    talk.uncounted.add(order_id)
    talk.give_back(order_id, None)
    talk.burst([order_id], 1)
    talk.require_taken(before, 0)
    reserved = talk.replies(order_id, "MenuReserved")
    talk.require(not reserved, f"no MenuReserved for order {order_id}, whose null release came before its OrderCreated")


def _late_order_is_not_reserved_again(talk: MenuTalk) -> None:
    before, order_id = talk.stock(), talk.new_order()
    talk.uncounted.add(order_id)
    talk.give_back(order_id, talk.granted(order_id).reservation_id)
    talk.burst([order_id], 1)
    talk.require_taken(before, 0)


# fmt: off
MENU_RULES: tuple[Rule, ...] = (
    Rule("answers", 2, "an OrderCreated is replied to", shared.request_is_answered),
    Rule("reserves", 1, "two dishes in stock are reserved", _two_dishes_are_reserved, _ANSWERS),
    Rule("prices", 1, "MenuReserved has the current prices", _prices_are_current, _RESERVES),
    Rule("unknown_dish", 1, "an unknown dish is rejected and named", _unknown_dish_is_rejected, _ANSWERS),
    Rule("release", 3, "a release is confirmed, also a repeated one", shared.undo_is_confirmed_each_time, _RESERVES),
    Rule("release_nothing", 3, "a release is confirmed if nothing is reserved",
         shared.undo_of_nothing_is_confirmed, _ANSWERS),
    Rule("null_release", 5, "a null release gives back everything", shared.null_undo_gives_back_everything, _RESERVES),
    Rule("null_release_first", 5, "an order that was released before it came is not reserved",
         _nothing_is_reserved_after_a_null_release, _RESERVES),
    Rule("release_once", 4, "a reservation is released once, also by requests with different ids",
         _reservation_is_released_once, _RESERVES),
    Rule("late_order", 4, "an order that is repeated after its release is not reserved again",
         _late_order_is_not_reserved_again, _RESERVES),
    Rule("repeat", 2, "a repeated order gets the same reply and reserves nothing more",
         shared.repeated_request_gets_the_same_reply, _RESERVES),
    Rule("all_or_nothing", 1, "nothing is reserved if one of two dishes is sold out",
         _nothing_is_reserved_if_one_dish_is_sold_out, _RESERVES),
    Rule("unknown_fields", None, "unknown fields are ignored", shared.unknown_fields_are_ignored, _RESERVES),
    Rule("several_processes", 2, "an order that comes several times at once is decided once",
         shared.several_processes_decide_once, _RESERVES),
    Rule("in_order", None, "the replies for an order come in the order of its requests",
         shared.replies_come_in_order, _RESERVES),
    Rule("kill", 6, "a killed process loses no order and decides none twice", shared.kill_loses_nothing, _RESERVES),
)
# fmt: on
