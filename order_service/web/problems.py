"""Errors as RFC 9457 problem details: a stable English `code` for programs, and a `message` for people.

https://www.rfc-editor.org/rfc/rfc9457
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import sqlalchemy as sa
import structlog
from flask import Flask, Response, request
from pydantic import BaseModel, ConfigDict, Field
from pydantic.json_schema import SkipJsonSchema
from werkzeug.exceptions import HTTPException

from order_service.contract.events import Id
from order_service.process import first_line
from order_service.storage.errors import OutcomeUnknown, is_damaged
from order_service.storage.schema import NotMigrated
from order_service.web.headers import header

log = structlog.get_logger(__name__)
#: A text in Indonesian and in English.
Texts = tuple[str, str]


@dataclass(frozen=True)
class Kind:
    """One kind of problem: its HTTP status, and its message in Indonesian and in English."""

    status: int
    indonesian: str
    english: str


KINDS = {
    "order_not_found": Kind(404, "Pemesanan tidak ditemukan.", "The order was not found."),
    "invalid_payment_status": Kind(400, "Status pembayaran tidak valid.", "The payment status is not valid."),
    "menu_not_found": Kind(404, "Menu item {menu_id} tidak ditemukan.", "Menu item {menu_id} was not found."),
    "out_of_stock": Kind(400, "Menu item {menu_id} kehabisan stok.", "Menu item {menu_id} is out of stock."),
    "price_changed": Kind(
        409,
        "Total harga berubah: seharusnya {expected}, sekarang {total}.",
        "The total price has changed: expected {expected}, now {total}.",
    ),
    "user_not_found": Kind(404, "Pengguna tidak ditemukan.", "The user was not found."),
    "user_service_unavailable": Kind(
        503, "User Service tidak tersedia; coba lagi nanti.", "The User Service is unavailable; try again later."
    ),
    "database_unavailable": Kind(
        503, "Basis data tidak tersedia; coba lagi nanti.", "The database is unavailable; try again later."
    ),
    "outcome_unknown": Kind(
        503,
        "Tidak diketahui apakah permintaan ini tercatat; ulangi dengan Idempotency-Key yang sama.",
        "It is unknown whether the request was recorded; repeat it with the same Idempotency-Key.",
    ),
    "order_paid": Kind(409, "Pesanan sudah dibayar.", "The order is already paid."),
    "order_failed": Kind(409, "Pesanan sudah gagal. {why}", "The order has already failed. {why}"),
    "order_cancelled": Kind(409, "Pesanan sudah dibatalkan.", "The order is already cancelled."),
    "invalid_request": Kind(422, "Permintaan tidak valid: {detail}.", "The request is not valid: {detail}."),
    "malformed_json": Kind(400, "Isi permintaan bukan JSON: {detail}.", "The body is not JSON: {detail}."),
    "unsupported_media_type": Kind(415, "Kirim Content-Type application/json.", "Send Content-Type: application/json."),
    "unsupported_content_encoding": Kind(
        415, "Kirim isi permintaan tanpa Content-Encoding.", "Send the body without a Content-Encoding."
    ),
    "body_too_large": Kind(413, "Isi permintaan melebihi 64 KiB.", "The body is larger than 64 KiB."),
    "too_many_streams": Kind(
        503, "Terlalu banyak aliran terbuka; coba lagi nanti.", "Too many open streams; try again later."
    ),
    "rate_limited": Kind(429, "Terlalu banyak permintaan; coba lagi nanti.", "Too many requests; try again later."),
    "too_many_pending": Kind(
        429,
        "Pengguna ini sudah memiliki {limit} pesanan yang belum selesai; bayar atau batalkan dahulu.",
        "This user already has {limit} pending orders; pay or cancel some first.",
    ),
    "too_many_own_streams": Kind(
        429,
        "Terlalu banyak aliran Anda yang terbuka; tutup salah satu.",
        "Too many of your streams are open; close one of them.",
    ),
    "idempotency_key_reused": Kind(
        422,
        "Idempotency-Key ini sudah dipakai untuk isi permintaan lain.",
        "This Idempotency-Key was already used with another body.",
    ),
    "token_required": Kind(
        401, "Kirim token sebagai Authorization: Bearer.", "Send an access token as Authorization: Bearer."
    ),
    "invalid_token": Kind(401, "Token tidak diterima: {why}.", "The token is not accepted: {why}."),
    "insufficient_scope": Kind(
        403,
        "Token tidak memiliki cakupan (scope) yang diperlukan: {scopes}.",
        "The token has not the scope that is needed: {scopes}.",
    ),
    "not_your_user": Kind(
        403, "user_id harus pengguna pemilik token ini.", "user_id must be the user to whom the token belongs."
    ),
    "token_in_query": Kind(
        400,
        "Token di alamat tidak diterima; kirim token baru sebagai Authorization: Bearer.",
        "A token in the address is not accepted; send a new one as Authorization: Bearer.",
    ),
    "keys_unavailable": Kind(
        503, "Penerbit token tidak tersedia; coba lagi nanti.", "The issuer of tokens is unavailable; try again later."
    ),
    "not_found": Kind(404, "Alamat tidak ditemukan.", "The address was not found."),
    "method_not_allowed": Kind(405, "Alamat ini tidak menerima {method}.", "This address does not support {method}."),
    "host_not_accepted": Kind(
        400,
        "Nama pada Host tidak diterima; operator mendaftarkan nama yang diterima di ORDER_HOSTS.",
        "The name in Host is not accepted; the operator lists the accepted names in ORDER_HOSTS.",
    ),
    "unsupported_transfer_encoding": Kind(
        501, "Transfer-Encoding hanya boleh chunked.", "The only supported Transfer-Encoding is chunked."
    ),
    "uri_too_long": Kind(414, "Alamat permintaan terlalu panjang.", "The request target is too long."),
    "header_fields_too_large": Kind(431, "Header permintaan terlalu besar.", "The header fields are too large."),
    "expectation_failed": Kind(417, "Expect hanya boleh 100-continue.", "The only supported Expect is 100-continue."),
    "bad_request": Kind(400, "Permintaan tidak dapat dibaca.", "The request cannot be read."),
    "internal_error": Kind(500, "Terjadi kesalahan di pihak kami; coba lagi.", "An internal error occurred; retry."),
}
_BY_STATUS = {404: "not_found", 405: "method_not_allowed", 413: "body_too_large", 415: "unsupported_media_type"}
#: The Retry-After of every 503, in seconds.
RETRY_AFTER_SECONDS = 5


class FieldError(BaseModel):
    """An invalid field and its remedy."""

    model_config = ConfigDict(frozen=True)
    field: str
    message: str


class ProblemDetails(BaseModel):
    """An RFC 9457 problem; `code` is for programs, `message` for people."""

    model_config = ConfigDict(frozen=True)
    type: Annotated[str, Field(pattern="^urn:restaurant:problem:[a-z_]+$")]
    title: str
    status: int
    # Not an enum: a generated client must be able to read a problem whose code is newer than itself.
    code: Annotated[str, Field(description=f"Known values: {', '.join(sorted(KINDS))}. Others may be added.")]
    message: str
    detail: Annotated[str, Field(description="The same text as `message`, under the name of RFC 9457.")]
    order_id: Annotated[Id | SkipJsonSchema[None], Field(description="The order concerned, if there is one.")] = None
    reason: Annotated[
        str | SkipJsonSchema[None], Field(description="Why the order ended: the reason of a failed one, or cancelled.")
    ] = None
    errors: Annotated[
        Sequence[FieldError] | SkipJsonSchema[None], Field(description="Each invalid field, with its remedy.")
    ] = None


@dataclass
class Problem(Exception):
    """Raise to send this problem as the response. `values` fill the placeholders of the kind's messages."""

    code: str
    values: Mapping[str, Any] = field(default_factory=dict)
    order_id: int | None = None
    errors: Sequence[FieldError] | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    reason: str | None = None

    def details(self, *, english: bool) -> dict[str, Any]:
        kind = KINDS[self.code]
        message = (kind.english if english else kind.indonesian).format(**self.values)
        details = ProblemDetails(
            type=f"urn:restaurant:problem:{self.code}",
            title=self.code.replace("_", " ").capitalize(),
            status=kind.status,
            code=self.code,
            message=message,
            detail=message,
            order_id=self.order_id,
            reason=self.reason,
            errors=self.errors,
        )
        return details.model_dump(exclude_none=True)


def prefers_english() -> bool:
    """Whether the client prefers English to Indonesian, the default."""
    if not header("Accept-Language", ""):
        return False
    # q=0 means "not acceptable".
    languages = (tag.lower().split("-")[0] for tag, quality in request.accept_languages if quality > 0)
    return next((language for language in languages if language in ("id", "en")), "id") == "en"


def in_language(texts: Texts) -> str:
    """The text in the client's language."""
    return texts[prefers_english()]


def respond(problem: Problem) -> Response:
    """The problem as a response in the client's language; for an EventSource, a 429 or 503 becomes an empty stream."""
    if KINDS[problem.code].status in (429, 503) and _is_event_source():
        # After any other response it would never reconnect; its browser shows it neither the body nor the headers.
        # https://html.spec.whatwg.org/multipage/server-sent-events.html#sse-processing-model
        return Response(f"retry: {RETRY_AFTER_SECONDS * 1000}\n\n", content_type="text/event-stream")
    text, status = json.dumps(problem.details(english=prefers_english())), KINDS[problem.code].status
    response = Response(text, status, content_type="application/problem+json")
    response.headers.update({**problem.headers, "Vary": "Accept-Language"})
    if status == 503:
        response.headers["Retry-After"] = str(RETRY_AFTER_SECONDS)
    return response


def _is_event_source() -> bool:
    return request.endpoint == "streamOrder" and header("Accept", "").strip() == "text/event-stream"


def install(app: Flask) -> None:
    """Respond to every error of the app with a problem, including unknown routes and unexpected exceptions."""
    app.register_error_handler(Problem, respond)
    app.register_error_handler(HTTPException, _http_error)
    for unavailable in (
        # PostgreSQL reports a terminated idle transaction as an internal error.
        sa.exc.OperationalError, sa.exc.InternalError, sa.exc.InterfaceError, sa.exc.TimeoutError, NotMigrated,
    ):  # fmt: skip
        app.register_error_handler(unavailable, _database_unavailable)
    app.register_error_handler(OutcomeUnknown, _outcome_unknown)
    app.register_error_handler(Exception, _internal_error)


def _http_error(error: HTTPException) -> Response:
    status = error.code or 500
    code = _BY_STATUS.get(status, "internal_error" if status >= 500 else "bad_request")
    response = respond(Problem(code, {"method": request.method}))
    response.headers.extend((name, value) for name, value in error.get_headers() if name == "Allow")
    return response


def _database_unavailable(error: Exception) -> Response:
    if is_damaged(error):  # A retry would not help.
        return _internal_error(error)
    log.warning("the database is unavailable", path=request.path, error=first_line(error))
    return respond(Problem("database_unavailable"))


def _outcome_unknown(error: Exception) -> Response:
    log.warning("the outcome of a transaction is unknown", path=request.path, error=first_line(error))
    return respond(Problem("outcome_unknown"))


def _internal_error(error: Exception) -> Response:
    log.error("unexpected error while handling a request", path=request.path, exc_info=error)
    return respond(Problem("internal_error"))
