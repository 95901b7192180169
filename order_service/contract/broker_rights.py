"""The broker's users and their rights, and the definitions file that creates them: derived from the topology.

https://www.rabbitmq.com/docs/access-control https://www.rabbitmq.com/docs/definitions
"""

from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from secrets import token_bytes
from typing import Any

from order_service.contract.events import OUTGOING
from order_service.contract.topology import BY_NAME, EXCHANGE, EXCHANGES, OWN_EXCHANGES, QUEUES, Queue

NOTHING = "^$"
_DEAD_LETTERS = [queue.dead_letters for queue in BY_NAME.values()]


def _escaped(name: str) -> str:
    return name.replace(".", r"\.")


def _any_of(names: Iterable[str]) -> str:
    # The anchors are necessary: `order` would also allow `reorder`.
    return f"^({'|'.join(map(_escaped, names))})$"


@dataclass(frozen=True)
class User:
    """A login of the broker. The expressions are those of `rabbitmqctl set_permissions`."""

    name: str
    #: Who uses it.
    used_by: str
    configure: str = NOTHING
    write: str = NOTHING
    read: str = NOTHING
    #: By exchange, the routing keys that it may write and read.
    topics: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    tags: tuple[str, ...] = ()

    @property
    def password_variable(self) -> str:
        """The environment variable with its password."""
        return f"{self.name.upper().replace('-', '_')}_PASSWORD"


def _sibling(exchange: str) -> User:
    """The user of a sibling that publishes to this exchange; its queues have the same prefix.

    It may neither delete nor redeclare its exchange, because the bindings of our queues belong to it.
    """
    name = exchange.removesuffix(".events")
    area = name.removesuffix("-service")
    return User(
        name,
        f"the {area.title()} Service",
        configure=rf"^{name}\.(?!events$).*$",
        write=rf"^{name}\..*$",
        read=rf"^({_escaped(EXCHANGE)}|{name}\..*)$",
        topics={EXCHANGE: (NOTHING, rf"^(order|{area})\..*$")},
        tags=("management",),
    )


_OURS = "|".join(map(_escaped, (EXCHANGE, *(queue.publisher for queue in QUEUES)))) + r"|order-service\..*"
USERS = (
    User(
        "order-service",
        "`python -m consumers`, `python -m publishers`",
        write=_any_of(OWN_EXCHANGES),
        read=_any_of([*BY_NAME, *_DEAD_LETTERS]),
        topics={EXCHANGE: (_any_of(model.routing_key for model in OUTGOING.values()), NOTHING)},
    ),
    User(
        "order-topology",
        "`python -m order_service topology`, with `--recreate` too",
        configure=f"^({_OURS})$",
        write=r"^order-service\..*$",
        read=f"^({_OURS})$",
    ),
    *(_sibling(queue.publisher) for queue in QUEUES),
    User("order-operator", "operators, in RabbitMQ's console", read=_any_of(_DEAD_LETTERS), tags=("monitoring",)),
)


def password_hash(password: str, salt: bytes) -> str:
    """RabbitMQ's salted SHA-256; the salt has four bytes. https://www.rabbitmq.com/docs/passwords"""
    return b64encode(salt + sha256(salt + password.encode()).digest()).decode()


def definitions(passwords: Mapping[str, str], *, vhost: str, queues: Sequence[Queue] = QUEUES) -> dict[str, Any]:
    """A definitions file with the topology, the users and their rights; `passwords` are by the names of the users."""
    within = {"vhost": vhost}
    lasting = within | {"durable": True, "auto_delete": False}
    declared = [each for queue in queues for each in queue.declarations]
    return {
        "vhosts": [{"name": vhost}],
        "users": [
            {"name": user.name, "password_hash": password_hash(passwords[user.name], token_bytes(4)),
             "hashing_algorithm": "rabbit_password_hashing_sha256", "tags": list(user.tags)}
            for user in USERS
        ],
        "permissions": [
            {"user": user.name, **within, "configure": user.configure, "write": user.write, "read": user.read}
            for user in USERS
        ],
        "topic_permissions": [
            {"user": user.name, **within, "exchange": exchange, "write": write, "read": read}
            for user in USERS
            for exchange, (write, read) in user.topics.items()
        ],
        "exchanges": [
            {"name": name, **lasting, "type": kind, "internal": False, "arguments": {}}
            for name, kind in EXCHANGES.items()
        ],
        "queues": [{"name": each.name, **lasting, "arguments": dict(each.arguments)} for each in declared],
        "bindings": [
            {"source": exchange, **within, "destination": each.name, "destination_type": "queue", "routing_key": key,
             "arguments": {}}
            for each in declared
            for exchange, key in each.bindings
        ],
    }  # fmt: skip
