"""The contract over HTTP: the AsyncAPI document, the events' JSON Schemas, and a page to read them, all offline."""

import json
from typing import Any

from flask import Blueprint, Response, render_template

from order_service.contract import asyncapi, event_tables, topology
from order_service.contract.events import EVENTS
from order_service.contract.schemas import data_schema
from order_service.web.problems import Problem

pages = Blueprint("contract", __name__, template_folder="templates")


@pages.get("/asyncapi.json")
def asyncapi_json() -> Response:
    """The AsyncAPI 3 document."""
    return _json(asyncapi.document(), "application/json")


@pages.get("/schemas/<name>.json")
def schema(name: str) -> Response:
    """The JSON Schema of one event's data."""
    if name not in EVENTS:
        raise Problem("not_found")
    return _json(data_schema(name), "application/schema+json")


@pages.get("/asyncapi")
def asyncapi_page() -> str:
    """Every event with its fields and an example, and the queues."""
    groups = event_tables.groups()
    return render_template("asyncapi.html", groups=groups, queues=topology.QUEUES, document=asyncapi.document())


def _json(document: Any, content_type: str) -> Response:
    return Response(json.dumps(document, ensure_ascii=False, indent=2) + "\n", content_type=content_type)
