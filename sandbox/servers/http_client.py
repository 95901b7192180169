"""A JSON client without dependencies, for the demo and RabbitMQ's management API."""

import json
import urllib.error
import urllib.request
from base64 import b64encode
from dataclasses import dataclass
from typing import Any

#: Seconds for one response: more than the 2 s that POST /orders may wait for the menu.
RESPONSE_SECONDS = 10


class NoResponse(Exception):
    """The address does not respond, or not with JSON."""


@dataclass(frozen=True)
class Response:
    status: int
    body: Any


def call(method: str, url: str, body: object = None, *, login: str = "") -> Response:
    """One request, with `login` (user:password) as basic authentication. An error status is a response too."""
    headers = {"content-type": "application/json"}
    if login:
        headers["authorization"] = "Basic " + b64encode(login.encode()).decode()
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, headers, method=method)  # noqa: S310
    try:
        try:
            response = urllib.request.urlopen(request, timeout=RESPONSE_SECONDS)  # noqa: S310
        except urllib.error.HTTPError as error:
            response = error
        with response:
            return Response(response.status, json.loads(response.read() or "null"))
    except (OSError, ValueError) as error:
        raise NoResponse(f"{method} {url}: {error}") from error
