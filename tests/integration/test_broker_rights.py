"""Users of the broker x what they may try: each act is refused or harmless as designed, and each right is enough.

The users and their rights come from `broker definitions`, which a real broker imports.
"""

import itertools
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import pika
import pytest
from click.testing import CliRunner
from pika.adapters.blocking_connection import BlockingChannel
from pika.exceptions import ChannelClosedByBroker, UnroutableError

from order_service.cli.main import main
from order_service.config import Settings
from order_service.contract import topology
from order_service.contract.broker_rights import USERS, definitions
from order_service.contract.events import EVENTS, INCOMING, OUTGOING
from order_service.contract.topology import (
    DEAD_LETTER_EXCHANGE,
    EXCHANGE,
    EXCHANGES,
    MENU,
    MENU_EXCHANGE,
    PAYMENT,
    PAYMENT_EXCHANGE,
    QUEUES,
    QUORUM,
)
from publishers.gauges import of_broker
from sandbox.servers import broker_users
from sandbox.servers.broker import Broker
from sandbox.servers.http_client import RequestFailed
from sandbox.servers.management import Management
from tests.conftest import VhostManagement
from tests.polling import wait_until

ROOT = Path(__file__).parents[2]
SERVICE, TOPOLOGY, MENU_USER, PAYMENT_USER, OPERATOR = (user.name for user in USERS)
SIBLINGS = {MENU_USER: MENU_EXCHANGE, PAYMENT_USER: PAYMENT_EXCHANGE}
#: Where our messages lie.
OURS = [name for queue in QUEUES for name in (queue.name, queue.dead_letters)]
KEYS = {
    "in": {model.routing_key for model in INCOMING.values()},
    "out": {model.routing_key for model in OUTGOING.values()},
}
#: By user and exchange, the routing keys that it may publish; None: all.
MAY_PUBLISH: Mapping[str, Mapping[str, set[str] | None]] = {
    SERVICE: {EXCHANGE: KEYS["out"], DEAD_LETTER_EXCHANGE: None},
    TOPOLOGY: {DEAD_LETTER_EXCHANGE: None},
    MENU_USER: {MENU_EXCHANGE: None},
    PAYMENT_USER: {PAYMENT_EXCHANGE: None},
    OPERATOR: {},
}
#: Every exchange with every routing key that means something there.
TARGETS = [
    *itertools.product((EXCHANGE, MENU_EXCHANGE, PAYMENT_EXCHANGE), sorted(KEYS["in"] | KEYS["out"])),
    *itertools.product((DEAD_LETTER_EXCHANGE, ""), OURS),
]
#: Our queue that a message reaches which a user may publish.
REACHED = {
    **{(queue.publisher, key): {queue.name} for queue in QUEUES for key in queue.routing_keys},
    **{(DEAD_LETTER_EXCHANGE, name): {name} for name in OURS},
}


class Secured:
    """A broker with the topology, and a connection of each user."""

    def __init__(self, amqp_url: str, logins: Mapping[str, str]) -> None:
        self.amqp_url, self.logins = amqp_url, logins
        self._connections: dict[str, pika.BlockingConnection] = {}
        self._administrator = pika.BlockingConnection(pika.URLParameters(amqp_url))
        self.administrator = self._administrator.channel()
        self.restore()

    def restore(self) -> None:
        """Declare the topology, and a queue of each sibling."""
        topology.declare(self.administrator)
        for sibling in SIBLINGS:
            self.administrator.queue_declare(f"{sibling}.orders", durable=True, arguments=QUORUM)

    def close(self) -> None:
        for connection in (self._administrator, *self._connections.values()):
            connection.close()

    def accepts(self, user: str, act: Callable[[BlockingChannel], object]) -> bool:
        """Whether the broker accepts this act of the user, on a channel of its own; False: refused for want of rights."""
        if user not in self._connections:
            self._connections[user] = pika.BlockingConnection(pika.URLParameters(self.logins[user]))
        channel = self._connections[user].channel()
        channel.confirm_delivery()
        try:
            act(channel)
        except ChannelClosedByBroker as error:
            if error.reply_code != 403:
                raise
            return False
        except UnroutableError:
            pass
        channel.close()
        return True

    def arrived(self) -> set[str]:
        """The queues of ours that contain a message; empties them."""
        found = set()
        for name in OURS:
            while self.administrator.basic_get(name, auto_ack=True)[0]:
                found.add(name)
        return found

    def arrived_within(self, expected: set[str]) -> set[str]:
        """As `arrived`, once all of the expected queues have received a message."""
        found = self.arrived()
        wait_until(lambda: found.update(self.arrived()) or found >= expected, f"a message in {expected}")
        return found


@pytest.fixture
def secured(broker: Broker, amqp_url: str) -> Iterator[Secured]:
    with (
        broker_users.created(broker, amqp_url, lambda vhost, given: definitions(given, vhost=vhost)) as logins,
        closing(Secured(amqp_url, logins or {})) as secured,
    ):
        yield secured


def test_definitions_create_the_topology_that_the_command_declares(
    broker: Broker, amqp_url: str, management: VhostManagement
) -> None:
    with broker_users.created(broker, amqp_url) as logins:
        imported = {name: queue["arguments"] for name, queue in management.queues().items()}, management.bindings()
        assert logins
        with closing(pika.BlockingConnection(pika.URLParameters(logins[TOPOLOGY]))) as connection:
            topology.declare(connection.channel())
        declared = {name: queue["arguments"] for name, queue in management.queues().items()}, management.bindings()

    assert imported == declared
    assert imported[0].keys() == set(OURS)


def test_the_commands_of_the_page_write_the_file_that_rabbitmqctl_imports(tmp_path: Path) -> None:
    block, *_ = re.findall(r"^```sh\n(.*?)^```", (ROOT / "docs" / "rights.md").read_text(), re.MULTILINE | re.DOTALL)
    *commands, last = block.splitlines()
    assert last == "rabbitmqctl import_definitions definitions.json"
    env = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}

    subprocess.run(["bash", "-euc", "\n".join(commands)], cwd=tmp_path, env=env, check=True)

    made = json.loads((tmp_path / "definitions.json").read_text())
    assert [user["name"] for user in made["users"]] == [user.name for user in USERS]


def test_a_broker_whose_login_may_not_create_users_is_used_without_rights(
    broker: Broker, amqp_url: str, management: VhostManagement
) -> None:
    name = f"poor-{management.vhost}"
    management.api.call("PUT", "users", name, body={"password": "S3cret", "tags": "management"})
    try:
        parts = urlsplit(str(broker.management_url))
        poor = replace(broker, management_url=f"{parts.scheme}://{name}:S3cret@{parts.netloc.rpartition('@')[2]}")
        with broker_users.created(poor, amqp_url) as logins:
            assert logins is None
    finally:
        management.api.call("DELETE", "users", name)


def test_a_queue_is_replaced_with_the_rights_of_the_topology(secured: Secured) -> None:
    former = MENU.arguments | {"x-dead-letter-exchange": ""}
    secured.administrator.queue_delete(MENU.name)
    secured.administrator.queue_declare(MENU.name, durable=True, arguments=former)
    topology.bind(secured.administrator, MENU.name, MENU.bindings)
    assert secured.accepts(MENU_USER, publish(MENU_EXCHANGE, "menu.reserved"))

    done = CliRunner(env={"RABBITMQ_URL": secured.logins[TOPOLOGY]}).invoke(main, ["topology", "--recreate"])

    assert done.exit_code == 0, done.output
    topology.declare(secured.administrator)
    assert secured.arrived() == {MENU.name}


def publish(exchange: str, routing_key: str, **headers: list[str]) -> Callable[[BlockingChannel], None]:
    properties = pika.BasicProperties(headers=headers or None, delivery_mode=2)
    return lambda channel: channel.basic_publish(exchange, routing_key, b"{}", properties, mandatory=True)


@pytest.mark.parametrize("user", MAY_PUBLISH)
def test_each_event_is_published_by_its_publisher_only(secured: Secured, user: str) -> None:
    for exchange, key in TARGETS:
        allowed = MAY_PUBLISH[user].get(exchange, set())
        may = allowed is None or key in allowed

        assert secured.accepts(user, publish(exchange, key)) is may, (exchange, key)

        assert secured.arrived() == (REACHED.get((exchange, key), set()) if may else set()), (exchange, key)


def reachable(sibling: str) -> set[str]:
    """The queue of ours that takes a sibling's replies."""
    return {queue.name for queue in QUEUES if queue.publisher == SIBLINGS[sibling]}


@pytest.mark.parametrize("header", ["CC", "BCC"])
@pytest.mark.parametrize("user", [*SIBLINGS, OPERATOR])
def test_copies_reach_no_queue_of_another_publisher(secured: Secured, user: str, header: str) -> None:
    """RabbitMQ before 4.0 does not check the routing keys in these headers."""
    for exchange, key in TARGETS:
        may = exchange in MAY_PUBLISH[user]

        assert secured.accepts(user, publish(exchange, "unknown", **{header: [key]})) is may, (exchange, key)

        assert secured.arrived() == (REACHED.get((exchange, key), set()) if may else set()), (exchange, key)


@contextmanager
def own_queue(secured: Secured, user: str, **arguments: object) -> Iterator[bool]:
    """A queue of the sibling, from which messages expire at once; yields whether it may be declared."""
    name = f"{user}.trap"

    def declare(channel: BlockingChannel) -> None:
        channel.queue_declare(name, durable=True, arguments={"x-message-ttl": 0, **arguments})
        channel.queue_bind(name, SIBLINGS[user], "trap")

    yield secured.accepts(user, declare)
    secured.administrator.queue_delete(name)


@pytest.mark.parametrize("user", SIBLINGS)
def test_a_dead_letter_exchange_reaches_no_queue_of_another_publisher(secured: Secured, user: str) -> None:
    for exchange, key in TARGETS:
        arguments = {"x-dead-letter-exchange": exchange, "x-dead-letter-routing-key": key}
        with own_queue(secured, user, **arguments) as declared:
            assert declared is (exchange in MAY_PUBLISH[user]), (exchange, key)
            if declared:
                assert secured.accepts(user, publish(SIBLINGS[user], "trap"))
                expected = REACHED.get((exchange, key), set())
                assert secured.arrived_within(expected) == expected <= reachable(user), (exchange, key)


@pytest.mark.parametrize("user", SIBLINGS)
def test_a_binding_between_exchanges_reaches_no_queue_of_another_publisher(secured: Secured, user: str) -> None:
    own, mine = SIBLINGS[user], f"{user}.mine"
    assert secured.accepts(user, lambda channel: channel.exchange_declare(mine, "topic", durable=True))
    for destination, source in itertools.product([*EXCHANGES, "amq.topic"], [*EXCHANGES, mine, "amq.topic"]):
        # Reading from an exchange and writing to the other are two rights.
        may = destination == own and source in (own, mine, EXCHANGE)
        for key in sorted(KEYS["in"] | KEYS["out"]):
            bound = secured.accepts(
                user, lambda channel, to=destination, of=source, key=key: channel.exchange_bind(to, of, key)
            )
            may_read = source != EXCHANGE or key.split(".")[0] in ("order", user.removesuffix("-service"))
            assert bound is (may and may_read), (destination, source, key)

    # What comes to its exchange by these bindings stays among its own keys.
    for key in sorted(KEYS["in"]):
        secured.accepts(user, publish(mine, key))
        assert secured.arrived() <= reachable(user), key
    for key in sorted(KEYS["out"]):
        assert secured.accepts(SERVICE, publish(EXCHANGE, key))
    assert secured.arrived() == set()


def get(queue: str) -> Callable[[BlockingChannel], object]:
    return lambda channel: channel.basic_get(queue)


def consume(queue: str) -> Callable[[BlockingChannel], object]:
    return lambda channel: channel.basic_consume(queue, lambda *_: None)


def purge(queue: str) -> Callable[[BlockingChannel], object]:
    return lambda channel: channel.queue_purge(queue)


def delete(queue: str) -> Callable[[BlockingChannel], object]:
    return lambda channel: channel.queue_delete(queue)


def bind(queue: str, exchange: str, key: str) -> Callable[[BlockingChannel], object]:
    return lambda channel: channel.queue_bind(queue, exchange, key)


def unbind(queue: str, exchange: str, key: str) -> Callable[[BlockingChannel], object]:
    return lambda channel: channel.queue_unbind(queue, exchange, key)


def declare(queue: str) -> Callable[[BlockingChannel], object]:
    return lambda channel: channel.queue_declare(queue, durable=True, arguments=QUORUM)


def declare_exchange(exchange: str) -> Callable[[BlockingChannel], object]:
    return lambda channel: channel.exchange_declare(exchange, EXCHANGES.get(exchange, "topic"), durable=True)


def delete_exchange(exchange: str) -> Callable[[BlockingChannel], object]:
    return lambda channel: channel.exchange_delete(exchange)


MENU_QUEUE, PAYMENT_QUEUE = "menu-service.orders", "payment-service.orders"
#: What is tried, and who may do it.
ACTS: Mapping[str, tuple[Callable[[BlockingChannel], object], set[str]]] = {
    "read our queue": (get(MENU.name), {SERVICE, TOPOLOGY}),
    "consume our queue": (consume(PAYMENT.name), {SERVICE, TOPOLOGY}),
    "purge our queue": (purge(PAYMENT.name), {SERVICE, TOPOLOGY}),
    "delete our queue": (delete(MENU.name), {TOPOLOGY}),
    "bind our queue": (bind(PAYMENT.name, EXCHANGE, "order.paid"), {TOPOLOGY}),
    "bind our queue to a sibling's exchange": (bind(PAYMENT.name, MENU_EXCHANGE, "payment.completed"), {TOPOLOGY}),
    "unbind our queue": (unbind(MENU.name, MENU_EXCHANGE, "menu.reserved"), {TOPOLOGY}),
    "declare a queue under our name": (declare("order-service.more"), {TOPOLOGY}),
    "declare an exchange under our name": (declare_exchange("order-service.more"), {TOPOLOGY}),
    "read dead letters": (get(MENU.dead_letters), {SERVICE, TOPOLOGY, OPERATOR}),
    "purge dead letters": (purge(PAYMENT.dead_letters), {SERVICE, TOPOLOGY, OPERATOR}),
    "delete a dead-letter queue": (delete(PAYMENT.dead_letters), {TOPOLOGY}),
    **{f"declare {exchange}": (declare_exchange(exchange), {TOPOLOGY}) for exchange in EXCHANGES},
    **{f"delete {exchange}": (delete_exchange(exchange), {TOPOLOGY}) for exchange in EXCHANGES},
    "declare a queue of the menu's": (declare("menu-service.more"), {MENU_USER}),
    "declare a queue of the payment's": (declare("payment-service.more"), {PAYMENT_USER}),
    "declare a queue with the name of the menu's exchange": (declare(MENU_EXCHANGE), {TOPOLOGY}),
    "read the menu's queue": (get(MENU_QUEUE), {MENU_USER}),
    "purge the menu's queue": (purge(MENU_QUEUE), {MENU_USER}),
    "delete the menu's queue": (delete(MENU_QUEUE), {MENU_USER}),
    "read the payment's queue": (get(PAYMENT_QUEUE), {PAYMENT_USER}),
    "purge the payment's queue": (purge(PAYMENT_QUEUE), {PAYMENT_USER}),
    "delete the payment's queue": (delete(PAYMENT_QUEUE), {PAYMENT_USER}),
    "have orders sent to the menu's queue": (bind(MENU_QUEUE, EXCHANGE, "order.created"), {MENU_USER}),
    "have the outcomes sent to the menu's queue": (bind(MENU_QUEUE, EXCHANGE, "order.*"), {MENU_USER}),
    "have payments sent to the menu's queue": (bind(MENU_QUEUE, EXCHANGE, "payment.requested"), set()),
    "have everything sent to the menu's queue": (bind(MENU_QUEUE, EXCHANGE, "#"), set()),
    "have payments sent to the payment's queue": (bind(PAYMENT_QUEUE, EXCHANGE, "payment.requested"), {PAYMENT_USER}),
    "have releases sent to the payment's queue": (bind(PAYMENT_QUEUE, EXCHANGE, "menu.release_requested"), set()),
    "have the menu's replies sent to the payment's queue": (bind(PAYMENT_QUEUE, MENU_EXCHANGE, "#"), set()),
    "have the payment's replies sent to the menu's queue": (bind(MENU_QUEUE, PAYMENT_EXCHANGE, "#"), set()),
    "declare a queue under any other name": (declare("anything"), set()),
    "declare a queue that the broker names": (lambda channel: channel.queue_declare("", exclusive=True), set()),
    "declare any other exchange": (declare_exchange("anything"), set()),
    "publish to any other exchange": (publish("amq.topic", "menu.reserved"), set()),
}  # fmt: skip


@pytest.mark.parametrize("act", ACTS)
def test_each_act_is_accepted_of_the_right_users_only(secured: Secured, act: str) -> None:
    attempt, allowed = ACTS[act]

    accepted = set()
    for user in (user.name for user in USERS):
        secured.restore()
        if secured.accepts(user, attempt):
            accepted.add(user)

    assert accepted == allowed


def test_every_event_is_part_of_the_matrix() -> None:
    assert {key for _, key in TARGETS} >= {model.routing_key for model in EVENTS.values()}


def console(secured: Secured, broker: Broker, user: str) -> Management:
    """The management API with the login of a user."""
    parts, login = urlsplit(str(broker.management_url)), urlsplit(secured.logins[user])
    return Management(f"{parts.scheme}://{login.username}:{login.password}@{parts.netloc.rpartition('@')[2]}")


def test_the_operator_sees_all_queues_in_the_console(
    secured: Secured, broker: Broker, management: VhostManagement
) -> None:
    api = console(secured, broker, OPERATOR)
    found = api.call("GET", "queues", management.vhost)

    assert {queue["name"] for queue in found} >= {*OURS, MENU_QUEUE}
    # As docker-compose.yml has the publishers ask.
    login = urlsplit(secured.logins[OPERATOR]).netloc.rpartition("@")[0]
    settings = Settings(
        rabbitmq_url=secured.logins[SERVICE], management_url=f"http://{login}@{urlsplit(api.base).netloc}"
    )
    [family] = of_broker(settings).collect()
    assert {sample.labels["queue"]: sample.value for sample in family.samples} == dict.fromkeys(OURS, 0)


#: What would circumvent the rights: a policy can give any queue a dead-letter exchange, and a parameter a shovel.
FORBIDDEN = {
    "create a user": ("PUT", ["users", "another"], {"password": "x", "tags": "administrator"}),
    "give oneself rights": ("PUT", ["permissions", "{vhost}", "{user}"], {"configure": ".*", "write": ".*", "read": ".*"}),
    "read the hashes of passwords": ("GET", ["definitions"], None),
    "import definitions": ("POST", ["definitions"], {"users": []}),
    "set a policy": (
        "PUT", ["policies", "{vhost}", "all"], {"pattern": ".*", "definition": {"dead-letter-exchange": EXCHANGE}}
    ),
    "set a parameter": ("PUT", ["parameters", "shovel", "{vhost}", "all"], {"value": {}}),
    "delete our queue": ("DELETE", ["queues", "{vhost}", MENU.name], None),
    "delete the virtual host": ("DELETE", ["vhosts", "{vhost}"], None),
}  # fmt: skip


@pytest.mark.parametrize("act", FORBIDDEN)
def test_nobody_gets_further_by_the_console(
    secured: Secured, broker: Broker, management: VhostManagement, act: str
) -> None:
    method, path, body = FORBIDDEN[act]
    # The topology's user has no console, and may delete a queue.
    for user in (SERVICE, TOPOLOGY, *SIBLINGS, OPERATOR):
        name = urlsplit(secured.logins[user]).username
        filled = [part.format(vhost=management.vhost, user=name) for part in path]

        with pytest.raises(RequestFailed, match=r"40[013]"):
            console(secured, broker, user).call(method, *filled, body=body)

    assert MENU.name in management.queues()
