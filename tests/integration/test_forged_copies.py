"""A sibling's message that is dead-lettered reaches no other queue, whatever its headers: on a broker with rights."""

import contextlib

import pika
import pytest

from order_service.contract.events import INCOMING
from order_service.contract.topology import MENU_EXCHANGE, PAYMENT, PAYMENT_EXCHANGE
from order_service.domain.order import State
from order_service.storage.database import Database
from publishers.relay import Relay
from tests import builders
from tests.integration import core
from tests.integration.core import Eventually
from tests.integration.test_broker_rights import MENU_USER, PAYMENT_USER, SERVICE, Secured, secured

__all__ = ["secured"]


@core.SQLITE_ONLY
@pytest.mark.parametrize("header", ["CC", b"CC\xff", b"BCC\xff", b"\xffCC"])
def test_the_menu_cannot_have_its_dead_letter_taken_for_a_payment(
    secured: Secured, database: Database, eventually: Eventually, header: str | bytes
) -> None:
    # given: two orders that wait for their payment
    forged, paid = core.place_sent(database, 2)
    core.apply(database, core.reserved(forged), core.reserved(paid))
    core.clear_outbox(database)
    settings = core.settings(secured.logins[SERVICE], database.url)

    def publish(user: str, exchange: str, key: str, order_id: int, headers: dict[str | bytes, list[str]]) -> None:
        reply = core.completed(order_id)
        properties = pika.BasicProperties(type=reply.type, message_id=reply.message_id, headers=headers)
        with contextlib.closing(pika.BlockingConnection(pika.URLParameters(secured.logins[user]))) as connection:
            channel = connection.channel()
            channel.confirm_delivery()
            channel.basic_publish(exchange, key, builders.event(reply), properties, mandatory=True)

    def dead_letters() -> int:
        return secured.administrator.queue_declare("order-service.menu.dlq", passive=True).method.message_count

    with core.running(core.worker(settings, database)), core.running(lambda stop: Relay(settings, database, stop)):
        # when: the menu's payment is dead-lettered, and a copy of it would be routed at the same moment
        publish(MENU_USER, MENU_EXCHANGE, "menu.reserved", forged, {header: [PAYMENT.name]})
        eventually(dead_letters, "the dead letter")
        publish(PAYMENT_USER, PAYMENT_EXCHANGE, INCOMING["PaymentCompleted"].routing_key, paid, {})

        # then: what came later to the queue of payments was applied
        eventually(lambda: core.get(database, paid).state is State.PAID, "the real payment to be applied")
    assert core.get(database, forged).state is State.AWAITING_PAYMENT
