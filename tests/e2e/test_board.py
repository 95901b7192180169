"""The board of orders in a browser; `make test-browser` runs these tests."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, Route, ViewportSize, expect

from order_service.process import utc_now
from order_service.storage.database import Database
from order_service.storage.tables import orders
from sandbox.issuer import Issuer
from tests import builders
from tests.e2e import browser as chromium
from tests.e2e.deployment import Deployment, api_alone
from tests.integration import core
from tests.polling import wait_until
from tests.tokens import published

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not chromium.program(), reason="needs Chromium: make test-browser"),
]
#: Within this time a change is on the board, in milliseconds.
SEEN_MS = 2000
#: For how long the page is used with many cards, in seconds; its memory is bounded over five minutes, too.
BUSY_SECONDS = int(os.environ.get("ORDER_TEST_BOARD_SECONDS", "20"))
#: The most that this may take, and how much the page's memory may grow.
LONG_TASK_MS, MOST_GROWTH_BYTES = 200, 20_000_000
WATCH_TASKS = """
    window.tasks = [];
    new PerformanceObserver(list => tasks.push(...list.getEntries().map(each => each.duration))).observe({type: "longtask"});
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium.running() as browser:
        yield browser


@pytest.fixture
def deployment(tmp_path: Path) -> Iterator[Deployment]:
    with api_alone(f"sqlite:///{tmp_path}/orders.db", tmp_path, ORDER_WAIT_SECONDS="0") as deployment:
        yield deployment


@pytest.fixture
def database(deployment: Deployment) -> Iterator[Database]:
    with core.opened(deployment.database_url) as database:
        yield database


#: Opens a page with these options of Playwright's `new_page`.
OpenPage = Callable[..., Page]


@pytest.fixture
def expected_errors() -> list[str]:
    """What the errors in the console begin with that the test causes; it adds them."""
    return []


@pytest.fixture
def open_page(browser: Browser, expected_errors: list[str]) -> Iterator[OpenPage]:
    """At the end of the test, the consoles of all pages must be without another error or warning."""
    consoles = list[list[str]]()
    with ExitStack() as pages:

        def open_page(**options: Any) -> Page:
            options = {"locale": "en-GB", "reduced_motion": "reduce"} | options
            page = pages.enter_context(browser.new_page(**options))
            consoles.append(chromium.errors_of(page))
            return page

        yield open_page
    errors = [error for console in consoles for error in console]
    assert [error for error in errors if not error.startswith(tuple(expected_errors))] == []


@pytest.fixture
def page(open_page: OpenPage) -> Page:
    return open_page()


def address(deployment: Deployment) -> str:
    return f"http://127.0.0.1:{deployment.ports['api']}/board"


def place(database: Database, count: int = 1) -> list[int]:
    return core.place(database, count, now=utc_now())


def reserve(database: Database, *ids: int) -> None:
    core.apply(database, *(core.reserved(id) for id in ids), now=utc_now())


def pay(database: Database, *ids: int) -> None:
    reserve(database, *ids)
    core.apply(database, *(core.completed(id) for id in ids), now=utc_now())


def card(page: Page, order_id: int, column: str) -> Any:
    return page.locator(f"[data-column={column}] #order-{order_id}")


def violations(page: Page) -> list[tuple[str, str]]:
    """What axe-core finds, of any weight."""
    found = Axe().run(page).response["violations"]
    return [(each["id"], node["html"][:200]) for each in found for node in each["nodes"]]


def test_order_appears_moves_and_shows_why_it_failed(deployment: Deployment, database: Database, page: Page) -> None:
    # given
    page.goto(address(deployment))
    expect(page.locator("#link")).to_have_text("Live")

    # when: placed by REST, and paid without a reload
    order_id = deployment.client.post_order_until_accepted()
    expect(card(page, order_id, "pending")).to_contain_text("waits for the Menu Service", timeout=SEEN_MS)
    pay(database, order_id)
    expect(card(page, order_id, "paid")).to_contain_text("Rp38.000", timeout=SEEN_MS)
    [failed_id] = place(database)
    core.apply(database, core.rejected(failed_id), now=utc_now())

    # then
    expect(card(page, failed_id, "ended")).to_contain_text("Menu item 2 is out of stock.", timeout=SEEN_MS)
    expect(page.locator("#said")).to_contain_text(f"Order {failed_id}: failed", timeout=5000)
    expect(page.locator("[data-column=paid] h3")).to_contain_text("1")

    # and: the language stays
    page.get_by_role("button", name="Indonesia").click()
    page.reload()
    expect(card(page, failed_id, "ended")).to_contain_text("Menu item 2 kehabisan stok.")


def test_order_is_paid_by_the_sandbox_without_a_reload(amqp_url: str, tmp_path: Path, page: Page) -> None:
    settings = {"ORDER_WAIT_SECONDS": "0"}
    with Deployment(amqp_url, f"sqlite:///{tmp_path}/orders.db", tmp_path, **settings) as deployment:
        # given
        menu_url = f"http://127.0.0.1:{deployment.ports['menu']}/menus"
        deployment.prepare()
        deployment.start("users", "api", "consumers", "publishers", ORDER_BOARD_MENU_URL=menu_url)
        deployment.wait_until_healthy("users", "api")
        page.goto(address(deployment))
        expect(page.locator("#link")).to_have_text("Live")

        # when: placed by REST while no sibling runs, which then start
        order_id = deployment.client.post_order_until_accepted()
        expect(card(page, order_id, "pending")).to_be_visible(timeout=SEEN_MS)
        deployment.start("menu", "payment")

        # then
        expect(card(page, order_id, "paid")).to_contain_text("Rp38.000", timeout=30_000)

        # when: placed by the form, which offers the menu's dishes
        page.locator("#new").click()
        page.get_by_label("Dishes").fill("")
        page.get_by_role("button", name="2 Kwetiau Goreng Rp20.000").click()
        page.locator("#placing footer button:last-child").click()
        expect(page.locator("#placed")).to_have_text(f"Order {order_id + 1} is placed.")

        # then
        expect(card(page, order_id + 1, "paid")).to_contain_text("Kwetiau Goreng", timeout=30_000)
        deployment.assert_all_running()


def test_everything_is_possible_by_keyboard_alone(deployment: Deployment, database: Database, page: Page) -> None:
    # given
    [first, second] = place(database, 2)
    reserve(database, second)
    page.goto(address(deployment))
    card(page, first, "pending").wait_for()

    # when: from the number field to a card, to the other one, and its details
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.name") == "number"
    tab_to(page, f"#order-{second} button")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    expect(page.locator("#drawer .explanation")).to_contain_text(f"Order {first} waits")
    expect(page.locator("#drawer table")).to_contain_text("OrderCreated written to the outbox")
    page.keyboard.press("Escape")

    # then: the focus is where it was
    assert page.evaluate("document.activeElement.closest('li').id") == f"order-{first}"

    # when: the other is found by its number, and cancelled after a confirmation
    page.keyboard.press("/")
    page.keyboard.type(str(second))
    page.keyboard.press("Enter")
    expect(page.locator("#drawer h2")).to_contain_text(f"Order #{second}")
    tab_to(page, "#drawer .danger")
    page.keyboard.press("Enter")
    expect(page.locator("#drawer footer")).to_contain_text(f"Cancel order {second}?")
    assert page.evaluate("document.activeElement.textContent") == "Keep it"
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")

    # then
    expect(card(page, second, "ended")).to_contain_text("cancelled", timeout=SEEN_MS)
    expect(page.locator("#drawer .danger")).to_have_count(0)
    page.keyboard.press("Escape")

    # when: an order is placed with the form
    page.keyboard.press("Shift+Tab")
    tab_to(page, "#new")
    page.keyboard.press("Enter")
    tab_to(page, "#placing footer button:last-child")
    page.keyboard.press("Enter")

    # then
    expect(page.locator("#placed")).to_have_text(f"Order {second + 1} is placed.")
    expect(page.locator(f"#order-{second + 1}")).to_have_count(1, timeout=SEEN_MS)


def test_more_copy_and_language_are_possible_by_keyboard_alone(
    deployment: Deployment, database: Database, open_page: OpenPage
) -> None:
    # given: more orders than a column shows
    ids = place(database, 205)
    page = open_page(permissions=["clipboard-read", "clipboard-write"])
    page.goto(address(deployment))
    expect(page.locator("li.card")).to_have_count(200)

    # when
    tab_to(page, "[data-lang=id]")
    page.keyboard.press("Enter")
    expect(page.locator("h1")).to_have_text("Papan pesanan")
    tab_to(page, "[data-lang=en]")
    page.keyboard.press("Space")
    expect(page.locator("h1")).to_have_text("Order board")
    tab_to(page, "[data-column=pending] > button", most=300)
    page.keyboard.press("Enter")

    # then
    expect(page.locator("li.card")).to_have_count(205)
    expect(page.locator("[data-column=pending] > button")).to_be_hidden()

    # when: the oldest, by its number, and an id of its timeline
    page.keyboard.press("/")
    page.keyboard.type(f"{ids[0]}")
    page.keyboard.press("Enter")
    page.locator("#drawer[open]").wait_for()
    tab_to(page, "#drawer .copy")
    page.keyboard.press("Enter")

    # then
    expect(page.locator("#drawer .copy").first).to_have_text("Copied")
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied == page.locator("#drawer code").first.text_content()


def test_failures_of_actions_are_shown(
    deployment: Deployment, database: Database, page: Page, expected_errors: list[str]
) -> None:
    # given: the browser lists failed requests in the console
    expected_errors += ["Failed to load resource: the server responded with a status of 40"]
    [order_id] = place(database)
    page.goto(address(deployment))
    card(page, order_id, "pending").wait_for()

    # when: the number of no order
    page.keyboard.press("/")
    page.keyboard.type("999")
    page.keyboard.press("Enter")
    expect(page.locator("#problem")).to_have_text("No such order")
    page.get_by_role("button", name="Clear filter").click()

    # when: the order is paid before its cancellation is confirmed
    card(page, order_id, "pending").click()
    page.locator("#drawer .danger").click()
    pay(database, order_id)
    page.get_by_role("button", name="Yes, cancel it").click()

    # then
    expect(page.locator("#drawer .problem")).to_contain_text("paid")
    assert page.locator("#problem").is_hidden()
    assert violations(page) == []


def tab_to(page: Page, selector: str, *, most: int = 40) -> None:
    for _ in range(most):
        if page.evaluate("selector => document.activeElement.matches(selector)", selector):
            # The focus is visible.
            assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"
            return
        page.keyboard.press("Tab")
    pytest.fail(f"no Tab leads to {selector}")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [{"width": 1280, "height": 900}, chromium.PHONE])
def test_axe_finds_nothing(
    scheme: str, size: ViewportSize, deployment: Deployment, database: Database, open_page: OpenPage
) -> None:
    # given: a card of each kind, and warnings
    ids = place(database, 4)
    pay(database, ids[0])
    core.apply(database, core.rejected(ids[1]), now=utc_now())
    core.cancel(database, ids[2], now=utc_now())
    core.place(database, now=utc_now() - core.builders.policy().lifetime)
    page = open_page(color_scheme=scheme, viewport=size)
    page.goto(address(deployment))
    expect(page.locator("#alerts details")).not_to_have_count(0)
    page.locator("#alerts summary").first.click()

    # when
    found = {"board": violations(page)}
    overflow = chromium.overflow(page)
    page.locator(f"#order-{ids[3]} button").click()
    page.locator("#drawer[open]").wait_for()
    found["details"] = violations(page)
    page.locator("#drawer .danger").click()
    found["confirmation"] = violations(page)
    page.keyboard.press("Escape")
    page.locator("#new").click()
    found["form"] = violations(page)

    # then
    assert found == {"board": [], "details": [], "confirmation": [], "form": []}
    assert overflow == 0


def test_name_of_a_dish_is_text_and_does_not_turn_around_what_follows(
    deployment: Deployment, database: Database, page: Page
) -> None:
    # given: markup, and marks that display the rest of a text from right to left
    names = '<img src=x onerror="document.title = 1">', "Sate \u202eAyam\u2067"
    [order_id] = place(database)
    items = map(lambda item, name: replace(item, name=name), builders.menu_reserved().items, names)
    core.apply(database, builders.reply(order_id, builders.menu_reserved("R1", *items)), now=utc_now())

    # when
    page.goto(address(deployment))
    card(page, order_id, "pending").locator("button").click()

    # then
    expect(page.locator("#drawer dl")).to_contain_text(names[0])
    expect(page.locator("#drawer dl")).to_contain_text("Sate Ayam")
    expect(page.locator(f"#order-{order_id} .items")).to_have_text(f"{names[0]}, Sate Ayam")
    assert page.locator("img").count() == 0
    assert page.title() == "Order board"


def test_form_repeats_a_lost_answer_without_a_second_order(
    deployment: Deployment, database: Database, page: Page, expected_errors: list[str]
) -> None:
    # given: the first answer is lost
    expected_errors += ["Failed to load resource: net::ERR_"]

    def lose(route: Route) -> None:
        route.fetch()
        route.abort()

    page.goto(address(deployment))
    page.route("**/orders", lose, times=1)
    page.locator("#new").click()
    submit, placed = page.locator("#placing footer button:last-child"), page.locator("#placed")
    submit.click()
    expect(placed).to_contain_text("Connection lost")

    # when
    submit.click()
    expect(placed).to_have_text("Order 1 is placed.")
    submit.click()

    # then: another order only once the first is known to be placed
    expect(placed).to_have_text("Order 2 is placed.")
    assert core.count(database, orders) == 2


def test_filters_leave_a_phone_to_the_orders(deployment: Deployment, open_page: OpenPage) -> None:
    page = open_page(viewport=chromium.PHONE, locale="id-ID")

    page.goto(address(deployment))

    box = page.locator("#filters").bounding_box()
    assert box
    assert box["height"] < chromium.PHONE["height"] / 6
    assert chromium.overflow(page) == 0


def test_page_recovers_from_a_restart_and_from_a_cut_network(
    deployment: Deployment, database: Database, page: Page, expected_errors: list[str]
) -> None:
    # given: the browser lists each failed attempt in the console
    expected_errors += ["Failed to load resource: net::ERR_"]
    [first, second, third] = place(database, 3)
    page.goto(address(deployment))
    card(page, third, "pending").wait_for()

    # when: the API is restarted, and orders change in between
    deployment.processes[-1].terminate()
    expect(page.locator("#link")).to_have_text("Connection lost, reconnecting …")
    pay(database, first)
    deployment.start("api")
    deployment.wait_until_healthy("api")

    # then
    expect(card(page, first, "paid")).to_be_visible(timeout=15_000)
    expect(page.locator("#link")).to_have_text("Live")

    # when: the network is cut for 10 s
    page.context.set_offline(True)
    expect(page.locator("#link")).to_have_text("Connection lost, reconnecting …", timeout=15_000)
    core.cancel(database, second, now=utc_now())
    [fourth] = place(database)
    page.wait_for_timeout(10_000)
    page.context.set_offline(False)

    # then
    expect(card(page, second, "ended")).to_be_visible(timeout=15_000)
    expect(card(page, fourth, "pending")).to_be_visible()
    expect(page.locator("#link")).to_have_text("Live")


@pytest.mark.timeout(BUSY_SECONDS + 120)
def test_500_cards_stay_usable_during_50_changes_a_second(
    deployment: Deployment, database: Database, page: Page
) -> None:
    # given
    ids = place(database, 600)
    pay(database, *ids[:200])
    for order_id in ids[200:400]:
        core.cancel(database, order_id, now=utc_now())
    page.add_init_script(WATCH_TASKS)
    page.goto(address(deployment))
    expect(page.locator("li.card")).to_have_count(600)
    session = page.context.new_cdp_session(page)

    # when: it is scrolled while orders are placed, reserved and paid
    sizes, changes, begun = [], 0, time.monotonic()
    while (passed := time.monotonic() - begun) < BUSY_SECONDS:
        if changes < passed * 50:
            new = place(database, 5)
            reserve(database, *new)
            core.apply(database, *(core.completed(id) for id in new), now=utc_now())
            changes += 15
        page.mouse.wheel(0, 400 if int(passed) % 2 else -400)
        if len(sizes) < passed // 5:
            session.send("HeapProfiler.collectGarbage")
            sizes.append(session.send("Runtime.getHeapUsage")["usedSize"])

    # then
    newest = max(new)
    wait_until(lambda: card(page, newest, "paid").count() == 1, "the last change", seconds=10)
    assert changes / BUSY_SECONDS > 40
    longest = max(page.evaluate("tasks"), default=0)
    # `pytest -rP` shows it.
    print(f"the longest task took {longest} ms; the page had {sizes[0]}, and then {sizes[-1]} bytes")
    assert longest < LONG_TASK_MS
    assert sizes[-1] - sizes[0] < MOST_GROWTH_BYTES, sizes
    assert page.locator("li.card").count() <= 600


def test_page_without_data_says_so_and_claims_nothing(deployment: Deployment, database: Database, page: Page) -> None:
    # given: a database that cannot be read
    with database.engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE orders RENAME TO hidden")

    # when
    page.goto(address(deployment))

    # then
    expect(page.locator("#link")).to_have_text("Loading …")
    expect(page.locator("[data-column=pending] .empty")).to_be_hidden()
    expect(page.locator("#link")).to_contain_text("The database has not answered", timeout=40_000)

    # when
    with database.engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE hidden RENAME TO orders")

    # then
    expect(page.locator("#link")).to_have_text("Live", timeout=10_000)
    expect(page.locator("[data-column=pending] .empty")).to_have_text("No order is waiting.")


def test_page_asks_for_a_token_and_keeps_it_in_memory_only(
    page: Page, expected_errors: list[str], tmp_path: Path
) -> None:
    # given: the browser lists refused requests in the console
    expected_errors += ["Failed to load resource: the server responded with a status of 403"]
    issuer = Issuer("https://login.example")
    with published(issuer) as keys:
        settings = {f"ORDER_{name.upper()}": str(value) for name, value in keys.settings.items()}
        with (
            api_alone(f"sqlite:///{tmp_path}/orders.db", tmp_path, **settings) as deployment,
            core.opened(deployment.database_url) as database,
        ):
            [order_id] = place(database)
            page.goto(address(deployment))
            assert violations(page) == []

            # when
            page.get_by_label("Access token").fill(issuer.token("1", "orders"))
            page.keyboard.press("Enter")
            expect(page.locator("#link")).to_contain_text("orders:all")
            hidden = page.locator("#board").is_hidden()
            page.get_by_label("Access token").fill(issuer.token("till-3", "orders:all"))
            page.keyboard.press("Enter")

            # then
            expect(card(page, order_id, "pending")).to_be_visible()
            assert hidden
            assert page.locator("#new").is_hidden()
            kept = page.evaluate("JSON.stringify([localStorage, sessionStorage, document.cookie, location.href])")
            assert "eyJ" not in kept
            page.reload()
            expect(page.get_by_label("Access token")).to_be_visible()
