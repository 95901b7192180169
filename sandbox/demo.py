"""`make demo`: one order, from POST to paid, through real processes and a real broker.

Its files are below var/demo, replaced each time, and nothing is left running. A queue of the demo's own shows every
event as it passes the broker.
"""

import contextlib
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pika

from sandbox import processes
from sandbox.processes import PORTS, PROJECT_DIR, Processes, StartupError
from sandbox.servers import broker, http_client, process_group
from sandbox.servers.management import console
from sandbox.servers.sources import Unavailable, print_line

DEMO_DIR = PROJECT_DIR / "var" / "demo"
EXCHANGE = "restaurant.events"
#: The order of the client's documents, and its result.
ORDER = {"user_id": 1, "menu_ids": [1, 2]}
TOTAL = 38000
STOCK_AFTER = {1: 14, 2: 6}
#: Seconds until the order is paid; it takes less than one.
PAID_SECONDS = 30

API, MENU = (f"http://localhost:{PORTS[name]}" for name in ("api", "menu"))

RETRY = """
The logs of all processes are in var/demo/*.log. Run `make demo` again, or `make run` to look around
while everything stays up."""


def main() -> int:
    """Returns the exit status."""
    processes.interrupt_once()
    try:
        processes.require_free_ports()
        shutil.rmtree(DEMO_DIR, ignore_errors=True)
        with broker.running(DEMO_DIR / "broker") as found, broker.fresh_vhost(found, "order-service-demo") as amqp_url:
            _demo(found, amqp_url)
    except KeyboardInterrupt:
        print_line("Stopped.")
        return 130
    except (StartupError, Unavailable) as trouble:
        print(f"\n{trouble}", file=sys.stderr)
        return 1
    return 0


def _demo(found: broker.Broker, amqp_url: str) -> None:
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
            _follow_order(amqp_url, running)
            _check_stock()
        except (StartupError, http_client.NoResponse) as trouble:
            raise StartupError(f"{trouble}\n{_tails(running)}\n{RETRY}") from trouble
    print_line(f"""
The order is paid. All of it was real: the messages went through this broker, whose console shows queues and messages:
  {console(found.management_url)}
Everything that the demo started is stopped again. `make run` keeps everything up: post orders, and watch the queues
order-service.menu and order-service.payment in the console.""")


def _tails(running: Processes) -> str:
    """The ends of the logs, longer for a process that has ended."""
    lines = {name: 5 if process.poll() is None else 40 for name, process in running.items()}
    tails = {name: process_group.tail(DEMO_DIR / f"{name}.log", count) for name, count in lines.items()}
    return "\n".join(f"The end of var/demo/{name}.log:\n{tail}" for name, tail in tails.items())


def _follow_order(amqp_url: str, running: Processes) -> None:
    """Post the order, and show every event until it is paid. Raises StartupError if it is not."""
    start = time.monotonic()

    def show(what: str, detail: str) -> None:
        print_line(f"  {time.monotonic() - start:5.2f} s  {what:<18}{detail}")

    with _listening(amqp_url) as events, ThreadPoolExecutor(1) as pool:
        print_line(f"\nPOST {API}/orders  {json.dumps(ORDER)}")
        posted = pool.submit(http_client.call, "POST", f"{API}/orders", ORDER)
        order_id, seen = 0, ""
        while not (order_id and seen == "OrderPaid"):
            processes.require_alive(running)
            if time.monotonic() - start > PAID_SECONDS:
                raise StartupError(f"The order was not paid within {PAID_SECONDS} s.")
            if event := next(events):
                seen = event["type"]
                show(seen, _describe(seen, event["data"]))
            if not order_id and posted.done():
                answer = posted.result()
                if answer.status not in (201, 202):
                    raise StartupError(f"POST /orders answered {answer.status}: {json.dumps(answer.body)}")
                order_id = answer.body["id"]
                show(f"answer {answer.status}", _priced(answer.body))
    order = http_client.call("GET", f"{API}/orders/{order_id}").body
    show("GET", _priced(order))
    if (order["status"], order["total_price"]) != ("paid", TOTAL):
        raise StartupError(f"The order should be paid, with total_price {TOTAL}. It is: {order}")
    print_line(f"\nGET {API}/orders/{order_id}\n{json.dumps(order, indent=2)}")


@contextlib.contextmanager
def _listening(amqp_url: str) -> Iterator[Iterator[dict[str, Any] | None]]:
    """Every event as it passes the broker, and None whenever none passes for a moment."""
    with contextlib.closing(pika.BlockingConnection(pika.URLParameters(amqp_url))) as connection:
        channel = connection.channel()
        queue = channel.queue_declare("", exclusive=True).method.queue
        channel.queue_bind(queue, EXCHANGE, "#")
        messages = channel.consume(queue, auto_ack=True, inactivity_timeout=0.02)
        yield (json.loads(body) if body else None for _, _, body in messages)


#: What to show of the data of each event on the way to a paid order.
DETAILS: dict[str, Callable[[dict[str, Any]], str]] = {
    "OrderCreated": lambda data: f"order {data['order_id']} is pending; the menu is asked for {data['menu_ids']}",
    "MenuReserved": lambda data: (
        "reserved: " + ", ".join(f"{item['name']} {item['price']} ({item['stock']} left)" for item in data["items"])
    ),
    "PaymentRequested": lambda data: f"total {data['amount']}",
    "PaymentCompleted": lambda data: f"payment {data['payment_id']} of {data['amount']}",
    "OrderPaid": lambda data: f"order {data['order_id']} is paid",
}


def _describe(event_type: str, data: dict[str, Any]) -> str:
    if event_type not in DETAILS:
        raise StartupError(f"{event_type}, which should not happen here: {json.dumps(data)}")
    return DETAILS[event_type](data)


def _priced(order: dict[str, Any]) -> str:
    return f"order {order['id']}: status {order['status']}, total_price {order['total_price']}"


def _check_stock() -> None:
    """Show the stock at the Menu Service. Raises StartupError if it is not what the order leaves."""
    print_line(f"\nStock at the Menu Service, {MENU}/menus")
    for menu_id, expected in STOCK_AFTER.items():
        menu = http_client.call("GET", f"{MENU}/menus/{menu_id}").body
        print_line(f"  {menu['name']:<18}{menu['stock']}")
        if menu["stock"] != expected:
            raise StartupError(f"The stock of menu {menu_id} should be {expected}.")


if __name__ == "__main__":
    sys.exit(main())
