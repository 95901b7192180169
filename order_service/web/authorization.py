"""Who may send which request: tokens (RFC 6750), scopes, and the log of refused and privileged requests."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple

import structlog
from flask import Flask, Response, g, request

from order_service.contract.events import MAX_ID
from order_service.process import AUDIT
from order_service.web.headers import client_address, header
from order_service.web.problems import Problem, Texts, in_language
from order_service.web.tokens import Claims, InvalidToken, KeysUnavailable, Verifier

audit = structlog.get_logger(AUDIT)
#: The scopes of a route: any of them suffices, the one with the least rights is the first.
Scopes = Sequence[str]
OPEN: Scopes = ()
CUSTOMERS: Scopes = ("orders", "orders:all")
STAFF: Scopes = ("orders:all",)
PAYMENTS: Scopes = ("payments",)
#: The problems of a request whose route needs a scope.
PROBLEMS = ("token_required", "invalid_token", "insufficient_scope", "token_in_query", "keys_unavailable")
#: Why a token is not accepted, in Indonesian and in English.
REASONS: Mapping[str, Texts] = {
    "malformed": ("bukan JWT yang utuh", "it is not a complete JWT"),
    "wrong_type": ("typ harus at+jwt atau JWT", "its typ must be at+jwt or JWT"),
    "wrong_algorithm": ("algoritmanya tidak diterima", "its algorithm is not accepted"),
    "unknown_key": ("kuncinya tidak dikenal", "its key is not known"),
    "wrong_signature": ("tanda tangannya salah", "its signature is wrong"),
    "expired": ("sudah kedaluwarsa", "it has expired"),
    "not_yet_valid": ("belum berlaku", "it is not valid yet"),
    "wrong_issuer": ("penerbitnya salah", "its issuer is wrong"),
    "wrong_audience": ("aud tidak menyebut layanan ini", "its aud does not name this service"),
    "missing_claim": ("iss, aud, exp, atau sub tidak ada", "iss, aud, exp or sub is missing"),
    "wrong_subject": ("sub harus id pengguna", "its sub must be a user id"),
}


class Caller(NamedTuple):
    """Who sends a request. Without authentication, and on open routes, only the address is known."""

    address: str
    subject: str | None = None
    scopes: frozenset[str] = frozenset()
    #: When the token expires, in seconds since 1970.
    expires_at: float | None = None
    #: The only user whose orders this request may see and change; None for those of all users.
    own_user_id: int | None = None


def caller() -> Caller:
    """Who sends the current request."""
    found: Caller = g.caller
    return found


def install(app: Flask, verifier: Verifier | None, scopes: Mapping[str, Scopes]) -> None:
    """Check every request against the scopes of its endpoint; `verifier`: None accepts every request.

    Raises ValueError if an endpoint has no scopes declared.
    """
    if undeclared := {rule.endpoint for rule in app.url_map.iter_rules()} - scopes.keys():
        raise ValueError(f"no scopes are declared for {', '.join(sorted(undeclared))}")
    app.before_request(partial(_authorize, verifier, scopes))
    app.after_request(_log_privileged)


def _authorize(verifier: Verifier | None, scopes: Mapping[str, Scopes]) -> None:
    g.caller = Caller(client_address())
    if verifier is None:
        return
    if "access_token" in request.args:
        # Addresses are logged and kept (RFC 9700, section 4.3.2), so the token is to be considered known to others.
        raise refused("token_in_query", challenge='error="invalid_request"')
    # A request without an endpoint gets 404 or 405, and a preflight of a browser has no token.
    wanted = scopes[request.endpoint] if request.endpoint and request.method != "OPTIONS" else OPEN
    if not wanted:
        return
    claims = _claims(verifier)
    granted = [scope for scope in wanted if scope in claims.scopes]
    is_customer = granted == ["orders"]
    own_user_id = _user_id(claims.subject) if is_customer else None
    g.caller = Caller(g.caller.address, claims.subject, claims.scopes, claims.expires_at, own_user_id)
    if not granted:
        challenge = f'error="insufficient_scope", scope="{wanted[0]}"'
        raise refused("insufficient_scope", {"scopes": ", ".join(wanted)}, challenge=challenge)
    if is_customer and own_user_id is None:
        raise _invalid("wrong_subject")


def _claims(verifier: Verifier) -> Claims:
    scheme, _, token = header("Authorization", "").partition(" ")
    if scheme.lower() != "bearer":
        raise refused("token_required", challenge="")
    try:
        return verifier.verify(token.strip(" "))
    except InvalidToken as error:
        raise _invalid(str(error)) from error
    except KeysUnavailable:
        raise Problem("keys_unavailable") from None


def _invalid(reason: str) -> Problem:
    texts = REASONS[reason]
    challenge = f'error="invalid_token", error_description="{texts[1]}"'
    return refused("invalid_token", {"why": in_language(texts)}, challenge=challenge, reason=reason)


def _user_id(subject: str) -> int | None:
    # Neither 01 nor digits of other scripts, which int() accepts: one user has one subject.
    is_canonical = subject.isascii() and subject.isdecimal() and subject[0] != "0" and len(subject) <= 10
    return int(subject) if is_canonical and int(subject) <= MAX_ID else None


def refused(
    code: str, values: Mapping[str, str] | None = None, *, challenge: str | None = None, reason: str | None = None
) -> Problem:
    """The problem of a refused request, which is logged. `challenge`: what follows `Bearer` in WWW-Authenticate."""
    _log("access refused", code=code, **({"reason": reason} if reason else {}))
    headers = {} if challenge is None else {"WWW-Authenticate": f"Bearer {challenge}".rstrip()}
    return Problem(code, values or {}, headers=headers)


def _log_privileged(response: Response) -> Response:
    """Log what a caller who may change the orders of all users sent, and how it was answered."""
    known: Caller | None = g.get("caller")
    is_privileged = known and known.subject and known.own_user_id is None and response.status_code not in (401, 403)
    if is_privileged and request.method in ("POST", "PUT", "DELETE"):
        _log("privileged request", status=response.status_code)
    return response


def _log(event: str, **more: object) -> None:
    # That of a new order is in the context of the log.
    order = {name: value for name, value in (request.view_args or {}).items() if name == "order_id"}
    known = caller()
    audit.info(event, subject=known.subject, operation=request.endpoint, **order, address=known.address, **more)
