"""The documents of the API and of the events, and the web pages that show them, with all their files."""

import json
import mimetypes
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from flask import Response, render_template

from order_service.contract import asyncapi, event_tables, topology
from order_service.contract.events import EVENTS
from order_service.contract.schemas import data_schema
from order_service.web.endpoints import Api
from order_service.web.problems import Problem, prefers_english

_OWN_FILES = Path(__file__).parent / "docs"
_BOARD_FILES = Path(__file__).parent / "board"
_SWAGGER_UI = ("swagger-ui.css", "swagger-ui-bundle.js", "favicon-32x32.png")
#: What a page may load and do, and that no other site may embed it.
_POLICY = "default-src 'none'; img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
#: Swagger UI sets style attributes.
_SWAGGER_POLICY = _POLICY + "script-src 'self'; connect-src 'self'; style-src 'self' 'unsafe-inline'"
#: The board inserts texts only, never markup.
_BOARD_POLICY = (
    _POLICY + "script-src 'self'; connect-src 'self'; style-src 'self'; require-trusted-types-for 'script'; "
    "trusted-types 'none'"
)
#: How long a browser may cache the files, in seconds.
_MAX_AGE_SECONDS = 3600


def openapi_json(api: Api) -> Response:
    return Response(json.dumps(api.openapi_document(), ensure_ascii=False), content_type="application/json")


def openapi_page(_: Api) -> Response:
    return _page(_files()["index.html"], _SWAGGER_POLICY)


def redirect(_: Api, to: str) -> Response:
    """Redirect to a page. `to` is relative to the requested address, so a path prefix in front of it is kept."""
    return Response(status=302, headers={"Location": to})


def openapi_file(_: Api, name: str) -> Response:
    return _file(_files(), name, f"max-age={_MAX_AGE_SECONDS}")


def board_page(api: Api) -> Response:
    """The board of orders, without any order: it asks for a token if the API needs one."""
    auth, form = ("jwt" if api.settings.needs_tokens else "none"), ("" if api.settings.is_development else "hidden")
    page = _board_files()["index.html"].decode().replace("{lang}", "en" if prefers_english() else "id")
    response = _page(page.replace("{auth}", auth).replace("{form}", form), _BOARD_POLICY)
    response.headers.add("Vary", "Accept-Language")
    return response


def board_file(_: Api, name: str) -> Response:
    # A page must not run with the script of another version.
    return _file(_board_files(), name, "no-cache")


def asyncapi_json(_: Api) -> Response:
    return _json(asyncapi.document(), "application/json")


def asyncapi_page(_: Api) -> Response:
    """Every event with its fields and an example, and the queues."""
    page = render_template("asyncapi.html", tables=event_tables, topology=topology, document=asyncapi.document())
    return _page(page, _POLICY + "style-src 'self'")


def event_schema(_: Api, name: str) -> Response:
    if name not in EVENTS:
        raise Problem("not_found")
    return _json(data_schema(name), "application/schema+json")


def _page(text: bytes | str, policy: str) -> Response:
    return Response(text, mimetype="text/html", headers={"Content-Security-Policy": policy})


def _file(found: Mapping[str, bytes], name: str, caching: str) -> Response:
    if name not in found:
        raise Problem("not_found")
    return Response(found[name], mimetype=mimetypes.guess_type(name)[0], headers={"Cache-Control": caching})


@cache
def _files() -> dict[str, bytes]:
    paths = [*_OWN_FILES.iterdir(), *(files("flask_swagger_ui") / "dist" / name for name in _SWAGGER_UI)]
    return {path.name: path.read_bytes() for path in paths}


@cache
def _board_files() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in _BOARD_FILES.iterdir()}


def _json(document: Any, content_type: str) -> Response:
    return Response(json.dumps(document, ensure_ascii=False, indent=2) + "\n", content_type=content_type)
