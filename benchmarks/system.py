"""A system under measurement, as a value: its processes, its tables, and how its siblings speak with it.

Every system does the same work. POST /orders with {"user_id": 1, "menu_ids": [1, 2]} answers 201 or 202 once the order
is stored, the stub of the Menu Service answers with 38,000 as the price, the stub of the Payment Service takes it, and
the order's row says that it is paid.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from pika.spec import Basic, BasicProperties

#: What the two dishes of every order cost together. The stubs answer with these prices.
PRICES: Mapping[int, tuple[str, int]] = {1: ("Nasi Ayam Bakar", 18_000), 2: ("Kwetiau Goreng", 20_000)}
TOTAL = "38000"


@dataclass(frozen=True, slots=True)
class Ask:
    """What a system asks of a sibling: to reserve an order's dishes, or to take its payment."""

    kind: Literal["menu", "payment"]
    order_id: int
    menu_ids: tuple[int, ...] = (1, 2)
    #: In rupiah, payments only.
    amount: str | None = TOTAL


@dataclass(frozen=True, slots=True)
class Publish:
    """A message to publish. Its properties say that it is persistent, and carry its message id."""

    exchange: str
    routing_key: str
    body: bytes
    properties: BasicProperties


@dataclass(frozen=True)
class Wire:
    """How a system speaks with its siblings over the broker."""

    #: The stubs' own durable queues, as (queue, exchange, routing key): what is bound where. With the exchange "" the
    #: system publishes to the queue by its name.
    queues: tuple[tuple[str, str, str], ...]
    #: What a message in one of these queues asks; None when it asks nothing (it is then acked and forgotten).
    asks: Callable[[Basic.Deliver, BasicProperties, bytes], Ask | None]
    #: The answer of the Menu Service: reserved, with prices. Called once per message, each time with a new message id.
    reserved: Callable[[Ask], Publish]
    #: The answer of the Payment Service: paid.
    completed: Callable[[Ask], Publish]
    #: Where these answers wait for the system's worker.
    reply_queues: tuple[str, ...]


@dataclass(frozen=True)
class System:
    """One of the compared systems.

    In the processes' arguments {python} is the Python to run, {port} the port to listen at. They run in the project's
    directory, with DATABASE_URL (postgresql://... or sqlite:////...), RABBITMQ_URL, PORT and `environment` set.
    """

    name: str
    #: What it is, in a few words, for the report.
    what: str
    #: Name -> argv. The order is the order of the starts; they are stopped with SIGTERM.
    processes: Mapping[str, Sequence[str]]
    wire: Wire
    #: (database_url, rabbitmq_url): makes the tables, exchanges and queues, all fresh and empty until then.
    prepare: Callable[[str, str], None]
    #: (database_url, awaiting_menu, awaiting_payment): stores so many orders, in this order, with ids that count up
    #: from 1: first those that wait for the menu, then those that wait for the payment.
    preload: Callable[[str, int, int], None]
    #: SQL: the number of orders that the menu has reserved, whatever came then.
    count_reserved: str
    #: SQL: the number of orders that are paid.
    count_paid: str
    #: SQL by database: for every paid order one row, the seconds from created_at to paid_at.
    times: Mapping[str, str]
    #: The process that takes the replies: the only one that runs in the worker measure.
    worker: str = "worker"
    #: The process that a POST goes to.
    api: str = "api"
    environment: Mapping[str, str] = field(default_factory=dict)
    databases: frozenset[str] = frozenset({"postgresql"})
    #: How many orders an end-to-end run posts: about ten seconds' worth.
    orders: int = 1000
    #: A path that answers 200, whatever the method GET finds there, once the API serves.
    ready_path: str = "/healthz"
