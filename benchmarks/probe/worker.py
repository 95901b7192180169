"""Replies in batches: one pipelined transaction of at most two statements, then one ack."""

import json
import os
import signal
from typing import Any

import pika
import psycopg
from pika.adapters.blocking_connection import BlockingChannel
from pika.spec import Basic, BasicProperties

from benchmarks.probe import CHANNEL, MENU_QUEUE, PAYMENT_QUEUE, PLANS

BATCH = 200
#: The next batch comes in while this one is worked off.
PREFETCH = 2 * BATCH

RESERVE = """
with fresh as (
    insert into inbox select unnest(%(message_ids)s::text[]) on conflict do nothing returning message_id
), changed as (
    update orders set state = 'awaiting_payment', items = reply.items, total_price = reply.total
    from unnest(%(message_ids)s::text[], %(order_ids)s::bigint[], %(items)s::text[], %(totals)s::numeric[])
        as reply (message_id, order_id, items, total) join fresh using (message_id)
    where orders.id = reply.order_id and state = 'awaiting_menu' returning id, total_price
)
insert into outbox (routing_key, body) select 'payment.requested',
    convert_to('{"order_id":' || id || ',"amount":' || trim_scale(total_price) || '}', 'UTF8') from changed
"""
COMPLETE = """
with fresh as (
    insert into inbox select unnest(%(message_ids)s::text[]) on conflict do nothing returning message_id
), changed as (
    update orders set state = 'paid', paid_at = clock_timestamp()
    from unnest(%(message_ids)s::text[], %(order_ids)s::bigint[]) as reply (message_id, order_id)
        join fresh using (message_id)
    where orders.id = reply.order_id and state = 'awaiting_payment' returning id
)
insert into outbox (routing_key, body)
select 'order.paid', convert_to('{"order_id":' || id || '}', 'UTF8') from changed
"""

Arrived = tuple[int, str, str, bytes]


class Worker:
    """Consumes until SIGTERM."""

    def __init__(self, database_url: str, rabbitmq_url: str) -> None:
        self._database = psycopg.connect(database_url, autocommit=True, options=PLANS)
        self._connection = pika.BlockingConnection(pika.URLParameters(rabbitmq_url))
        self._channel = self._connection.channel()
        self._arrived: list[Arrived] = []
        self.stopped = False

    def run(self) -> None:
        self._channel.basic_qos(prefetch_count=PREFETCH)
        for queue in (MENU_QUEUE, PAYMENT_QUEUE):
            self._channel.basic_consume(queue, self._keep)
        while not self.stopped:
            self._collect()
            batch, self._arrived = self._arrived[:BATCH], self._arrived[BATCH:]
            if batch:
                self._apply(batch)
                self._channel.basic_ack(batch[-1][0], multiple=True)

    def _keep(self, _: BlockingChannel, method: Basic.Deliver, properties: BasicProperties, body: bytes) -> None:
        self._arrived.append((method.delivery_tag or 0, method.routing_key or "", properties.message_id or "", body))

    def _collect(self) -> None:
        seen = len(self._arrived)
        self._connection.process_data_events(time_limit=0 if seen else 0.5)
        while seen < len(self._arrived) < BATCH:
            seen = len(self._arrived)
            self._connection.process_data_events(time_limit=0)

    def _apply(self, batch: list[Arrived]) -> None:
        replies: dict[str, list[tuple[str, dict[str, Any]]]] = {"menu.reserved": [], "payment.completed": []}
        for _, routing_key, message_id, body in batch:
            replies[routing_key].append((message_id, json.loads(body)))
        with self._database.pipeline(), self._database.transaction():
            if reserved := replies["menu.reserved"]:
                self._database.execute(RESERVE, _columns(reserved) | _prices(reserved), prepare=True)
            if completed := replies["payment.completed"]:
                self._database.execute(COMPLETE, _columns(completed), prepare=True)
            self._database.execute(f"notify {CHANNEL}", prepare=True)


def _columns(replies: list[tuple[str, dict[str, Any]]]) -> dict[str, list[Any]]:
    return {"message_ids": [id for id, _ in replies], "order_ids": [data["order_id"] for _, data in replies]}


def _prices(replies: list[tuple[str, dict[str, Any]]]) -> dict[str, list[Any]]:
    return {
        "items": [json.dumps(data["items"]) for _, data in replies],
        "totals": [sum(item["price"] for item in data["items"]) for _, data in replies],
    }


def main() -> None:
    worker = Worker(os.environ["DATABASE_URL"], os.environ["RABBITMQ_URL"])
    signal.signal(signal.SIGTERM, lambda *_: setattr(worker, "stopped", True))
    worker.run()


if __name__ == "__main__":
    main()
