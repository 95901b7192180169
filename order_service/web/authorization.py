"""Who may send which request: tokens (RFC 6750) and scopes."""

from collections.abc import Mapping, Sequence
from functools import partial

from flask import Flask, g, request

from order_service.contract.events import MAX_ID
from order_service.web.audit import refused
from order_service.web.caller import Caller, client_address
from order_service.web.headers import header
from order_service.web.problems import Problem, Texts, in_language
from order_service.web.tokens import Claims, InvalidToken, KeysUnavailable, Verifier

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


def install(app: Flask, verifier: Verifier | None, scopes: Mapping[str, Scopes]) -> None:
    """Check every request against the scopes of its endpoint; `verifier`: None accepts every request.

    Raises ValueError if an endpoint has no scopes declared.
    """
    if undeclared := {rule.endpoint for rule in app.url_map.iter_rules()} - scopes.keys():
        raise ValueError(f"no scopes are declared for {', '.join(sorted(undeclared))}")
    app.before_request(partial(_authorize, verifier, scopes))


def _authorize(verifier: Verifier | None, scopes: Mapping[str, Scopes]) -> None:
    g.caller = Caller(client_address())
    if verifier is None:
        return
    if "access_token" in request.args:
        # Addresses are logged and kept (RFC 9700, section 4.3.2), so the token is to be considered known to others.
        raise _challenged("token_in_query", 'error="invalid_request"')
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
        raise _challenged("insufficient_scope", challenge, {"scopes": ", ".join(wanted)})
    if is_customer and own_user_id is None:
        raise _invalid("wrong_subject")


def _claims(verifier: Verifier) -> Claims:
    scheme, _, token = header("Authorization", "").partition(" ")
    if scheme.lower() != "bearer":
        raise _challenged("token_required", "")
    try:
        return verifier.verify(token.strip(" "))
    except InvalidToken as error:
        raise _invalid(str(error)) from error
    except KeysUnavailable:
        raise Problem("keys_unavailable") from None


def _invalid(reason: str) -> Problem:
    texts = REASONS[reason]
    challenge = f'error="invalid_token", error_description="{texts[1]}"'
    return _challenged("invalid_token", challenge, {"why": in_language(texts)}, reason)


def _challenged(
    code: str, challenge: str, values: Mapping[str, object] | None = None, reason: str | None = None
) -> Problem:
    """The problem of a refused request; `challenge` is what follows `Bearer` in WWW-Authenticate."""
    headers = {"WWW-Authenticate": f"Bearer {challenge}".rstrip()}
    return refused(code, values, headers=headers, reason=reason)


def _user_id(subject: str) -> int | None:
    # Neither 01 nor digits of other scripts, which int() accepts: one user has one subject.
    is_canonical = subject.isascii() and subject.isdecimal() and subject[0] != "0" and len(subject) <= 10
    return int(subject) if is_canonical and int(subject) <= MAX_ID else None
