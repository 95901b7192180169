"""A JSON client without dependencies, for the demo and RabbitMQ's management API."""

import json
import urllib.error
import urllib.request
from base64 import b64encode
from typing import Any

#: Without the environment's proxies, which do not reach this machine's own ports.
_open = urllib.request.build_opener(urllib.request.ProxyHandler({})).open
#: Seconds for one response: more than the 2 s that POST /orders may wait for the menu.
RESPONSE_SECONDS = 10


class RequestFailed(Exception):
    """There was no response, or one with an error status or without JSON."""


def call(method: str, url: str, body: object = None, *, login: str = "") -> Any:
    """The JSON of the response. `login` (user:password) is sent as basic authentication. Raises RequestFailed."""
    headers = {"content-type": "application/json"}
    if login:
        headers["authorization"] = "Basic " + b64encode(login.encode()).decode()
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, headers, method=method)  # noqa: S310
    try:
        with _open(request, timeout=RESPONSE_SECONDS) as response:
            return json.loads(response.read() or "null")
    except urllib.error.HTTPError as error:
        with error:
            text = error.read().decode(errors="replace")
        raise RequestFailed(f"{method} {url}: {error.code} {text}") from error
    except (OSError, ValueError) as error:
        raise RequestFailed(f"{method} {url}: {error}") from error
