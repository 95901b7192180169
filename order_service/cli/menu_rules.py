"""The rules for a Menu Service, each with the conversation that checks it.

A rule is checked with orders of its own, which are released afterwards.
"""

from order_service.cli.conversation import NotChecked
from order_service.cli.talk import (
    BURST_ORDERS,
    BURST_REPEATS,
    CREATED,
    RELEASE,
    Rule,
    Talk,
    burst,
    in_order,
    kill,
    order_data,
    processes,
    wait,
)
from order_service.domain.messages import MenuRejected, MenuReserved

#: More dishes than this are not ordered at once to find out whether a menu rejects them.
MOST_DISHES = 1000
_ANSWERS, _RESERVES = ("answers",), ("answers", "reserves")


def _order_is_answered(talk: Talk) -> None:
    talk.order({talk.dishes[0]: 1})


def _two_dishes_are_reserved(talk: Talk) -> None:
    reply = talk.order(dict.fromkeys(talk.dishes, 1))
    entries = sorted(item.id for item in reply.items) if isinstance(reply, MenuReserved) else []
    talk.require(entries == sorted(talk.dishes), f"MenuReserved with one entry for each of the dishes {talk.dishes}")


def _prices_are_current(talk: Talk) -> None:
    reply = talk.order(dict.fromkeys(talk.dishes, 1))
    prices = {item.id: item.price for item in reply.items} if isinstance(reply, MenuReserved) else {}
    expected = ", ".join(f"{price} for dish {menu_id}" for menu_id, price in talk.wanted.prices.items())
    talk.require(prices == talk.wanted.prices, f"MenuReserved with the price {expected}")


def _repeated_order_gets_the_same_reply(talk: Talk) -> None:
    before, order_id = talk.stock(), talk.new_order()
    for _ in range(3):
        talk.reserve(order_id)
    talk.require_one_answer(order_id, CREATED)
    talk.require_stock(before, 1)


def _unknown_dish_is_rejected(talk: Talk) -> None:
    order_id, unknown = talk.new_order(), talk.wanted.unknown_id
    for _ in range(2):
        reply = talk.order({unknown: 1}, order_id)
        talk.require(
            reply == MenuRejected("menu_not_found", unknown), f"MenuRejected, menu_not_found, menu_id {unknown}"
        )


def _nothing_is_reserved_if_one_dish_is_sold_out(talk: Talk) -> None:
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
    talk.require_stock(before, 0)


def _release_is_confirmed_each_time(talk: Talk) -> None:
    order_id = talk.new_order()
    reservation_id = talk.reserve(order_id).reservation_id
    for release_id in ("check-1", "check-1", "check-2"):
        talk.release(order_id, reservation_id, release_id)


def _reservation_is_released_once(talk: Talk) -> None:
    before, order_id = talk.stock(), talk.new_order()
    reservation_id = talk.reserve(order_id).reservation_id
    for subject in (reservation_id, reservation_id, None):
        talk.release(order_id, subject)
    talk.require_stock(before, 0)


def _release_of_nothing_is_confirmed(talk: Talk) -> None:
    for subject in ("no such reservation", None):
        talk.release(talk.new_order(), subject)


def _null_release_gives_back_everything(talk: Talk) -> None:
    before, order_id = talk.stock(), talk.new_order()
    talk.reserve(order_id)
    talk.release(order_id, None)
    talk.require_stock(before, 0)


def _nothing_is_reserved_after_a_null_release(talk: Talk) -> None:
    before, order_id = talk.stock(), talk.new_order()
    talk.conversation.uncounted.add(order_id)
    talk.release(order_id, None)
    talk.conversation.send(CREATED, order_id, **order_data({talk.dishes[0]: 1}))
    talk.require_stock(before, 0)
    reserved = talk.conversation.replies(order_id, "MenuReserved")
    talk.require(not reserved, f"no MenuReserved for order {order_id}, whose null release came before its OrderCreated")


def _late_order_is_not_reserved_again(talk: Talk) -> None:
    before, order_id = talk.stock(), talk.new_order()
    talk.conversation.uncounted.add(order_id)
    talk.release(order_id, talk.reserve(order_id).reservation_id)
    talk.conversation.send(CREATED, order_id, **order_data({talk.dishes[0]: 1}))
    talk.require_stock(before, 0)


def _menu_ignores_unknown_fields(talk: Talk) -> None:
    talk.reserve(extra={"unknown": {"a": [1]}}, unknown=None)


def _order_is_reserved_once_by_several_processes(talk: Talk) -> str:
    before, orders = talk.stock(), [talk.new_order() for _ in range(BURST_ORDERS)]
    burst(talk, CREATED, orders, BURST_REPEATS, **order_data({talk.dishes[0]: 1}))
    for order_id in orders:
        wait(talk, order_id, CREATED, BURST_REPEATS)
    talk.require_stock(before, len(orders))
    return processes(talk)


def _menu_survives_a_kill(talk: Talk) -> None:
    before, orders = talk.stock(), [talk.new_order() for _ in range(BURST_ORDERS)]
    kill(talk, CREATED, orders, **order_data({talk.dishes[0]: 1}))
    talk.require_stock(before, len(orders))
    for order_id in orders:
        talk.require_one_answer(order_id, CREATED)


def _menu_replies_in_order(talk: Talk) -> None:
    in_order(talk, CREATED, RELEASE, lambda number: {"release_id": number, "reservation_id": None},
              **order_data({talk.dishes[0]: 1}))  # fmt: skip


# fmt: off
MENU_RULES: tuple[Rule, ...] = (
    Rule("answers", 2, "an OrderCreated is replied to", _order_is_answered),
    Rule("reserves", 1, "two dishes in stock are reserved", _two_dishes_are_reserved, _ANSWERS),
    Rule("prices", 1, "MenuReserved has the current prices", _prices_are_current, _RESERVES),
    Rule("unknown_dish", 1, "an unknown dish is rejected and named", _unknown_dish_is_rejected, _ANSWERS),
    Rule("release", 3, "a release is confirmed, also a repeated one", _release_is_confirmed_each_time, _RESERVES),
    Rule("release_nothing", 3, "a release is confirmed if nothing is reserved",
         _release_of_nothing_is_confirmed, _ANSWERS),
    Rule("null_release", 5, "a null release gives back everything", _null_release_gives_back_everything, _RESERVES),
    Rule("null_release_first", 5, "an order that was released before it came is not reserved",
         _nothing_is_reserved_after_a_null_release, _RESERVES),
    Rule("release_once", 4, "a reservation is released once, also by requests with different ids",
         _reservation_is_released_once, _RESERVES),
    Rule("late_order", 4, "an order that is repeated after its release is not reserved again",
         _late_order_is_not_reserved_again, _RESERVES),
    Rule("repeat", 2, "a repeated order gets the same reply and reserves nothing more",
         _repeated_order_gets_the_same_reply, _RESERVES),
    Rule("all_or_nothing", 1, "nothing is reserved if one of two dishes is sold out",
         _nothing_is_reserved_if_one_dish_is_sold_out, _RESERVES),
    Rule("unknown_fields", None, "unknown fields are ignored", _menu_ignores_unknown_fields, _RESERVES),
    Rule("several_processes", 2, "an order that comes several times at once is decided once",
         _order_is_reserved_once_by_several_processes, _RESERVES),
    Rule("in_order", None, "the replies for an order come in the order of its requests",
         _menu_replies_in_order, _RESERVES),
    Rule("kill", 6, "a killed process loses no order and decides none twice", _menu_survives_a_kill, _RESERVES),
)
# fmt: on
