"""`make demo`: one order, from POST to paid, through real processes and a real broker.

Files are in var/demo and replaced on each run; no process is left running.
"""

import contextlib
import json
import shutil
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pika

from sandbox import processes
from sandbox.processes import PORTS, PROJECT_DIR, Processes, StartupError
from sandbox.servers import broker, http_client, process_group
from sandbox.servers.management import console
from sandbox.servers.sources import print_line

DEMO_DIR = PROJECT_DIR / "var" / "demo"
EXCHANGE = "restaurant.events"
#: The order of the client's documents, and its result.
ORDER = {"user_id": 1, "menu_ids": [1, 2]}
TOTAL = 38000
STOCK_AFTER = {1: 14, 2: 6}
#: Seconds until the next event of the order; it takes less than one.
EVENT_SECONDS = 10

API, MENU = (f"http://localhost:{PORTS[name]}" for name in ("api", "menu"))

RETRY = "All logs are in var/demo/*.log. Run `make demo` again, or `make run` to explore the running services."


def demo() -> None:
    shutil.rmtree(DEMO_DIR, ignore_errors=True)
    with broker.running(DEMO_DIR / "broker") as found, broker.fresh_vhost(found, "order-service-demo") as amqp_url:
        env = processes.environment(
            found,
            amqp_url,
            DATABASE_URL=f"sqlite:///{DEMO_DIR / 'order-service.db'}",
            SANDBOX_DIR=str(DEMO_DIR / "sandbox"),
            USER_SERVICE_URL=f"http://localhost:{PORTS['users']}",
            HOST="127.0.0.1",
        )
        processes.prepare(env)
        with processes.started(env, DEMO_DIR) as running:
            print_line(f"Starting {', '.join(running)} ...")
            try:
                processes.wait_healthy(running)
                _follow_order(amqp_url)
                _check_stock()
            except (StartupError, http_client.NoResponse) as error:
                raise StartupError(f"{error}\n{_tails(running)}\n\n{RETRY}") from error
        print_line(f"""
The order is paid. All messages passed through this broker, whose console shows queues and messages:
  {console(found.management_url)}
Everything that the demo started is stopped again. `make run` keeps everything running: post orders, and watch the
queues order-service.menu and order-service.payment in the console.""")


def _tails(running: Processes) -> str:
    """The ends of the logs, longer for a process that has exited."""
    lines = {name: 5 if process.poll() is None else 40 for name, process in running.items()}
    tails = {name: process_group.tail(DEMO_DIR / f"{name}.log", count) for name, count in lines.items()}
    return "\n".join(f"The end of var/demo/{name}.log:\n{tail}" for name, tail in tails.items())


def _follow_order(amqp_url: str) -> None:
    """Post the order, and print every event until it is paid. Raises StartupError if it is not."""
    with contextlib.closing(pika.BlockingConnection(pika.URLParameters(amqp_url))) as connection:
        channel = connection.channel()
        queue = channel.queue_declare("", exclusive=True).method.queue
        channel.queue_bind(queue, EXCHANGE, "#")
        print_line(f"\nPOST {API}/orders  {json.dumps(ORDER)}")
        start = datetime.now(UTC)
        response = http_client.call("POST", f"{API}/orders", ORDER)
        if response.status not in (201, 202):
            raise StartupError(f"The response to POST /orders is {response.status}: {json.dumps(response.body)}")
        posted = response.body
        print_line(f"  {response.status}: status {posted['status']}, total_price {posted['total_price']}\n\nEvents:")
        for _, _, body in channel.consume(queue, auto_ack=True, inactivity_timeout=EVENT_SECONDS):
            if not body:
                raise StartupError(f"The order is not paid, and there was no event for {EVENT_SECONDS} s.")
            event = json.loads(body)
            seconds = (datetime.fromisoformat(event["time"]) - start).total_seconds()
            print_line(f"  {seconds:5.2f} s  {event['type']:<18}{_describe(event['type'], event['data'])}")
            if event["type"] == "OrderPaid":
                break
    order = http_client.call("GET", f"{API}/orders/{posted['id']}").body
    print_line(f"\nGET {API}/orders/{posted['id']}\n{json.dumps(order, indent=2)}")
    if (order["status"], order["total_price"]) != ("paid", TOTAL):
        raise StartupError(f"The order should be paid, with total_price {TOTAL}.")


#: The description of each event of an order that gets paid.
DETAILS: dict[str, Callable[[dict[str, Any]], str]] = {
    "OrderCreated": lambda data: f"order {data['order_id']} is pending; to be reserved: {data['menu_ids']}",
    "MenuReserved": lambda data: (
        "reserved: " + ", ".join(f"{item['name']} {item['price']} ({item['stock']} left)" for item in data["items"])
    ),
    "PaymentRequested": lambda data: f"total {data['amount']}",
    "PaymentCompleted": lambda data: f"payment {data['payment_id']} of {data['amount']}",
    "OrderPaid": lambda data: f"order {data['order_id']} is paid",
}


def _describe(event_type: str, data: dict[str, Any]) -> str:
    if event_type not in DETAILS:
        raise StartupError(f"unexpected event {event_type}: {json.dumps(data)}")
    return DETAILS[event_type](data)


def _check_stock() -> None:
    """Print the stock of the Menu Service. Raises StartupError if it is not what the order leaves."""
    menus = http_client.call("GET", f"{MENU}/menus").body
    print_line(f"\nStock at the Menu Service, {MENU}/menus")
    for menu in menus:
        print_line(f"  {menu['name']:<18}{menu['stock']}")
    if {menu["id"]: menu["stock"] for menu in menus} != STOCK_AFTER:
        raise StartupError(f"The stock by menu id should be {STOCK_AFTER}.")


if __name__ == "__main__":
    sys.exit(processes.exit_status(demo, if_interrupted=130))
