"""How the cost of an order, a reply and an outbox row changes with large tables and backlogs. Ours only, on PostgreSQL.

Each size is measured alternately with empty tables, so that other load on the machine affects both equally.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import click

from benchmarks import measures, ours
from benchmarks.deployment import Deployment, prepared, started
from benchmarks.measures import Effort
from benchmarks.ours import OURS
from benchmarks.results import Figures, Key
from benchmarks.servers import Servers, connect, settle

RELAY = "publishers"
#: Seconds after its start at which a process without work is connected and idle.
IDLE_SECONDS = 4
#: Orders that one statement inserts.
CHUNK = 100_000

#: What a run measures, its round, and the function that executes it.
Run = tuple[Key, int, Callable[[], Figures]]


def runs(servers: Servers, effort: Effort, *, rounds: int) -> Iterator[Run]:
    size = f"{effort.backlog:,}"
    for number in range(1, rounds + 1):
        for copies in effort.copies:
            backlog = partial(_backlog, servers, effort, copies)
            yield _key("backlog-of-replies", f"{size}, consumers: {copies}"), number, partial(backlog, replies)
            yield _key("backlog-of-outbox-rows", f"{size}, relays: {copies}"), number, partial(backlog, outbox_rows)
    with servers.fresh_database("postgresql") as url:
        ours.migrate(url)
        for old_orders in effort.old_orders:
            _insert_old_orders(url, old_orders)
            for number in range(1, rounds + 1):
                yield _key("growth", f"empty tables beside {old_orders:,}"), number, partial(_empty, servers, effort)
                yield _key("growth", f"{old_orders:,} old orders"), number, partial(_cost, servers, effort, url)


def _key(measure: str, variant: str) -> Key:
    return Key(measure, OURS.name, "postgresql", variant)


def _backlog(servers: Servers, effort: Effort, copies: int, measure: Callable[..., Figures]) -> Figures:
    with servers.fresh_database("postgresql") as url, prepared(OURS, servers, url) as deployment:
        return measure(deployment, effort, copies)


def _empty(servers: Servers, effort: Effort) -> Figures:
    with servers.fresh_database("postgresql") as url:
        return _cost(servers, effort, url)


def _cost(servers: Servers, effort: Effort, url: str) -> Figures:
    with started(OURS, servers, url) as deployment:
        figures = measures.end_to_end(deployment, effort)
    return figures | {"cost_per_1000": figures["cpu_seconds_per_1000"] + figures["database_cpu_seconds_per_1000"]}


def _insert_old_orders(url: str, old_orders: int) -> None:
    """Insert paid orders until there are this many orders."""
    with connect(url) as database:
        database.execute("set synchronous_commit = off")
        while (missing := old_orders - database.execute("select coalesce(max(id), 0) from orders").fetchone()[0]) > 0:
            chunk = min(missing, CHUNK)
            database.execute(ours.SQL["insert_paid"], [ours.ITEMS, chunk])
            click.echo(f"    {old_orders - missing + chunk:,} of {old_orders:,} old orders")
        database.execute("vacuum analyze")


def replies(deployment: Deployment, effort: Effort, copies: int) -> Figures:
    """Process a backlog of replies with this many workers; their memory above that of an idle one."""
    idle_mib = _idle_memory(deployment, OURS.worker)
    figures = measures.worker(deployment, replace(effort, replies=effort.backlog), workers=copies)
    return figures | {"idle_memory_mib": idle_mib, "memory_growth_mib": figures["peak_memory_mib"] / copies - idle_mib}


def outbox_rows(deployment: Deployment, effort: Effort, copies: int) -> Figures:
    """Publish a backlog of outbox rows with this many relays; their memory above that of an idle one."""
    idle_mib, backlog = _idle_memory(deployment, RELAY), effort.backlog
    deployment.database.execute(ours.SQL["insert_outbox_rows"], [backlog])
    settle(deployment.database_url)

    def published() -> int:
        return backlog - deployment.count("select count(*) from outbox")

    with contextlib.ExitStack() as stack:
        names = deployment.start(RELAY, stack, copies=copies)
        began = deployment.wait_until(published, 1, what="rows published")
        cpu_seconds = deployment.usage(*names).cpu_seconds
        left = backlog - published()
        ended = deployment.wait_until(published, backlog, what="rows published")
        usage = deployment.usage(*names)
    return {
        "rows_per_second": left / (ended - began),
        "cpu_us_per_row": (usage.cpu_seconds - cpu_seconds) / left * 1_000_000,
        "idle_memory_mib": idle_mib,
        "memory_growth_mib": usage.peak_mib / copies - idle_mib,
    }


def _idle_memory(deployment: Deployment, name: str) -> float:
    with contextlib.ExitStack() as stack:
        deployment.start(name, stack)
        time.sleep(IDLE_SECONDS)
        deployment.require_alive()
        return deployment.usage(name).peak_mib
