"""The service with what its operators may use: tokens and limits, metrics and the whole log, or the board."""

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import jwt
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from benchmarks.ours import OURS, PROJECT_DIR, prepare
from benchmarks.system import User

#: How many users post orders in turn, each with a token.
USERS = 50
ISSUER, AUDIENCE = "benchmarks", "order-service"
KEY_FILE = PROJECT_DIR / "var" / "benchmarks-key.pem"
#: The first of the ports for monitoring.
OPS_PORT = 5113


@cache
def _key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def _prepare(database_url: str, rabbitmq_url: str) -> None:
    KEY_FILE.parent.mkdir(exist_ok=True)
    KEY_FILE.write_bytes(_key().public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    prepare(database_url, rabbitmq_url)


@cache
def _users() -> Sequence[User]:
    claims = {"iss": ISSUER, "aud": AUDIENCE, "scope": "orders", "exp": int(time.time()) + 86_400}
    return [
        User(user_id, "Bearer " + jwt.encode(claims | {"sub": str(user_id)}, _key(), "ES256", {"typ": "at+jwt"}))
        for user_id in range(1, USERS + 1)
    ]


#: Limits that count everything and refuse nothing: a refused order costs less than an accepted one.
WITH_ACCESS = replace(
    OURS,
    name="ours-access",
    prepare=_prepare,
    users=_users,
    environment={
        "ORDER_AUTH": "jwt",
        "ORDER_JWT_ISSUER": ISSUER,
        "ORDER_JWT_AUDIENCE": AUDIENCE,
        "ORDER_JWT_KEY_FILE": str(KEY_FILE),
        "ORDER_RATE_LIMIT": "1000000/minute",
        "ORDER_PENDING_LIMIT": "500",
    },
    databases=frozenset({"postgresql"}),
    measures=frozenset({"end-to-end"}),
)
_PORTS = {name: str(OPS_PORT + number) for number, name in enumerate(OURS.processes)}
#: Every process has its port for monitoring, which is read as often as Prometheus does, and logs all that it does.
OBSERVED = replace(
    OURS,
    name="ours-observed",
    processes={
        **{name: ("env", f"ORDER_OPS_PORT={_PORTS[name]}", *argv) for name, argv in OURS.processes.items()},
        "scraper": ("{python}", "-m", "benchmarks.scraper", *_PORTS.values()),
    },
    environment={"LOG_LEVEL": "INFO", "LOG_FORMAT": "json"},
    databases=frozenset({"postgresql"}),
    measures=frozenset({"end-to-end"}),
)
#: Ten pages of the board are open.
WATCHED = replace(
    OURS,
    name="ours-watched",
    processes={**OURS.processes, "viewers": ("{python}", "-m", "benchmarks.viewers", "{port}")},
    databases=frozenset({"postgresql"}),
    measures=frozenset({"end-to-end"}),
)
