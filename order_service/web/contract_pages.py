"""The contract over HTTP: the AsyncAPI document, the events' JSON Schemas, and a page to read them, all offline."""

import json
from typing import Any

from flask import Blueprint, Response, render_template

from order_service.contract import asyncapi, samples, topology
from order_service.contract import event_tables as event_pages
from order_service.contract.events import INCOMING, OUTGOING
from order_service.web.problems import Problem

pages = Blueprint("contract", __name__, template_folder="templates")


@pages.get("/asyncapi.json")
def asyncapi_json() -> Response:
    """The AsyncAPI 3 document."""
    return _json(asyncapi.document(), "application/json")


@pages.get("/schemas/<name>.json")
def schema(name: str) -> Response:
    """The JSON Schema of one event's data."""
    if name not in asyncapi.EVENTS:
        raise Problem("not_found")
    return _json(asyncapi.data_schema(name), "application/schema+json")


@pages.get("/asyncapi")
def asyncapi_page() -> str:
    """Every event with its fields and an example, and the queues."""
    groups = {"What we send": [*map(_shown, OUTGOING)], "What we take": [*map(_shown, INCOMING)]}
    return render_template("asyncapi.html", groups=groups, queues=topology.QUEUES, document=asyncapi.document())


def _shown(name: str) -> dict[str, Any]:
    model = asyncapi.EVENTS[name]
    example = samples.event(name, id="f3d1c2a1-5f0e-4b59-9d0c-2d3c6f5b7e10")
    return {
        "name": name,
        "routing_key": model.routing_key,
        "says": model.says,
        "answers": asyncapi.ANSWERS.get(name, ()),
        "fields": list(event_pages.fields(asyncapi.data_schema(name))),
        "example": json.dumps(example, indent=2, ensure_ascii=False),
    }


def _json(document: Any, content_type: str) -> Response:
    return Response(json.dumps(document, ensure_ascii=False, indent=2) + "\n", content_type=content_type)
