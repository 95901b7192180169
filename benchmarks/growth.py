"""What an order costs when millions of others have ended before it. Ours only, on PostgreSQL.

Each size is measured in turns with empty tables, so that what the machine does meanwhile meets both alike.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import psycopg

from benchmarks import database, ours
from benchmarks.end_to_end import CONNECTIONS, burst
from benchmarks.result import Effort
from benchmarks.stage import House, complete
from benchmarks.system import System
from sandbox.servers.sources import Say

CHUNK = 100_000
EMPTY = "empty tables beside"

#: Paid orders as the service leaves them, with the three lines of their history.
FILL = """
with ended as (
    insert into orders (key, user_id, menu_ids, created_at, state, version, items, total_price, ledger, paid_at,
                        reminders_left)
    select gen_random_uuid(), 1 + n %% 100000, '[1, 2]', now() - n * interval '1 second', 'paid', 3, %(items)s, 38000,
           %(ledger)s, now() - n * interval '1 second', 3
    from generate_series(1, %(orders)s) as n
    returning id, created_at
)
insert into order_history (order_id, at, type, from_state, to_state, message_id)
select id, created_at, type, from_state, to_state, case when type <> 'OrderPlaced' then gen_random_uuid()::text end
from ended cross join (values
    ('OrderPlaced', null, 'awaiting_menu'), ('MenuReserved', 'awaiting_menu', 'awaiting_payment'),
    ('PaymentCompleted', 'awaiting_payment', 'paid')
) as line (type, from_state, to_state)
"""
LEDGER = '{"reservations": ["R1"], "payments": [["1", "38000.0000"]], "released": [], "refunded": []}'

#: A variant of the run, and its figures.
Found = tuple[str, dict[str, float]]


def measure(house: House, effort: Effort, *, rounds: int, say: Say) -> Iterator[Found]:
    """One and the same database grows from size to size; another stays empty. Yields `rounds` pairs for each size."""
    orders = int(ours.OURS.orders * effort.share_of_orders)
    with database.fresh("postgresql", house.postgres, house.out) as grown_url:
        ours.migrate(grown_url)
        for size in effort.grown:
            fill(grown_url, size, say=say)
            for _ in range(rounds):
                with database.fresh("postgresql", house.postgres, house.out) as empty_url:
                    yield f"{EMPTY} {size:,}", _run(ours.OURS, house, empty_url, orders)
                yield f"{size:,} old orders", _run(_newer_only(grown_url), house, grown_url, orders)


def fill(url: str, size: int, *, say: Say) -> None:
    """Add paid orders until there are so many."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("set synchronous_commit = off")
        while (missing := size - _count(connection)) > 0:
            chunk = min(missing, CHUNK)
            connection.execute(FILL, {"items": ours.STORED_ITEMS, "ledger": LEDGER, "orders": chunk})
            say(f"    {size - missing + chunk:,} of {size:,} old orders")
        connection.execute("vacuum analyze")


def _count(connection: psycopg.Connection[tuple[Any, ...]]) -> int:
    row = connection.execute("select coalesce(max(id), 0) from orders").fetchone()
    return int(row[0]) if row else 0


def _newer_only(url: str) -> System:
    """Ours, with counts that leave the old orders out: to count millions would itself be the load."""
    with psycopg.connect(url) as connection:
        newest = _count(connection)
    times = {kind: sql.replace("where", f"where id > {newest} and") for kind, sql in ours.OURS.times.items()}
    return dataclasses.replace(ours.OURS, count_paid=f"{ours.OURS.count_paid} and id > {newest}", times=times)


def _run(system: System, house: House, url: str, orders: int) -> dict[str, float]:
    with complete(system, house, url) as stage:
        values = burst(stage, orders=orders, connections=CONNECTIONS)
    both = values["cpu_seconds_per_1000"] + values["database_cpu_seconds_per_1000"]
    return values | {"cost_per_1000": both}
