"""Take the screenshots of docs/console.md: `python -m scripts.console_screenshots`.

Needs Debian's rabbitmq-server and chromium (`make test-browser` installs the latter). Runs a private broker and the
processes, stops the Menu Service, and goes through the pages of RabbitMQ's console as docs/console.md does.
"""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import pika
from playwright.sync_api import Locator, Page, ViewportSize

from sandbox.servers import rabbitmq_node
from tests.e2e import browser as chromium
from tests.e2e.client import order_of
from tests.e2e.deployment import Deployment
from tests.polling import wait_until

IMAGES = Path(__file__).parents[1] / "docs" / "images"
WINDOW: ViewportSize = {"width": 1000, "height": 800}
MENU_QUEUE, DEAD_LETTERS = "menu-service.orders", "order-service.menu.dlq"
#: The figures of the console are of the last seconds.
SETTLE_SECONDS = 60


def reply(amqp_url: str, order_id: int) -> None:
    """Reply as a Menu Service whose reply has no usable price."""
    data = {"order_id": order_id, "items": [{"id": 1, "name": "Nasi Ayam Bakar", "price": "free"}]}
    properties = pika.BasicProperties(
        message_id="menu-1",
        type="MenuReserved",
        app_id="menu-service",
        content_type="application/json",
        delivery_mode=2,
    )
    connection = pika.BlockingConnection(pika.URLParameters(amqp_url))
    connection.channel().basic_publish("menu-service.events", "menu.reserved", json.dumps(data).encode(), properties)
    connection.close()


def stuck_orders(deployment: Deployment) -> None:
    """Two orders that the Menu Service, now stopped, has not answered; for another one it sent a wrong reply."""
    deployment.prepare()
    deployment.start("users", "consumers", "publishers", "payment", "api")
    [menu] = deployment.start("menu")
    deployment.wait_until_healthy()
    first = deployment.client.post_order().body["id"]
    deployment.wait_until_paid([first])
    menu.terminate()
    for _ in range(2):
        deployment.client.post_order(order_of(1), headers={"Prefer": "respond-async"})
    deployment.wait_until(lambda: not deployment.records.outbox_types(), "the events to be sent")
    reply(deployment.amqp_url, first + 2)
    deployment.wait_until(lambda: deployment.records.queue_depths().get(DEAD_LETTERS), "the dead letter")


class Console:
    """The pages of RabbitMQ's console."""

    def __init__(self, page: Page, url: str) -> None:
        self.page, self.url = page, url
        page.goto(url)
        page.fill("input[name=username]", "guest")
        page.fill("input[name=password]", "guest")
        page.click("input[type=submit]")
        page.wait_for_selector("#main h1")

    def open(self, path: str, ready: Callable[[Page], bool]) -> None:
        """Open a page, and wait until it shows what it should: its figures follow after some seconds."""
        self.page.goto(f"{self.url}/#/{path}")
        wait_until(lambda: ready(self.page), f"{path} of the console", seconds=SETTLE_SECONDS)

    def section(self, title: str) -> Locator:
        """A section of the page of a queue, opened."""
        section = self.page.locator("#main > div", has=self.page.locator("h2", has_text=title)).first
        if "section-hidden" in (section.get_attribute("class") or "") and not section.locator("> div").is_visible():
            section.locator("h2").click()
        return section

    def get_message(self) -> Locator:
        """The first message of the queue, which stays there."""
        section = self.section("Get messages")
        section.locator("input[type=submit]").click()
        message = section.locator("#msg-wrapper")
        message.locator("table.facts").first.wait_for()
        return message


def shows(*texts: str) -> Callable[[Page], bool]:
    return lambda page: all(text in page.locator("#main").inner_text() for text in texts)


def save(name: str, part: Locator) -> None:
    """Save a picture without what moves: the window ends below this part."""
    part.screenshot(path=IMAGES / f"{name}.png", animations="disabled")
    print(f"{name}.png: {(IMAGES / f'{name}.png').stat().st_size // 1024} KiB")


def take(console: Console) -> None:
    def has_figures(page: Page) -> bool:
        row = page.locator("table.list tr", has_text=MENU_QUEUE)
        return row.count() == 1 and row.locator("td").nth(4).inner_text() == "2"

    console.open("queues", lambda page: shows(MENU_QUEUE, DEAD_LETTERS)(page) and has_figures(page))
    save("console-queues", console.page.locator("#main table.list"))

    console.open(f"queues/%2F/{MENU_QUEUE}", shows("Get messages", MENU_QUEUE))
    save("console-consumers", console.section("Consumers"))
    save("console-message", console.get_message())

    console.open(f"queues/%2F/{DEAD_LETTERS}", shows("Get messages", DEAD_LETTERS))
    save("console-dead-letter", console.get_message())


def main() -> None:
    IMAGES.mkdir(exist_ok=True)
    ports = rabbitmq_node.free_ports()
    with tempfile.TemporaryDirectory() as name, chromium.running() as browser:
        directory = Path(name)
        with (
            rabbitmq_node.running(directory / "broker", ports, keep=False),
            Deployment(
                f"amqp://guest:guest@localhost:{ports.amqp}/", f"sqlite:///{directory}/orders.db", directory
            ) as deployment,
        ):
            stuck_orders(deployment)
            page = browser.new_page(viewport=WINDOW)
            take(Console(page, f"http://localhost:{ports.management}"))


if __name__ == "__main__":
    main()
