"""Process replies in batches until SIGTERM: one pipelined transaction of at most two statements, then one ack."""

import json
import os
import signal
from typing import Any

import pika
import psycopg
from pika.adapters.blocking_connection import BlockingChannel
from pika.spec import Basic, BasicProperties

from benchmarks.probe import CHANNEL, PLANS, QUEUES, SQL

BATCH = 200
#: The next batch is delivered during the work on this one.
PREFETCH = 2 * BATCH

#: A message: delivery tag, routing key, message id, body.
Delivery = tuple[int, str, str, bytes]


class Worker:
    def __init__(self, database_url: str, rabbitmq_url: str) -> None:
        self._database = psycopg.connect(database_url, autocommit=True, options=PLANS)
        self._connection = pika.BlockingConnection(pika.URLParameters(rabbitmq_url))
        self._deliveries: list[Delivery] = []
        self._stopped = False

    def run(self) -> None:
        signal.signal(signal.SIGTERM, lambda *_: setattr(self, "_stopped", True))
        channel = self._connection.channel()
        channel.basic_qos(prefetch_count=PREFETCH)
        for queue in QUEUES:
            channel.basic_consume(queue, self._receive)
        while not self._stopped:
            self._collect()
            batch, self._deliveries = self._deliveries[:BATCH], self._deliveries[BATCH:]
            if batch:
                self._process(batch)
                channel.basic_ack(batch[-1][0], multiple=True)

    def _receive(self, _: BlockingChannel, method: Basic.Deliver, properties: BasicProperties, body: bytes) -> None:
        self._deliveries.append((method.delivery_tag or 0, method.routing_key or "", properties.message_id or "", body))

    def _collect(self) -> None:
        seen = len(self._deliveries)
        self._connection.process_data_events(time_limit=0 if seen else 0.5)
        while seen < len(self._deliveries) < BATCH:
            seen = len(self._deliveries)
            self._connection.process_data_events(time_limit=0)

    def _process(self, batch: list[Delivery]) -> None:
        replies: dict[str, list[tuple[str, dict[str, Any]]]] = {"menu.reserved": [], "payment.completed": []}
        for _, routing_key, message_id, body in batch:
            replies[routing_key].append((message_id, json.loads(body)))
        with self._database.pipeline(), self._database.transaction():
            if reserved := replies["menu.reserved"]:
                items = [data["items"] for _, data in reserved]
                prices = {
                    "items": [json.dumps(each) for each in items],
                    "totals": [sum(item["price"] for item in each) for each in items],
                }
                self._database.execute(SQL["reserve"], _ids(reserved) | prices, prepare=True)
            if completed := replies["payment.completed"]:
                self._database.execute(SQL["complete"], _ids(completed), prepare=True)
            self._database.execute(f"notify {CHANNEL}", prepare=True)


def _ids(replies: list[tuple[str, dict[str, Any]]]) -> dict[str, list[Any]]:
    return {"message_ids": [each for each, _ in replies], "order_ids": [data["order_id"] for _, data in replies]}


if __name__ == "__main__":
    Worker(os.environ["DATABASE_URL"], os.environ["RABBITMQ_URL"]).run()
