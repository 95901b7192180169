"""What piles up: many replies in the queues or many rows in the outbox, and one, two or four to work them off.

Ours only: the rows are written as the service writes them.
"""

import contextlib
import time

import psycopg

from benchmarks import worker
from benchmarks.ours import EXCHANGE
from benchmarks.stage import Stage

#: A process is idle when it has connected, and nothing came for this long.
IDLE_SECONDS = 4
RELAY = "publishers"

FILL_OUTBOX = """
insert into outbox (order_id, type, message_id, exchange, routing_key, body, created_at, due_at)
select n, 'OrderCreated', gen_random_uuid()::text, %s, 'order.created', convert_to(
    '{"specversion":"1.0","id":"' || gen_random_uuid() || '","source":"/order-service","type":"OrderCreated",'
    || '"subject":"' || n || '","data":{"order_id":' || n || ',"user_id":1,"menu_ids":[1,2],"lines":['
    || '{"menu_id":1,"quantity":1},{"menu_id":2,"quantity":1}],'
    || '"created_at":"2025-03-01T12:00:00Z","reply_by":"2025-03-01T12:02:00Z"}}', 'UTF8'),
    now(), now()
from generate_series(1, %s) as n
"""


def replies(stage: Stage, *, backlog: int, workers: int) -> dict[str, float]:
    """Work off this many replies; what one consumer's memory then was, and what it is with nothing to do."""
    idle = _idle_memory(stage, stage.system.worker)
    values = worker.work_off(stage, replies=backlog, workers=workers)
    return values | {"idle_memory_mib": idle, "memory_growth_mib": values["peak_memory_mib"] / workers - idle}


def rows(stage: Stage, *, backlog: int, relays: int) -> dict[str, float]:
    """Publish this many outbox rows."""
    idle = _idle_memory(stage, RELAY)
    with psycopg.connect(stage.database_url) as database:
        database.execute(FILL_OUTBOX, [EXCHANGE, backlog])
    stage.run("analyze outbox")
    stage.run("checkpoint")
    with contextlib.ExitStack() as stack:
        names = [stage.start(RELAY, stack, copy=copy) for copy in range(1, relays + 1)]
        began = _wait_begun(stage, backlog)
        cpu = stage.usage(*names).cpu_seconds
        left = stage.count("select count(*) from outbox")
        ended = stage.wait_until(
            lambda: backlog - stage.count("select count(*) from outbox"), backlog, what="rows gone"
        )
        usage = stage.usage(*names)
    return {
        "rows_per_second": left / (ended - began),
        "cpu_us_per_row": (usage.cpu_seconds - cpu) / left * 1_000_000,
        "idle_memory_mib": idle,
        "memory_growth_mib": usage.peak_mib / relays - idle,
    }


def _wait_begun(stage: Stage, backlog: int) -> float:
    return stage.wait_until(lambda: backlog - stage.count("select count(*) from outbox"), 1, what="rows gone")


def _idle_memory(stage: Stage, name: str) -> float:
    with contextlib.ExitStack() as stack:
        stage.start(name, stack)
        time.sleep(IDLE_SECONDS)
        stage.require_alive()
        memory = stage.usage(name).peak_mib
    stage.running.clear()
    return memory
