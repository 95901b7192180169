"""The API behind nginx, used from a browser; `make test-browser` runs these tests."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Locator, Page, Response

from sandbox.servers.broker import Broker, fresh_vhost
from tests.e2e import browser as chromium
from tests.e2e.deployment import Deployment
from tests.e2e.nginx import PROGRAM, nginx
from tests.polling import wait_until

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not (chromium.program() and PROGRAM), reason="needs Chromium and nginx: make test-browser"),
]
#: The processes that an order needs until its payment, which the browser reports.
PROCESSES = ("api", "consumers", "publishers", "users", "menu")
#: EventSource.readyState
OPEN, CLOSED = 1, 2
FOLLOW = """url => {
    window.events = [];
    window.source = new EventSource(url);
    source.addEventListener("status", event => events.push(JSON.parse(event.data)));
}"""
FETCH = """async ([url, method, body]) => {
    const headers = {"Content-Type": "application/json"};
    const response = await fetch(url, {method, headers, body: body && JSON.stringify(body)});
    return [response.status, await response.json()];
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium.running() as browser:
        yield browser


@pytest.fixture(scope="module")
def deployment(broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """The processes that the tests share; each places its own orders."""
    directory = tmp_path_factory.mktemp("deployment")
    with (
        fresh_vhost(broker, "order-service-test") as amqp_url,
        Deployment(amqp_url, f"sqlite:///{directory}/orders.db", directory) as deployment,
    ):
        deployment.prepare()
        deployment.start(*PROCESSES)
        deployment.wait_until_healthy("api", "users", "menu")
        yield deployment


@pytest.fixture(params=["/", "/shop/"])
def address(request: pytest.FixtureRequest, deployment: Deployment, tmp_path: Path) -> Iterator[str]:
    """The address of the API behind nginx, below each prefix."""
    with nginx(tmp_path / "nginx", deployment.ports["api"], request.param) as address:
        yield address


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    with browser.new_page() as page:
        yield page


def test_documentation_works_on_a_desktop_and_on_a_phone(address: str, page: Page) -> None:
    # given
    errors = chromium.errors_of(page)

    # when: the address alone leads to the documentation
    page.goto(address)
    page.locator(".opblock").first.wait_for()

    # then
    assert page.url == f"{address}docs"
    _, document = fetch(page, f"{address}openapi.json")
    assert shown_operations(page) == {
        (method.upper(), path) for path, methods in document["paths"].items() for method in methods
    }
    page.set_viewport_size(chromium.PHONE)
    operation(page, "placeOrder").locator("button").first.click()
    operation(page, "placeOrder").get_by_role("button", name="Try it out").wait_for()
    assert chromium.overflow(page) == 0

    # and: the page of the events
    page.goto(f"{address}asyncapi")
    for summary in page.locator("summary").all():
        summary.click()
    assert page.locator("article#OrderCreated pre").is_visible()
    assert chromium.overflow(page) == 0
    assert errors == []


def test_order_is_placed_with_swagger_ui_and_followed_until_it_is_paid(
    address: str, deployment: Deployment, page: Page
) -> None:
    # given
    errors = chromium.errors_of(page)
    page.goto(f"{address}docs")

    # when
    response = place_order(page)

    # then: Location leads to the order
    assert response.status in (201, 202)
    url = resolved(page, response.headers["location"], response.url)
    status, order = fetch(page, url)
    assert (status, order["id"]) == (200, response.json()["id"])

    # when
    page.evaluate(FOLLOW, f"{url}/events")

    # then: events arrive while the stream is open
    deployment.wait_until(lambda: any(each["total_price"] for each in events(page)), "the event of the price")
    assert {each["status"] for each in events(page)} == {"pending"}
    assert page.evaluate("source.readyState") == OPEN

    # when
    status, _ = fetch(page, f"{url}/payment", "PUT", {"payment_status": "paid"})

    # then: the last one arrives, and 204 keeps the browser from connecting again
    assert status == 200
    wait_until(lambda: events(page)[-1]["status"] == "paid", "the event of the payment", seconds=10)
    assert events(page)[-1] == fetch(page, url)[1]
    wait_until(lambda: page.evaluate("source.readyState") == CLOSED, "the EventSource to end", seconds=20)
    assert errors == []


def shown_operations(page: Page) -> set[tuple[str, str]]:
    """The method and the path of each operation on the page of Swagger UI."""
    script = """operations => operations.map(each => [
        each.querySelector(".opblock-summary-method").textContent,
        each.querySelector(".opblock-summary-path").dataset.path])"""
    return {(method, path) for method, path in page.locator(".opblock").evaluate_all(script)}


def operation(page: Page, name: str) -> Locator:
    return page.locator(f"#operations-Orders-{name}")


def place_order(page: Page) -> Response:
    """Place the example of the documentation with "Try it out"; return the response once the page shows it."""
    form = operation(page, "placeOrder")
    form.locator("button").first.click()
    form.get_by_role("button", name="Try it out").click()
    with page.expect_response(lambda response: response.request.method == "POST") as response:
        form.get_by_role("button", name="Execute").click()
    form.locator(".live-responses-table .response-col_status", has_text=str(response.value.status)).wait_for()
    return response.value


def resolved(page: Page, location: str, base: str) -> str:
    """Resolve the address as a browser does."""
    return str(page.evaluate("([location, base]) => new URL(location, base).href", [location, base]))


def fetch(page: Page, url: str, method: str = "GET", body: Any = None) -> tuple[int, Any]:
    """The status and the JSON of a response to the page."""
    status, answer = page.evaluate(FETCH, [url, method, body])
    return status, answer


def events(page: Page) -> list[Any]:
    received: list[Any] = page.evaluate("events")
    return received
