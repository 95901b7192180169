"""GET /openapi.json, and GET /docs to read and try it: Swagger UI, whose files are all served from here."""

import json
import mimetypes
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from flask import Blueprint, Response

from order_service.web import openapi
from order_service.web.problems import Problem

pages = Blueprint("docs", __name__)
_OURS = Path(__file__).parent / "docs"
#: Swagger UI writes style attributes and has images as data.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; connect-src 'self'"
)
#: How long a browser keeps the files without asking again, in seconds.
_KEPT_SECONDS = 3600


@pages.get("/openapi.json")
def openapi_json() -> Response:
    """The OpenAPI document."""
    return Response(_document(), content_type="application/json")


@pages.get("/docs")
def page() -> Response:
    """The document as a page."""
    return Response(_files()["index.html"], mimetype="text/html", headers={"Content-Security-Policy": _POLICY})


@pages.get("/docs/<name>")
def file(name: str) -> Response:
    """One of the files that the page asks for."""
    if name not in _files():
        raise Problem("not_found")
    headers = {"Cache-Control": f"max-age={_KEPT_SECONDS}"}
    return Response(_files()[name], mimetype=mimetypes.guess_type(name)[0], headers=headers)


@cache
def _document() -> str:
    return json.dumps(openapi.document(), ensure_ascii=False)


@cache
def _files() -> dict[str, bytes]:
    # The package that brings Swagger UI is found, not imported: its Flask extension is not wanted.
    spec = find_spec("flask_openapi_swagger")
    [package] = (spec and spec.submodule_search_locations) or [""]
    theirs = Path(package) / "templates" / "swagger"
    names = ("css/swagger-ui.css", "js/swagger-ui-bundle.js", "images/swagger.svg")
    paths = [*_OURS.iterdir(), *(theirs / name for name in names)]
    return {path.name: path.read_bytes() for path in paths}
