"""The keys with which tokens are verified: fetched, rotated, withdrawn, kept through an outage, or read from a file."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jwt
import pytest
import time_machine
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from flask import Response

from order_service.config import Settings
from order_service.web import tokens
from order_service.web.tokens import InvalidToken, KeysUnavailable, Verifier, verifier
from sandbox.issuer import Issuer, create_app, development_key
from tests.http_service import Eventually
from tests.integration import core
from tests.tokens import ISSUER, Published, published


@pytest.fixture
def verifying() -> Iterator[Callable[..., Verifier]]:
    """`verifying(**settings)` verifies with these settings, until the end of the test."""
    made: list[Verifier] = []

    def make(**settings: Any) -> Verifier:
        found = verifier(Settings(**settings))
        assert found
        made.append(found)
        return found

    yield make
    for each in made:
        each.close()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys may be fetched at any time."""
    monkeypatch.setattr(tokens, "REFRESH_SECONDS", 0)
    monkeypatch.setattr(tokens, "RETRY_SECONDS", 0)


def outcome(verify: Verifier, token: str) -> str:
    """The subject of the token, or why there is none."""
    try:
        return verify.verify(token).subject
    except InvalidToken as error:
        return str(error)
    except KeysUnavailable:
        return "unavailable"


def test_keys_are_fetched_once_for_many_tokens(
    verifying: Callable[..., Verifier], issuer: Issuer, keys: Published
) -> None:
    verify = verifying(**keys.settings)
    assert keys.requests == []

    assert {outcome(verify, issuer.token(str(id), "orders")) for id in range(20)} == set(map(str, range(20)))

    assert keys.requests == ["/jwks.json"]


def test_unknown_keys_have_the_keys_fetched_again_at_most_once_per_interval(
    verifying: Callable[..., Verifier], issuer: Issuer, keys: Published, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given
    monkeypatch.setattr(tokens, "REFRESH_SECONDS", 0.5)
    verify, old = verifying(**keys.settings), issuer.token("old", "orders")
    began = time.monotonic()
    assert outcome(verify, old) == "old"
    issuer.rotate()
    new, forged = issuer.token("new", "orders"), Issuer(ISSUER).token("forged", "orders")

    # when
    while outcome(verify, new) == "unknown_key":
        assert [outcome(verify, token) for token in (forged, old)] == ["unknown_key", "old"]
        assert time.monotonic() - began < 30
    seconds = time.monotonic() - began

    # then
    assert seconds > 0.5
    assert 2 <= len(keys.requests) <= 1 + seconds / 0.5
    assert [outcome(verify, token) for token in (forged, old)] == ["unknown_key", "old"]


@pytest.mark.usefixtures("impatient")
def test_withdrawn_key_is_refused_once_the_keys_are_fetched_again_and_no_request_waits_for_that(
    verifying: Callable[..., Verifier], issuer: Issuer, keys: Published, monkeypatch: pytest.MonkeyPatch,
    eventually: Eventually,
) -> None:  # fmt: skip
    # given
    monkeypatch.setattr(tokens, "MAX_AGE_SECONDS", 0)
    verify, old = verifying(**keys.settings), issuer.token("old", "orders")
    assert outcome(verify, old) == "old"
    issuer.rotate()
    issuer.withdraw()

    # when: the issuer takes its time
    release = threading.Event()
    keys.fault = lambda: release.wait(30) and None
    began = time.monotonic()
    assert outcome(verify, old) == "old"
    assert time.monotonic() - began < 1
    release.set()

    # then
    eventually(lambda: outcome(verify, old) == "unknown_key", "the key to be refused")


FAULTS = {
    "an error": lambda: Response("down", 500),
    "a redirect": lambda: Response(status=302, headers={"Location": "/jwks.json?again"}),
    "no JSON": lambda: Response("<html>"),
    "deeply nested JSON": lambda: Response("[" * 60_000),
    "another JSON": lambda: Response("[]"),
    "no keys": lambda: Response('{"keys": []}'),
    "unusable keys": lambda: Response('{"keys": [5, {}, {"kty": "oct", "k": "eA", "kid": "k"}, {"kty": "none"}]}'),
    "other purposes": lambda: Response('{"keys": [{"kty": "RSA", "use": "enc", "n": "AQAB", "e": "AQAB"}]}'),
    "too much": lambda: Response('{"keys": ["' + "x" * 70_000 + '"]}'),
}


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("fault", FAULTS)
def test_known_keys_stay_in_use_while_the_issuer_answers_nonsense(
    verifying: Callable[..., Verifier], issuer: Issuer, keys: Published, fault: str
) -> None:
    # given
    verify, late = verifying(**keys.settings), verifying(**keys.settings)
    known = issuer.token("1", "orders")
    assert outcome(verify, known) == "1"
    issuer.rotate()

    # when
    keys.fault = FAULTS[fault]
    new = issuer.token("1", "orders")

    # then
    assert [outcome(verify, token) for token in (known, new, known)] == ["1", "unknown_key", "1"]
    assert outcome(late, known) == "unavailable"
    keys.fault = None
    assert [outcome(each, new) for each in (verify, late)] == ["1", "1"]


def test_keys_of_another_address_are_not_accepted(verifying: Callable[..., Verifier], keys: Published) -> None:
    other = Issuer(ISSUER)
    with published(other) as elsewhere:
        address = str(elsewhere.settings["jwt_jwks_url"])
        keys.fault = lambda: Response(status=302, headers={"Location": address})

        assert outcome(verifying(**keys.settings), other.token("1", "orders")) == "unavailable"
        assert elsewhere.requests == []


@pytest.mark.usefixtures("impatient")
def test_known_keys_stay_in_use_while_the_issuer_is_down(
    verifying: Callable[..., Verifier], issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given
    log = core.Log()
    monkeypatch.setattr(tokens, "log", log)
    with published(issuer) as keys:
        verify, late = verifying(**keys.settings), verifying(**keys.settings)
        known = issuer.token("1", "orders")
        assert outcome(verify, known) == "1"

    # when: down
    issuer.rotate()
    new = issuer.token("1", "orders")
    assert [outcome(verify, token) for token in (known, new, known)] == ["1", "unknown_key", "1"]
    assert {outcome(late, known) for _ in range(20)} == {"unavailable"}
    assert log.count("cannot fetch the keys of the issuer") == 2  # each of the two, once

    # then: up again
    with published(issuer, keys.port):
        assert [outcome(each, new) for each in (verify, late)] == ["1", "1"]


@pytest.mark.usefixtures("impatient")
def test_issuer_that_never_answers_is_given_up_on_in_time(
    verifying: Callable[..., Verifier], issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens, "FETCH_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/jwks"
        verify = verifying(auth="jwt", jwt_issuer=ISSUER, jwt_jwks_url=url)

        began = time.monotonic()
        assert outcome(verify, issuer.token("1", "orders")) == "unavailable"

    assert time.monotonic() - began < 3


def test_requests_do_not_all_wait_for_an_issuer_that_has_never_answered(
    verifying: Callable[..., Verifier], issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given: 32 threads answer requests
    monkeypatch.setattr(tokens, "FETCH_SECONDS", 2.0)
    token, began = issuer.token("1", "orders"), time.monotonic()
    with socket.create_server(("127.0.0.1", 0)) as silent, ThreadPoolExecutor(32) as pool:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/jwks"
        verify = verifying(auth="jwt", jwt_issuer=ISSUER, jwt_jwks_url=url, streams=0, waiters=0)

        # when
        ended = sorted(pool.map(lambda _: (outcome(verify, token), time.monotonic() - began)[1], range(32)))

    # then
    assert ended[12] < 1.5 < ended[-1]


def test_token_without_a_key_id_is_accepted_while_there_is_one_key(
    verifying: Callable[..., Verifier], issuer: Issuer, keys: Published
) -> None:
    token = issuer.token("1", "orders", header={"kid": None})

    assert outcome(verifying(**keys.settings), token) == "1"
    issuer.rotate()
    assert outcome(verifying(**keys.settings), token) == "unknown_key"


def test_issuer_of_the_sandbox_gives_tokens_and_rotates_its_keys(
    verifying: Callable[..., Verifier], issuer: Issuer, keys: Published
) -> None:
    # given
    client = create_app(issuer).test_client()
    wanted = {"sub": "7", "scope": "orders payments", "seconds": "60"}

    # when
    first = client.post("/token", data=wanted).get_json()
    client.post("/rotate")
    second = client.post("/token", data=wanted).get_json()

    # then
    verify = verifying(**keys.settings)
    assert {verify.verify(given["access_token"]).scopes for given in (first, second)} == {
        frozenset({"orders", "payments"})
    }
    assert [(given["token_type"], given["expires_in"]) for given in (first, second)] == [("Bearer", 60)] * 2
    assert len(client.get("/jwks.json").get_json()["keys"]) == 2
    assert client.post("/token", data={"sub": "7"}).status_code == 400


def test_accepted_token_is_refused_once_it_has_expired(
    verifying: Callable[..., Verifier], issuer: Issuer, keys: Published, monkeypatch: pytest.MonkeyPatch
) -> None:
    verify, token = verifying(**keys.settings), issuer.token("1", "orders", seconds=60)
    assert [outcome(verify, token) for _ in range(2)] == ["1", "1"]

    with time_machine.travel(time.time() + 60 + tokens.LEEWAY_SECONDS + 1):
        assert [outcome(verify, token) for _ in range(2)] == ["expired", "expired"]


def test_only_a_space_separates_scopes(verifying: Callable[..., Verifier], issuer: Issuer, keys: Published) -> None:
    """Otherwise an issuer that copies what it takes for one unknown scope would give several."""
    token = issuer.token("1", "orders  x\torders:all y\u2003payments")

    assert verifying(**keys.settings).verify(token).scopes & {"orders", "orders:all", "payments"} == {"orders"}


def test_expiry_that_no_clock_reaches_is_a_number_of_seconds(
    verifying: Callable[..., Verifier], issuer: Issuer, keys: Published
) -> None:
    token = issuer.token("1", "orders", exp=10**400)

    assert verifying(**keys.settings).verify(token).expires_at - time.time() > 10**12


# Algorithms and types of keys.

PRIVATE: dict[str, Any] = {
    "RS256": rsa.generate_private_key(65537, 2048),
    "ES256": ec.generate_private_key(ec.SECP256R1()),
    "ES384": ec.generate_private_key(ec.SECP384R1()),
    "EdDSA": ed25519.Ed25519PrivateKey.generate(),
}
PRIVATE["PS256"] = PRIVATE["RS256"]


def pem(private: Any) -> bytes:
    public: bytes = private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return public


def signed(algorithm: str, **header: Any) -> str:
    claims = {"iss": ISSUER, "aud": "order-service", "sub": "1", "exp": int(time.time()) + 60}
    return jwt.encode(claims, PRIVATE[algorithm], algorithm, {"typ": "at+jwt"} | header)


def jwk(algorithm: str, **members: Any) -> dict[str, Any]:
    made: str = jwt.get_algorithm_by_name(algorithm).to_jwk(PRIVATE[algorithm].public_key())
    return json.loads(made) | members


@pytest.fixture
def file_with(tmp_path: Path, verifying: Callable[..., Verifier]) -> Callable[..., Verifier]:
    def make(content: bytes | dict[str, Any], **settings: str) -> Verifier:
        file = tmp_path / "keys"
        file.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        return verifying(**{"auth": "jwt", "jwt_issuer": ISSUER, "jwt_key_file": str(file)} | settings)

    return make


@pytest.mark.parametrize("algorithm", PRIVATE)
def test_only_the_algorithms_of_the_settings_are_accepted(algorithm: str, file_with: Callable[..., Verifier]) -> None:
    content = pem(PRIVATE[algorithm])

    assert outcome(file_with(content, jwt_algorithms=algorithm), signed(algorithm)) == "1"
    accepted = algorithm in ("RS256", "ES256", "EdDSA")
    assert outcome(file_with(content), signed(algorithm)) == ("1" if accepted else "wrong_algorithm")


def test_key_is_used_with_its_own_algorithms_only(file_with: Callable[..., Verifier]) -> None:
    every = {"jwt_algorithms": ",".join(PRIVATE)}
    jwks = {"keys": [jwk("RS256", kid="r", alg="RS256"), jwk("ES256", kid="e"), jwk("EdDSA", kid="d")]}

    accepted = {
        (algorithm, kid): outcome(file_with(jwks, **every), signed(algorithm, kid=kid)) == "1"
        for algorithm in PRIVATE
        for kid in "red"
    }

    assert {pair for pair, is_accepted in accepted.items() if is_accepted} == {
        ("RS256", "r"), ("ES256", "e"), ("EdDSA", "d")
    }  # fmt: skip


UNUSABLE = {
    "empty": b"",
    "no key": b"ORDER",
    "cut off": pem(PRIVATE["ES256"])[:80],
    "a private key": PRIVATE["ES256"].private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
    "a short RSA key": pem(rsa.generate_private_key(65537, 1024)),
    "a curve that is not accepted": pem(ec.generate_private_key(ec.SECP256K1())),
    "no JWKS": {"kty": "RSA"},
    "a symmetric key": {"keys": [{"kty": "oct", "k": "c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0", "kid": "1"}]},
    "a private JWK": {"keys": [json.loads(jwt.get_algorithm_by_name("ES256").to_jwk(PRIVATE["ES256"]))]},
}


@pytest.mark.parametrize("content", UNUSABLE)
def test_file_without_a_usable_public_key_is_named(
    content: str, file_with: Callable[..., Verifier], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as refused:
        file_with(UNUSABLE[content])

    printed = capsys.readouterr().err
    assert refused.value.code == 2
    assert printed.startswith("ORDER_JWT_KEY_FILE: must name a file with a public key (PEM) or a JWKS: ")
    assert len(printed.splitlines()) == 1, printed
    assert "c2VjcmV0" not in printed
    assert ("private key, which only the issuer may have" in printed) == (content == "a private key")


def test_missing_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        verifier(Settings(auth="jwt", jwt_issuer=ISSUER, jwt_key_file=str(tmp_path / "none.pem")))

    assert "none.pem" in capsys.readouterr().err


def test_development_key_is_private_and_kept(tmp_path: Path) -> None:
    public = development_key(tmp_path)
    first = [(file.name, file.read_bytes()) for file in sorted(tmp_path.iterdir())]

    assert development_key(tmp_path) == public
    assert [(file.name, file.read_bytes()) for file in sorted(tmp_path.iterdir())] == first
    assert {file.name: file.stat().st_mode & 0o777 for file in tmp_path.iterdir()}["development-key.pem"] == 0o600
    assert b"PRIVATE" not in public.read_bytes()
