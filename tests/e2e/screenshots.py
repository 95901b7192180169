"""Take the screenshots of the board in docs/images: `make screenshots`, or `... tests.e2e.screenshots DIRECTORY` for all.

Each state is made in a database of its own; only the API runs.
"""

import contextlib
import random
import sys
import tempfile
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import NamedTuple

from playwright.sync_api import Browser, Page

from order_service.domain.messages import Item
from order_service.process import utc_now
from order_service.storage.database import Database
from tests import builders
from tests.e2e import browser as chromium
from tests.e2e.deployment import Deployment, api_alone
from tests.integration import core

IMAGES = Path(__file__).parents[2] / "docs" / "images"
DESKTOP, WALL, PHONE = (1200, 675), (1920, 1080), (390, 844)
DISHES = {
    1: ("Nasi Ayam Bakar", 18000), 2: ("Kwetiau Goreng", 20000), 3: ("Gado-gado", 15000),
    4: ("Soto Betawi", 24000), 5: ("Es Teh Manis", 5000),
}  # fmt: skip


class Shot(NamedTuple):
    """One image: a state of the service, on a screen, in a language and a colour scheme."""

    name: str
    state: str
    size: tuple[int, int] = DESKTOP
    language: str = "en"
    is_dark: bool = False
    order: int | None = None


#: How many orders there are, and which of them wait for their payment.
COUNT = 150
WAITING = (COUNT - 24, COUNT - 12, COUNT - 7, COUNT - 4, COUNT - 3, COUNT - 2)
#: The images that are kept.
KEPT = (
    Shot("board", "ordinary"),
    Shot("board-details", "ordinary", language="id", is_dark=True, order=COUNT - 6),
    Shot("board-phone", "ordinary", PHONE, "id"),
    Shot("board-wall-stalled", "stalled", WALL, "id", is_dark=True),
    Shot("board-broken", "broken"),
    Shot("board-empty", "empty", language="id"),
)
#: All that one looks at after a change of the page.
ALL = tuple(
    Shot(f"{state}-{size[0]}-{language}-{'dark' if is_dark else 'light'}", state, size, language, is_dark)
    for state in ("ordinary", "empty", "stalled", "broken")
    for size in (DESKTOP, WALL, PHONE)
    for language, is_dark in (("id", False), ("en", True))
)


def place(database: Database, at: datetime, menu_ids: tuple[int, ...]) -> int:
    return core.place(database, now=at, user_id=random.randint(1, 40), menu_ids=menu_ids)[0]


def reserve(database: Database, order_id: int, at: datetime, menu_ids: tuple[int, ...]) -> Decimal:
    items = [Item(id, DISHES[id][0], Decimal(DISHES[id][1]), 20) for id in dict.fromkeys(menu_ids)]
    core.apply(database, builders.reply(order_id, builders.menu_reserved("R1", *items)), now=at)
    return Decimal(sum(DISHES[id][1] for id in menu_ids))


def ordinary(database: Database) -> None:
    """An hour of orders: most are paid, some wait, some have ended otherwise."""
    random.seed(7)
    for number in range(COUNT):
        at = utc_now() - timedelta(seconds=3400 * (1 - number / COUNT) ** 1.2 + 8)
        menu_ids = tuple(random.choices(list(DISHES), k=random.randint(1, 4)))
        order_id = place(database, at, menu_ids)
        if number % 11 == 4:
            rejection = builders.menu_rejected(menu_id=menu_ids[0])
            core.apply(database, builders.reply(order_id, rejection), now=at + timedelta(seconds=1))
            continue
        if number == COUNT - 1:
            continue
        total = reserve(database, order_id, at + timedelta(seconds=1), menu_ids)
        if number % 13 == 7:
            core.cancel(database, order_id, now=at + timedelta(seconds=40))
        elif number not in WAITING:
            paid_at = at + timedelta(seconds=random.lognormvariate(3.2, 0.6))
            core.apply(database, core.completed(order_id, amount=total), now=min(paid_at, utc_now()))
    core.clear_outbox(database)


def stalled(database: Database) -> None:
    """The relay has stopped: orders wait for the menu, their events in the outbox."""
    ordinary(database)
    for number in range(9):
        place(database, utc_now() - timedelta(seconds=400 - 40 * number), (1 + number % 5, 2))


STATES: dict[str, Callable[[Database], None]] = {
    "ordinary": ordinary, "empty": lambda _: None, "stalled": stalled, "broken": ordinary,
}  # fmt: skip


@contextlib.contextmanager
def deployed(state: str) -> Iterator[Deployment]:
    with tempfile.TemporaryDirectory() as name:
        url = f"sqlite:///{name}/orders.db"
        with api_alone(url, Path(name), ORDER_MENU_REPLY_SECONDS="30") as deployment:
            with core.opened(url) as database:
                STATES[state](database)
            yield deployment


def take(browser: Browser, deployment: Deployment, shot: Shot, directory: Path) -> None:
    width, height = shot.size
    scheme, locale = ("dark" if shot.is_dark else "light"), {"en": "en-GB", "id": "id-ID"}[shot.language]
    with browser.new_page(
        viewport={"width": width, "height": height}, color_scheme=scheme, locale=locale, timezone_id="Asia/Jakarta",
        reduced_motion="reduce", device_scale_factor=0.6 if width > 1500 else 1,
    ) as page:  # fmt: skip
        page.goto(f"http://127.0.0.1:{deployment.ports['api']}/board")
        page.locator("#strip svg").wait_for()
        if shot.order:
            page.locator(f"#order-{shot.order} button").click()
            page.locator("#drawer[open]").wait_for()
        if shot.state == "broken":
            cut(page)
        (page.locator("#drawer") if shot.order else page).screenshot(path=directory / f"{shot.name}.png")


def cut(page: Page) -> None:
    """Cut the page's network, and wait until it says so."""
    page.context.set_offline(True)
    page.locator("#link.lost").wait_for()


def main() -> None:
    directory, shots = (Path(sys.argv[1]), ALL) if sys.argv[1:] else (IMAGES, KEPT)
    directory.mkdir(parents=True, exist_ok=True)
    with chromium.running() as browser:
        for state in STATES:
            with deployed(state) as deployment:
                for shot in shots:
                    if shot.state == state:
                        take(browser, deployment, shot, directory)


if __name__ == "__main__":
    main()
