"""`make demo`: one order, from POST to paid, through real processes and a real broker.

Files are in var/demo and replaced on each run; no process is left running.
"""

import contextlib
import json
import shutil
import sys
from datetime import UTC, datetime

import pika

from sandbox import processes
from sandbox.processes import PORTS, PROJECT_DIR, StartupError
from sandbox.servers import broker, broker_users, http_client, process_group
from sandbox.servers.management import console
from sandbox.servers.sources import print_line
from sandbox.siblings.kit import connection_parameters

DEMO_DIR = PROJECT_DIR / "var" / "demo"
#: Where the Order Service, the Menu Service and the Payment Service publish.
EXCHANGES = ("restaurant.events", "menu-service.events", "payment-service.events")
#: The order in the original API specification, and its result.
ORDER = {"user_id": 1, "menu_ids": [1, 2]}
TOTAL = 38000
STOCK_AFTER = {1: 14, 2: 6}
#: The fields that are printed of each event of an order that gets paid.
FIELDS = {
    "OrderCreated": ["order_id", "menu_ids"],
    "MenuReserved": ["items"],
    "PaymentRequested": ["amount"],
    "PaymentCompleted": ["payment_id", "amount"],
    "OrderPaid": ["order_id"],
}
#: Seconds until the next event of the order; it takes less than one.
EVENT_SECONDS = 10

API, MENU = (f"http://localhost:{PORTS[name]}" for name in ("api", "menu"))

SECURED = "Each process has a user of its own on the broker, with no more rights than it needs (docs/rights.md)."
OPEN = "The login of this broker may not create users, so all processes use it: the demo runs without separate rights."
RETRY = "All logs are in var/demo/*.log. Run `make demo` again, or `make run` to explore the running services."


def demo() -> None:
    shutil.rmtree(DEMO_DIR, ignore_errors=True)
    with (
        broker.running(DEMO_DIR / "broker") as found,
        broker.fresh_vhost(found, "order-service-demo") as amqp_url,
        broker_users.created(found, amqp_url) as logins,
    ):
        print_line(SECURED if logins else OPEN)
        env = processes.environment(
            found,
            amqp_url,
            DATABASE_URL=f"sqlite:///{DEMO_DIR / 'order-service.db'}",
            SANDBOX_DIR=str(DEMO_DIR / "sandbox"),
            USER_SERVICE_URL=f"http://localhost:{PORTS['users']}",
            HOST="127.0.0.1",
        )
        processes.prepare(env, logins)
        with processes.started(env, DEMO_DIR, logins=logins) as running:
            print_line(f"Starting {', '.join(running)} ...")
            try:
                processes.wait_healthy(running)
                _follow_order(amqp_url)
                _check_stock()
            except (StartupError, http_client.RequestFailed) as error:
                tails = [f"The end of {log}:\n{process_group.tail(log)}" for log in sorted(DEMO_DIR.glob("*.log"))]
                raise StartupError("\n".join([str(error), *tails, "", RETRY])) from error
        print_line(f"""
The order is paid. All messages passed through this broker, whose console shows queues and messages:
  {console(found.management_url)}
Everything that the demo started is stopped again. `make run` keeps everything running: post orders, and watch the
queues order-service.menu and order-service.payment in the console. `make run AUTH=jwt` does the same with an API that
requires access tokens, as one that customers may use has to (docs/access.md).""")


def _follow_order(amqp_url: str) -> None:
    """Post the order, and print every event until it is paid. Raises StartupError if it is not."""
    with contextlib.closing(pika.BlockingConnection(connection_parameters(amqp_url))) as connection:
        channel = connection.channel()
        queue = channel.queue_declare("", exclusive=True).method.queue
        for exchange in EXCHANGES:
            channel.queue_bind(queue, exchange, "#")
        print_line(f"\nPOST {API}/orders  {json.dumps(ORDER)}")
        start = datetime.now(UTC)
        posted = http_client.call("POST", f"{API}/orders", ORDER)
        print_line(f"  status {posted['status']}, total_price {posted['total_price']}\n\nEvents since the request:")
        for _, _, body in channel.consume(queue, auto_ack=True, inactivity_timeout=EVENT_SECONDS):
            if not body:
                raise StartupError(f"The order is not paid, and there was no event for {EVENT_SECONDS} s.")
            event = json.loads(body)
            seconds = (datetime.fromisoformat(event["time"]) - start).total_seconds()
            if event["type"] not in FIELDS:
                raise StartupError(f"Unexpected event {event['type']}: {json.dumps(event['data'])}")
            fields = " ".join(f"{name}={json.dumps(event['data'][name])}" for name in FIELDS[event["type"]])
            print_line(f"  {seconds:5.2f} s  {event['type']:<18}{fields}")
            if event["type"] == "OrderPaid":
                break
    order = http_client.call("GET", f"{API}/orders/{posted['id']}")
    print_line(f"\nGET {API}/orders/{posted['id']}\n{json.dumps(order, indent=2)}")
    if (order["status"], order["total_price"]) != ("paid", TOTAL):
        raise StartupError(f"The order should be paid, with total_price {TOTAL}.")


def _check_stock() -> None:
    """Print the stock of the Menu Service. Raises StartupError if it is not what the order leaves."""
    menus = http_client.call("GET", f"{MENU}/menus")
    print_line(f"\nStock at the Menu Service, {MENU}/menus")
    for menu in menus:
        print_line(f"  {menu['name']:<18}{menu['stock']}")
    if {menu["id"]: menu["stock"] for menu in menus} != STOCK_AFTER:
        raise StartupError(f"The stock by menu id should be {STOCK_AFTER}.")


if __name__ == "__main__":
    sys.exit(processes.exit_status(demo, if_interrupted=130))
