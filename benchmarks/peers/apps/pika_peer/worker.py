"""The worker: a BlockingConnection that takes one message after another, each in its own transaction."""

import json
import os

import pika
import psycopg
from pika.adapters.blocking_connection import BlockingChannel
from pika.spec import Basic, BasicProperties

from orders import database
from pika_peer.events import publish

#: Messages on their way to us while we are at work on one; with fewer, the worker waits for the network.
PREFETCH = 100


def main() -> None:
    database_connection = psycopg.connect(os.environ["DATABASE_URL"], **database.HOW)

    def on_menu_reserved(
        channel: BlockingChannel, method: Basic.Deliver, properties: BasicProperties, body: bytes
    ) -> None:
        event = json.loads(body)
        order_id = event["order_id"]
        amount = database.reserve(database_connection, properties.message_id, order_id=order_id, items=event["items"])
        if amount is not None:
            publish(channel, "payment.requested", {"order_id": order_id, "amount": amount})
        channel.basic_ack(method.delivery_tag)

    def on_payment_completed(
        channel: BlockingChannel, method: Basic.Deliver, properties: BasicProperties, body: bytes
    ) -> None:
        event = json.loads(body)
        order_id, payment_id = event["order_id"], event["payment_id"]
        if database.pay(
            database_connection, properties.message_id, order_id=order_id, payment_id=payment_id, amount=event["amount"]
        ):
            publish(channel, "order.paid", {"order_id": order_id, "payment_id": payment_id})
        channel.basic_ack(method.delivery_tag)

    channel = pika.BlockingConnection(pika.URLParameters(os.environ["RABBITMQ_URL"])).channel()
    channel.basic_qos(prefetch_count=PREFETCH)
    channel.basic_consume("orders.menu-reserved", on_menu_reserved)
    channel.basic_consume("orders.payment-completed", on_payment_completed)
    channel.start_consuming()


if __name__ == "__main__":
    main()
