"""A sibling's message that is dead-lettered reaches no other queue, whatever its headers: on a broker with rights."""

import contextlib
from urllib.parse import unquote, urlsplit

import pika
import pytest
from click.testing import CliRunner

from order_service.cli.main import main
from order_service.contract.events import INCOMING
from order_service.contract.topology import MENU, MENU_EXCHANGE, PAYMENT, PAYMENT_EXCHANGE
from order_service.domain.order import State
from order_service.storage.database import Database
from publishers.relay import Relay
from tests import builders
from tests.integration import core
from tests.integration.core import Eventually
from tests.integration.test_broker_rights import MENU_USER, PAYMENT_USER, SERVICE, Secured, secured
from tests.polling import wait_until

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

    with core.running(core.worker(settings, database)), core.running(lambda stop: Relay(settings, database, stop)):
        # when: the menu's payment is dead-lettered, and a copy of it would be routed at the same moment
        publish(MENU_USER, MENU_EXCHANGE, "menu.reserved", forged, {header: [PAYMENT.name]})
        eventually(lambda: depth(secured, MENU.dead_letters), "the dead letter")
        publish(PAYMENT_USER, PAYMENT_EXCHANGE, INCOMING["PaymentCompleted"].routing_key, paid, {})

        # then: what came later to the queue of payments was applied
        eventually(lambda: core.get(database, paid).state is State.PAID, "the real payment to be applied")
    assert core.get(database, forged).state is State.AWAITING_PAYMENT


@pytest.mark.usefixtures("own_logging")
def test_what_the_broker_dead_letters_is_replayed_to_its_own_queue_and_delays_no_other(secured: Secured) -> None:
    """A sibling chooses when its message expires, and which properties it then has."""
    # given: no consumer runs
    menu = secured.logins[MENU_USER]
    user = unquote(urlsplit(menu).username or "")
    copies = {name: [PAYMENT.name, MENU.name] for name in ("CC", "BCC")}
    # The first one has headers with which no other fits into a frame.
    sent = [(core.reserved(1), None, {"x": "y" * 130_950}), (core.reserved(2), user, copies)]
    with contextlib.closing(pika.BlockingConnection(pika.URLParameters(menu))) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        for reply, user_id, headers in sent:
            properties = pika.BasicProperties(
                type=reply.type, message_id=reply.message_id, expiration="0", user_id=user_id, headers=headers
            )
            channel.basic_publish(MENU_EXCHANGE, "menu.reserved", builders.event(reply), properties, mandatory=True)
    wait_until(lambda: depth(secured, MENU.dead_letters) == 2, "the dead letters")

    # when
    env = {"RABBITMQ_URL": secured.logins[SERVICE]}
    replayed = CliRunner(env=env).invoke(main, ["dlq", "replay", "--all"])

    # then
    assert (replayed.exit_code, replayed.stdout) == (0, "2 replayed\n"), replayed.output
    assert [depth(secured, name) for name in (MENU.name, MENU.dead_letters, PAYMENT.name)] == [2, 0, 0]
    for _ in sent:
        _, properties, _ = secured.administrator.basic_get(MENU.name, auto_ack=True)
        assert not {"CC", "BCC"} & (properties.headers or {}).keys()


def depth(secured: Secured, queue: str) -> int:
    count: int = secured.administrator.queue_declare(queue, passive=True).method.message_count
    return count
