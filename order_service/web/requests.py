"""The request bodies, queries and headers: read, validated, and rejected with a correction for each field."""

import base64
import codecs
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from json import JSONDecodeError, JSONDecoder
from typing import Annotated, Any, Literal, TypeVar
from urllib.request import parse_http_list

import structlog
from flask import request
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, WithJsonSchema
from pydantic_core import ErrorDetails
from werkzeug.exceptions import HTTPException

from order_service.config import MAX_WAIT_SECONDS
from order_service.contract.events import Amount, Id, exact_decimal
from order_service.process import first_line
from order_service.web.headers import header
from order_service.web.problems import FieldError, Problem, Texts, in_language
from order_service.web.responses import Status

log = structlog.get_logger(__name__)
Row = TypeVar("Row")
Model = TypeVar("Model", bound=BaseModel)
#: The longest request body, in bytes; an order of a hundred dishes needs a tenth of it.
MAX_REQUEST_BYTES = 64 * 1024
#: The most wrong fields that a response names.
MAX_ERRORS = 20
#: The largest id of an order or of a history entry, which both databases can hold.
MAX_POSITION = 2**63 - 1
#: Visible ASCII characters except the comma, with which a server joins a repeated header (RFC 9110, section 5.3):
#: in quotation marks, as a structured field's string (RFC 8941, section 3.3.3), or bare.
IDEMPOTENCY_KEY = r'^("([!#-+.-\[\]-~-]|\\["\\]){1,255}"|[!#-+.-~-][!-+.-~-]{0,254})$'
_WAIT = re.compile(r'([0-9]{1,100})|"([0-9]{1,100})"')


class OrderRequest(BaseModel):
    """POST /orders."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    user_id: Id
    menu_ids: Annotated[list[Id], Field(min_length=1, max_length=100, description="Repeat an id to order more of it.")]
    expected_total: Annotated[
        Amount | None,
        Field(description="The order fails with price_changed, before any payment, if the menu's total differs."),
    ] = None


class PaymentUpdate(BaseModel):
    """PUT /orders/{id}/payment."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    payment_status: Literal["pending", "paid", "failed"]


def _digits(value: object) -> object:
    # int() also accepts " 1", "+1", "1_0" and digits of other scripts.
    return int(value) if isinstance(value, str) and re.fullmatch("[0-9]{1,10}", value) else value


def _position(value: object) -> object:
    """The id of the last row of the previous page. It is encoded so that clients do not rely on its meaning."""
    try:
        return int(base64.b32decode(str(value)).removeprefix(b"after:"))
    except ValueError:
        return value


Digits = BeforeValidator(_digits)


class PageQuery(BaseModel):
    """The query of a list in pages, here GET /orders/{id}/history."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    limit: Annotated[int, Field(strict=True, ge=1, le=100), Digits, Field(description="The entries per page.")] = 20
    cursor: Annotated[
        Annotated[int, Field(strict=True, ge=0, le=MAX_POSITION)] | None,
        BeforeValidator(_position),
        Field(description="The next_cursor of the previous page."),
        WithJsonSchema({"type": "string", "format": "cursor"}),
    ] = None


class OrderQuery(PageQuery):
    """GET /orders."""

    user_id: Annotated[Id | None, Digits, Field(description="Only this user's orders.")] = None
    status: Annotated[Status | None, Field(description="Only orders of this status.")] = None


class BoardQuery(PageQuery):
    """GET /board/orders."""

    column: Literal["pending", "paid", "ended"] = "pending"


def split_page(found: Sequence[Row], limit: int, position: Callable[[Row], int]) -> tuple[Sequence[Row], str | None]:
    """The rows of a page, and the next_cursor if more rows than `limit` were found."""
    page, more = found[:limit], found[limit:]
    return page, cursor_after(position(page[-1]) if more else None)


def cursor_after(position: int | None) -> str | None:
    """The next_cursor of a page whose last row is followed by others; None without a position."""
    return None if position is None else base64.b32encode(b"after:%d" % position).decode()


_ID: Texts = ("harus bilangan bulat dari 1 sampai 2147483647", "must be an integer from 1 to 2147483647")
#: The rule of each field, and of the elements of a list, in Indonesian and in English.
_REMEDIES: Mapping[str, Texts] = {
    "user_id": _ID,
    "menu_ids": ("harus daftar berisi 1 sampai 100 id menu", "must be a list of 1 to 100 menu ids"),
    "menu_ids[]": _ID,
    "expected_total": (
        "harus angka dari 0 sampai di bawah 100000000000, paling banyak 4 desimal",
        "must be a number from 0 to below 100000000000 with at most 4 decimals",
    ),
    "payment_status": ("harus pending, paid, atau failed", "must be pending, paid or failed"),
    "status": ("harus pending, paid, failed, atau cancelled", "must be pending, paid, failed or cancelled"),
    "column": ("harus pending, paid, atau ended", "must be pending, paid or ended"),
    "limit": ("harus bilangan bulat dari 1 sampai 100", "must be an integer from 1 to 100"),
    "cursor": ("harus next_cursor dari halaman sebelumnya", "must be the next_cursor of the previous page"),
    "Idempotency-Key": (
        "harus satu kali saja, 1 sampai 255 karakter ASCII yang terlihat, tanpa koma",
        "must be sent once, as 1 to 255 visible ASCII characters without a comma",
    ),
    "body": ("harus objek JSON", "must be a JSON object"),
}
_UNKNOWN: Texts = ("tidak dikenal; hapus dari permintaan", "is not known; leave it out")
_MISSING: Texts = ("tidak ada; {}", "is missing; it {}")
_REPEATED: Texts = ("harus satu kali saja", "must be sent once")


def json_body() -> dict[str, Any]:
    """The request's JSON object. Raises Problem: 415, 413, 400 or 422."""
    if request.mimetype != "application/json":
        raise Problem("unsupported_media_type")
    if header("Content-Encoding", "identity").strip().lower() != "identity":
        raise Problem("unsupported_content_encoding", headers={"Accept-Encoding": "identity"})
    data = received_body()
    if len(data) > MAX_REQUEST_BYTES:
        raise Problem("body_too_large")
    try:
        # RFC 8259 allows UTF-8 only, and no NaN. Fractions become exact decimals.
        body = _DECODER.decode(data.decode())
    except (ValueError, RecursionError) as error:
        raise Problem("malformed_json", {"detail": in_language(_syntax_error(data, error))}) from None
    if not isinstance(body, dict):
        raise _invalid({"body": _REMEDIES["body"]})
    # JSON can contain a lone surrogate, which neither UTF-8 nor the models accept: such a field name is unknown.
    return {_encodable(name): value for name, value in body.items()}


def _object(members: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object. Raises Problem 422 for a repeated name: readers differ in which value they take (RFC 8259)."""
    found = dict(members)
    if len(found) < len(members):
        repeated = [name for name, count in Counter(name for name, _ in members).items() if count > 1]
        raise _invalid({_encodable(name)[:100]: _REPEATED for name in repeated[:MAX_ERRORS]})
    return found


_DECODER = JSONDecoder(parse_float=exact_decimal, parse_constant=exact_decimal, object_pairs_hook=_object)


def _encodable(name: str) -> str:
    return name if name.isascii() else name.encode(errors="backslashreplace").decode()


def _syntax_error(data: bytes, error: Exception) -> Texts:
    if data.startswith(codecs.BOM_UTF8):
        return "hapus byte order mark di awalnya", "leave out the byte order mark at its start"
    match error:
        case UnicodeDecodeError():
            return f"byte ke-{error.start + 1} bukan UTF-8", f"byte {error.start + 1} is not UTF-8"
        case JSONDecodeError(lineno=line, colno=column):
            return f"salah pada baris {line} kolom {column}", str(error)
        case RecursionError():
            return "susunannya terlalu dalam", "it is nested too deeply"
    return "ada angka yang tidak dapat dibaca", "a number in it cannot be read"


def received_body() -> bytes:
    """The raw body. Raises Problem 400 if it ends early or its chunks are malformed."""
    try:
        data = request.get_data()
    except HTTPException:
        raise
    except Exception as error:
        # The stream and its exceptions come from the server: gunicorn raises its own Exception for a malformed chunk.
        log.info("cannot read the request body", error=first_line(error)[:200])
        raise Problem("bad_request") from error
    # gunicorn ends the stream without an error when the client disconnects.
    if len(data) < (request.content_length or 0):
        log.info("the request body is incomplete", received_bytes=len(data), announced_bytes=request.content_length)
        raise Problem("bad_request")
    return data


def parse(model: type[Model], body: dict[str, Any]) -> Model:
    """The body as a model. Raises Problem 422 naming each field and its remedy."""
    try:
        return model.model_validate(body)
    except ValidationError as error:
        parts = error.errors(include_url=False, include_context=False, include_input=False)[:MAX_ERRORS]
        raise _invalid({".".join(map(str, part["loc"]))[:100]: _remedy(part) for part in parts}) from None


def _remedy(error: ErrorDetails) -> Texts:
    if error["type"] == "extra_forbidden":
        return _UNKNOWN
    name, *inside = error["loc"]
    rule = _REMEDIES[f"{name}[]" if inside else str(name)]
    return _missing(rule) if error["type"] == "missing" else rule


def _missing(rule: Texts) -> Texts:
    return _MISSING[0].format(rule[0]), _MISSING[1].format(rule[1])


def parse_payment(body: dict[str, Any]) -> PaymentUpdate:
    """The body of PUT payment. Raises Problem 400 for another status, as the original API specification requires."""
    if body.get("payment_status") not in ("pending", "paid", "failed"):
        rule = _REMEDIES["payment_status"]
        remedy = rule if "payment_status" in body else _missing(rule)
        raise _invalid({"payment_status": remedy}, code="invalid_payment_status")
    return parse(PaymentUpdate, body)


def idempotency_key() -> str | None:
    """The Idempotency-Key of the request, if there is one, without its quotation marks. Raises Problem 422.

    https://datatracker.ietf.org/doc/draft-ietf-httpapi-idempotency-key-header/ makes it a structured field's string.
    """
    key = header("Idempotency-Key", None)
    if key is None:
        return None
    if not re.fullmatch(IDEMPOTENCY_KEY, key):
        raise _invalid({"Idempotency-Key": _REMEDIES["Idempotency-Key"]})
    return re.sub(r"\\(.)", r"\1", key[1:-1]) if key.startswith('"') else key


def preferred_wait(preferences: str, default: float) -> tuple[float, dict[str, str]]:
    """Return how many seconds to wait for the menu, and the header that says which preferences apply (RFC 7240).

    Unknown preferences are ignored, as the RFC requires, and so is a repeated one after the first.
    """
    given: dict[str, str] = {}
    for preference in parse_http_list(preferences):
        name, _, value = preference.partition(";")[0].partition("=")
        given.setdefault(name.strip().lower(), value.strip())
    applied = ["respond-async"] if "respond-async" in given else []
    seconds: float = 0 if applied else default
    if wait := _WAIT.fullmatch(given.get("wait", "")):
        seconds = min(int(wait[1] or wait[2]), MAX_WAIT_SECONDS)
        applied.append(f"wait={seconds}")
    return seconds, {"Preference-Applied": ", ".join(applied)} if applied else {}


def query(model: type[Model]) -> Model:
    """The query as a model. Raises Problem 422 naming each invalid parameter."""
    repeated = [name[:100] for name, values in request.args.lists() if len(values) > 1]
    if repeated:
        raise _invalid(dict.fromkeys(repeated, _REPEATED))
    return parse(model, request.args.to_dict())


def _invalid(remedies: Mapping[str, Texts], code: str = "invalid_request") -> Problem:
    errors = [FieldError(field=name, message=in_language(remedy)) for name, remedy in remedies.items()]
    return Problem(code, {"detail": "; ".join(f"{error.field} {error.message}" for error in errors)}, errors=errors)
