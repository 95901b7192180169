"""Verify access tokens: JWTs by RFC 9068, with the checks of RFC 8725.

Only the settings say which keys and algorithms are trusted: what a token says of its key, in `jku`, `x5u` or `jwk`, is
not read.
"""

import json
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import jwt
import structlog
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from jwt.exceptions import InvalidSubjectError

from order_service.backoff import Postponed
from order_service.config import Settings
from order_service.credentials import masked
from order_service.http_client import HttpClient, RequestFailed
from order_service.process import REPORTS, first_line, refuse

log = structlog.get_logger(__name__)
#: By how much the clocks of the issuer and of this host may differ, in seconds.
LEEWAY_SECONDS = 30
#: A longer token is not read; gunicorn accepts no longer header either.
MAX_TOKEN_CHARACTERS = 8192
MAX_SUBJECT_CHARACTERS = 255
#: A later expiry is this one, in seconds since 1970: clocks are floats, which hold no greater integers exactly.
MAX_EXPIRY = 2**53
#: How many accepted tokens a process keeps; verifying one costs as much as a fifth of a POST.
MAX_ACCEPTED_TOKENS = 4096
#: The time limit for fetching the keys, in seconds.
FETCH_SECONDS = 3.0
#: How long a token with an unknown key waits for another request that is fetching the keys, in seconds. While no key is
#: known, half of the threads wait until it has them.
WAIT_SECONDS = 0.3
#: An unknown key id has the keys fetched again at most this often, in seconds.
REFRESH_SECONDS = 30.0
#: The same while no key is known at all.
RETRY_SECONDS = 1.0
#: After this time the keys are fetched again in any case, in seconds: a key that its issuer withdrew is then refused.
MAX_AGE_SECONDS = 600.0
#: RFC 7518 (section 3.3) demands it.
MIN_RSA_BITS = 2048
_CURVES = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}
_REQUIRED = ["iss", "aud", "exp", "sub"]
#: The reasons for which PyJWT refuses a token; any other is `malformed`.
_REASONS: dict[type[Exception], str] = {
    jwt.ExpiredSignatureError: "expired",
    jwt.ImmatureSignatureError: "not_yet_valid",
    jwt.InvalidIssuerError: "wrong_issuer",
    jwt.InvalidAudienceError: "wrong_audience",
    jwt.InvalidSignatureError: "wrong_signature",
    InvalidSubjectError: "wrong_subject",
    jwt.MissingRequiredClaimError: "missing_claim",
}


class InvalidToken(Exception):
    """The token is not accepted; its text is the reason, in one word."""


class KeysUnavailable(Exception):
    """No key of the issuer is known, because it has not answered yet."""


@dataclass(frozen=True, slots=True)
class Claims:
    """What a verified token says; `expires_at` is in seconds since 1970."""

    subject: str
    scopes: frozenset[str]
    expires_at: int


@dataclass(frozen=True, slots=True)
class Key:
    """A public key with its id, if it has one, and the algorithms that it may be used with."""

    id: str | None
    algorithms: frozenset[str]
    public: Any


class Keys:
    """Public keys, of a file."""

    def __init__(self, keys: Sequence[Key] = ()) -> None:
        self._keys = keys

    def find(self, id: str | None, algorithm: str) -> Key | None:
        """The key with this id for this algorithm; without an id, the only one. Raises KeysUnavailable."""
        found = [key for key in self._keys if algorithm in key.algorithms and (id is None or key.id in (id, None))]
        return found[0] if len(found) == 1 else None

    def close(self) -> None:
        """End the connections to the issuer, if there are any."""


class Verifier:
    """Verifies the tokens of one issuer, for any number of threads."""

    def __init__(self, settings: Settings, keys: Keys) -> None:
        self._issuer, self._audience = settings.jwt_issuer, settings.jwt_audience
        self._algorithms = frozenset(settings.jwt_algorithms.split(","))
        self._keys = keys
        self.close = keys.close
        #: Accepted tokens, because a client sends the same one many times; with the id and the algorithm of their keys.
        self._accepted: dict[str, tuple[Claims, Key, str | None, str]] = {}

    def verify(self, token: str) -> Claims:
        """What the token says. Raises InvalidToken, or KeysUnavailable."""
        if accepted := self._accepted.get(token):
            claims, known, key_id, algorithm = accepted
            # A key that was fetched again is another object.
            if claims.expires_at > time.time() - LEEWAY_SECONDS and self._keys.find(key_id, algorithm) is known:
                return claims
        if len(token) > MAX_TOKEN_CHARACTERS:
            raise InvalidToken("malformed")
        try:
            header = jwt.get_unverified_header(token)
            key_id, algorithm = header.get("kid"), self._algorithm(header)
            key = self._keys.find(key_id, algorithm)
            if key is None:
                raise InvalidToken("unknown_key")
            claims = self._claims(token, key, algorithm)
        except jwt.PyJWTError as error:
            raise InvalidToken(_REASONS.get(type(error), "malformed")) from error
        if len(self._accepted) >= MAX_ACCEPTED_TOKENS:
            self._accepted.clear()
        self._accepted[token] = claims, key, key_id, algorithm
        return claims

    def _algorithm(self, header: dict[str, Any]) -> str:
        kind, algorithm = header.get("typ"), header.get("alg")
        # An ID token or a logout token of the same issuer is no access token (RFC 8725, section 3.11).
        if not isinstance(kind, str) or kind.lower().removeprefix("application/") not in ("at+jwt", "jwt"):
            raise InvalidToken("wrong_type")
        if not isinstance(algorithm, str) or algorithm not in self._algorithms:
            raise InvalidToken("wrong_algorithm")
        return algorithm

    def _claims(self, token: str, key: Key, algorithm: str) -> Claims:
        claims = jwt.decode(
            token, key.public, [algorithm],
            issuer=self._issuer, audience=self._audience, leeway=LEEWAY_SECONDS, options={"require": _REQUIRED},
        )  # fmt: skip
        # Printable, because it is logged, and hashed as UTF-8.
        if not (0 < len(claims["sub"]) <= MAX_SUBJECT_CHARACTERS and claims["sub"].isprintable()):
            raise InvalidToken("wrong_subject")
        scope = claims.get("scope")
        # Only a space separates scopes (RFC 6749, section 3.3); any other character is part of one.
        scopes = frozenset(scope.split(" ") if isinstance(scope, str) else ())
        return Claims(claims["sub"], scopes, min(int(claims["exp"]), MAX_EXPIRY))


def verifier(settings: Settings) -> Verifier | None:
    """What verifies the tokens; None without authentication. Exits with 2 if the key file cannot be used."""
    if not settings.needs_tokens:
        return None
    if settings.jwt_jwks_url:
        return Verifier(settings, FetchedKeys(str(settings.jwt_jwks_url), most_waiting=settings.api_threads // 2))
    try:
        text = Path(settings.jwt_key_file).read_bytes()
        return Verifier(settings, Keys(_jwks(text) if text.lstrip().startswith(b"{") else _pem(text)))
    except (OSError, ValueError) as error:
        refuse(f"ORDER_JWT_KEY_FILE: must name a file with a public key (PEM) or a JWKS: {error}")


class FetchedKeys(Keys):
    """The keys that the issuer publishes at an address. They outlast an outage of the issuer."""

    def __init__(self, url: str, *, most_waiting: int) -> None:
        super().__init__()
        address = urlsplit(url)
        self._name = masked(url)
        self._path = f"{address.path}?{address.query}" if address.query else address.path
        # Only the address of the settings is trusted.
        self._client = HttpClient(
            f"{address.scheme}://{address.netloc}", total_seconds=FETCH_SECONDS, follows_redirects=False
        )
        self._fetching, self._waiting = threading.Lock(), threading.Semaphore(most_waiting)
        self._reported = Postponed[str](REPORTS)
        #: On the monotonic clock: when the keys may be fetched again, and when they have to be.
        self._next_at = self._stale_at = 0.0

    def find(self, id: str | None, algorithm: str) -> Key | None:
        found = super().find(id, algorithm)
        if found is None:
            self._fetch()
            found = super().find(id, algorithm)
            if not self._keys:
                raise KeysUnavailable
        elif time.monotonic() > max(self._stale_at, self._next_at) and not self._fetching.locked():
            # In a thread: no request whose key is known waits for the issuer.
            threading.Thread(target=self._fetch, name="keys of the issuer", daemon=True).start()
        return found

    def close(self) -> None:
        self._client.close()

    def _fetch(self) -> None:
        """Fetch the keys, unless they were fetched recently; keep the former ones if that fails."""
        if not self._may_fetch():
            return
        try:
            if time.monotonic() < self._next_at:
                return
            try:
                response = self._client.request("GET", self._path)
                if response.status != 200:
                    raise ValueError(f"status {response.status}")
                self._keys, self._stale_at = _jwks(response.body), time.monotonic() + MAX_AGE_SECONDS
            except (RequestFailed, ValueError) as error:
                if self._reported.add(self._name):
                    log.warning("cannot fetch the keys of the issuer", url=self._name, error=first_line(error))
            self._next_at = time.monotonic() + (REFRESH_SECONDS if self._keys else RETRY_SECONDS)
        finally:
            self._fetching.release()

    def _may_fetch(self) -> bool:
        """Whether this thread may fetch the keys; waits for the one that does, and must then release the lock."""
        # Requests must not occupy all threads while the issuer does not answer.
        if self._keys or not self._waiting.acquire(blocking=False):
            return self._fetching.acquire(timeout=WAIT_SECONDS)
        try:
            return self._fetching.acquire()
        finally:
            self._waiting.release()


def _pem(text: bytes) -> list[Key]:
    """Raises ValueError unless it is a public key that can be used."""
    if b"PRIVATE KEY" in text:
        raise ValueError("it has a private key, which only the issuer may have")
    public = load_pem_public_key(text)
    return _usable([Key(None, _algorithms(public), public)])


def _jwks(text: bytes) -> list[Key]:
    """The usable keys of a JWKS (RFC 7517), which may hold others. Raises ValueError if there is none."""
    try:
        found = json.loads(text)["keys"]
        signing = [
            each for each in found if each.get("use", "sig") == "sig" and "verify" in each.get("key_ops", ["verify"])
        ]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise ValueError("it is not a JWKS") from None
    keys = []
    for each in signing:
        try:
            public = jwt.PyJWK(each).key
            algorithms = _algorithms(public)
            keys.append(Key(each.get("kid"), algorithms & {each["alg"]} if "alg" in each else algorithms, public))
        except Exception:  # noqa: S112 - issuers also publish other keys; the library raises several types for them
            continue
    return _usable(keys)


def _usable(keys: list[Key]) -> list[Key]:
    if usable := [key for key in keys if key.algorithms]:
        return usable
    raise ValueError(f"it has no public key of type RSA (from {MIN_RSA_BITS} bits), EC or Ed25519")


def _algorithms(key: object) -> frozenset[str]:
    """The algorithms that a key of this type may be used with (RFC 8725, section 3.1)."""
    match key:
        case RSAPublicKey() if key.key_size >= MIN_RSA_BITS:
            return frozenset({"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"})
        case EllipticCurvePublicKey() if key.curve.name in _CURVES:
            return frozenset({_CURVES[key.curve.name]})
        case Ed25519PublicKey() | Ed448PublicKey():
            return frozenset({"EdDSA"})
    return frozenset()
