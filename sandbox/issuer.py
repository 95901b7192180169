"""An issuer of access tokens for trials and tests: `python -m sandbox.issuer`, on port 5005 (ISSUER_PORT).

It checks no password: everyone gets every token. docs/access.md uses it in place of a real one.

GET  /.well-known/openid-configuration   the addresses of the others
GET  /jwks.json   its public keys
GET  /authorize   log in the user that login_hint names, and redirect with a code for a token
POST /token       a token for such a code, for the client (grant_type=client_credentials), or, without a grant_type, for
                  the form field sub; with the form fields scope, and seconds until it expires
POST /rotate      sign with a new key; the former one stays published

ORDER_AUTH=jwt ORDER_JWT_ISSUER=http://localhost:5005 ORDER_JWT_JWKS_URL=http://localhost:5005/jwks.json
"""

import json
import os
import secrets
import time
from base64 import urlsafe_b64encode
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import jwt
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from flask import Flask, redirect, request
from flask.typing import ResponseReturnValue
from jwt.algorithms import ECAlgorithm
from werkzeug.exceptions import BadRequest

from sandbox.siblings.http import json_app, port_of, serve

AUDIENCE = "order-service"
PORT_VARIABLE, DEFAULT_PORT = "ISSUER_PORT", 5005


class Issuer:
    """Signs tokens with the newest of its keys, and publishes all of them."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._keys: dict[str, EllipticCurvePrivateKey] = {}
        self.rotate()

    def rotate(self) -> None:
        """Sign with a new key from now on."""
        self._keys = self._keys | {secrets.token_hex(8): generate_private_key(SECP256R1())}

    def withdraw(self) -> None:
        """Publish the newest key only."""
        self._keys = dict(list(self._keys.items())[-1:])

    def jwks(self) -> dict[str, Any]:
        keys = ((kid, json.loads(ECAlgorithm.to_jwk(key.public_key()))) for kid, key in self._keys.items())
        return {"keys": [{**key, "kid": kid, "use": "sig", "alg": "ES256"} for kid, key in keys]}

    def token(
        self, subject: str, scope: str, *, seconds: float = 3600, header: dict[str, Any] | None = None, **claims: Any
    ) -> str:
        """A token that expires after so many seconds; with other members of its header or other claims, if given.

        None leaves out a member or a claim.
        """
        now = int(time.time())
        known = {"iss": self.name, "aud": AUDIENCE, "sub": subject, "scope": scope, "iat": now}
        kid, key = list(self._keys.items())[-1]
        claims = known | {"exp": now + int(seconds)} | claims
        members = {"typ": "at+jwt", "kid": kid} | (header or {})
        without_typ = {"typ": None} if members["typ"] is None else {}  # the library would set one
        return jwt.encode(_given(claims), key, "ES256", _given(members) | without_typ)


def _given(members: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in members.items() if value is not None}


def create_app(issuer: Issuer) -> Flask:
    app = json_app("issuer")
    #: What was asked for, by the code that was given for it.
    logins: dict[str, Mapping[str, str]] = {}

    @app.get("/.well-known/openid-configuration")
    def describe() -> ResponseReturnValue:
        paths = {"jwks_uri": "jwks.json", "authorization_endpoint": "authorize", "token_endpoint": "token"}
        return {"issuer": issuer.name} | {name: f"{issuer.name}/{path}" for name, path in paths.items()}

    @app.get("/jwks.json")
    def publish() -> ResponseReturnValue:
        return issuer.jwks()

    @app.get("/authorize")
    def log_in() -> ResponseReturnValue:
        code, asked = secrets.token_urlsafe(), request.args
        logins[code] = {name: asked[name] for name in ("login_hint", "scope", "code_challenge", "redirect_uri")}
        return redirect(f"{asked['redirect_uri']}?{urlencode({'code': code, 'state': asked.get('state', '')})}")

    @app.post("/token")
    def give() -> ResponseReturnValue:
        seconds = request.form.get("seconds", 3600, type=int)
        match request.form.get("grant_type"):
            case None:
                subject, scope = request.form["sub"], request.form["scope"]
            case "client_credentials":
                client = request.authorization.username if request.authorization else request.form["client_id"]
                subject, scope = str(client), request.form["scope"]
            case _:
                login = _checked(logins.pop(request.form["code"], {}))
                subject, scope = login["login_hint"], login["scope"]
        token = issuer.token(subject, scope, seconds=seconds)
        return {"access_token": token, "token_type": "Bearer", "expires_in": seconds}

    @app.post("/rotate")
    def rotate() -> ResponseReturnValue:
        issuer.rotate()
        return issuer.jwks()

    return app


def _checked(login: Mapping[str, str]) -> Mapping[str, str]:
    """The login, if the current request is of the client that began it (PKCE, RFC 7636, with S256); else 400."""
    challenge = urlsafe_b64encode(sha256(request.form["code_verifier"].encode()).digest()).rstrip(b"=").decode()
    expected = {"code_challenge": challenge, "redirect_uri": request.form["redirect_uri"]}
    if not expected.items() <= login.items():
        raise BadRequest("invalid_grant")
    return login


def development_key(directory: Path) -> Path:
    """Create a key pair in this directory unless it is there. Returns the file of the public key.

    `python -m order_service token` signs with the private one, which only its owner can read.
    """
    private, public = directory / "development-key.pem", directory / "development-key.pub.pem"
    if not private.exists():
        key = generate_private_key(SECP256R1())
        with os.fdopen(os.open(private, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return public


def main() -> None:
    issuer = Issuer(f"http://localhost:{port_of(PORT_VARIABLE, DEFAULT_PORT)}")
    serve(create_app(issuer), PORT_VARIABLE, DEFAULT_PORT)


if __name__ == "__main__":
    main()
