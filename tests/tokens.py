"""An issuer over HTTP, the tokens that a service must accept, and those that it must refuse."""

import base64
import contextlib
import hashlib
import hmac
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jwt
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from flask import request
from werkzeug.serving import make_server

from sandbox.issuer import Issuer, create_app
from tests.http_service import QuietHandler
from tests.serving import serving

ISSUER = "https://login.example"


@contextlib.contextmanager
def published(issuer: Issuer, port: int = 0) -> Iterator["Published"]:
    """The keys of the issuer over HTTP, for the length of the block."""
    app, requests = create_app(issuer), list[str]()
    found = Published("", requests)

    @app.before_request
    def note() -> Any:
        requests.append(request.path)
        return found.fault() if found.fault else None

    server = make_server("127.0.0.1", port, app, threaded=True, request_handler=QuietHandler)
    found.port, found.url = server.server_port, f"http://127.0.0.1:{server.server_port}/jwks.json"
    with serving(server):
        yield found


@dataclass
class Published:
    """The address of the keys, the paths that were requested, and what makes the response instead, if anything."""

    url: str
    requests: list[str]
    fault: Callable[[], Any] | None = None
    port: int = 0

    @property
    def settings(self) -> dict[str, str]:
        """The settings with which a service trusts this issuer."""
        return {"auth": "jwt", "jwt_issuer": ISSUER, "jwt_jwks_url": self.url}


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def segment(content: Mapping[str, Any] | bytes) -> str:
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    return base64.urlsafe_b64encode(text).rstrip(b"=").decode()


def payload(token: str) -> dict[str, Any]:
    """The claims of a token."""
    claims: dict[str, Any] = jwt.decode(token, options={"verify_signature": False})
    return claims


def unsigned(token: str) -> str:
    return f"{segment({'typ': 'at+jwt', 'alg': 'none'})}.{segment(payload(token))}."


def signed_with_public_key(issuer: Issuer, token: str) -> str:
    """Signed with HMAC, whose secret is the public key as it is published, which anyone knows."""
    [key] = issuer.jwks()["keys"]
    secret = jwt.PyJWK(key).key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    content = f"{segment({'typ': 'at+jwt', 'alg': 'HS256', 'kid': key['kid']})}.{segment(payload(token))}"
    return f"{content}.{segment(hmac.new(secret, content.encode(), hashlib.sha256).digest())}"


def signed_by_another(issuer: Issuer, token: str, **header: Any) -> str:
    """Signed with a key that is not the issuer's, and says of it what is given."""
    claims = payload(token)
    return Issuer(issuer.name).token(claims.pop("sub"), claims.pop("scope"), header=header, **claims)


#: The tokens of user 1 and of all scopes that must be refused, each with the reason.
REFUSED: Mapping[str, tuple[str, Callable[[Issuer, str], str]]] = {
    "garbage": ("malformed", lambda issuer, good: "garbage"),
    "cut off": ("malformed", lambda issuer, good: good[:-1]),
    "two tokens": ("malformed", lambda issuer, good: f"{good},Bearer {good}"),
    "too long": ("malformed", lambda issuer, good: issuer.token("1", "orders " * 2000)),
    "deeply nested": ("malformed", lambda issuer, good: segment(b"[" * 6000) + good[good.index(".") :]),
    "expired": ("expired", lambda issuer, good: issuer.token("1", ALL, seconds=-31)),
    "without end": ("missing_claim", lambda issuer, good: issuer.token("1", ALL, exp=None)),
    "not yet valid": ("not_yet_valid", lambda issuer, good: issuer.token("1", ALL, nbf=time.time() + 40)),
    "issued later": ("not_yet_valid", lambda issuer, good: issuer.token("1", ALL, iat=time.time() + 40)),
    "wrong aud": ("wrong_audience", lambda issuer, good: issuer.token("1", ALL, aud=["menu-service", "Order-Service"])),
    "wrong iss": ("wrong_issuer", lambda issuer, good: issuer.token("1", ALL, iss=f"{ISSUER}/")),
    "wrong typ": ("wrong_type", lambda issuer, good: issuer.token("1", ALL, header={"typ": "id+jwt"})),
    "no typ": ("wrong_type", lambda issuer, good: issuer.token("1", ALL, header={"typ": None})),
    "alg none": ("wrong_algorithm", lambda issuer, good: unsigned(good)),
    "HS256 with the public key": ("wrong_algorithm", signed_with_public_key),
    "unknown kid": ("unknown_key", signed_by_another),
    "another key under a known kid": (
        "wrong_signature", lambda issuer, good: signed_by_another(issuer, good, kid=issuer.jwks()["keys"][0]["kid"]),
    ),
    "no subject": ("missing_claim", lambda issuer, good: issuer.token("1", ALL, sub=None)),
    "subject that is a number": ("wrong_subject", lambda issuer, good: issuer.token("1", ALL, sub=1)),
    "subject with a line break": ("wrong_subject", lambda issuer, good: issuer.token("1\nadmin", ALL)),
}  # fmt: skip
ALL = "orders orders:all payments"
