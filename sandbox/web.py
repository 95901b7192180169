"""The demo's HTTP client: JSON in and out, with nothing that has to be installed."""

import json
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any

#: Seconds for one answer: more than the 2 s that a POST may wait for the menu.
ANSWER_SECONDS = 10


class NoAnswer(Exception):
    """Nobody answers at the address, or not in JSON."""


@dataclass(frozen=True)
class Answer:
    status: int
    body: Any


def get(url: str) -> Answer:
    """GET; an answer with an error status is an answer too."""
    return _send(urllib.request.Request(url))  # noqa: S310


def post(url: str, body: object) -> Answer:
    """POST a JSON body; an answer with an error status is an answer too."""
    headers = {"content-type": "application/json"}
    return _send(urllib.request.Request(url, json.dumps(body).encode(), headers, method="POST"))  # noqa: S310


def _send(request: urllib.request.Request) -> Answer:
    try:
        try:
            with urllib.request.urlopen(request, timeout=ANSWER_SECONDS) as response:  # noqa: S310
                return Answer(response.status, json.loads(response.read()))
        except urllib.error.HTTPError as error:
            with error:
                return Answer(error.code, json.loads(error.read()))
    except (OSError, ValueError) as error:
        raise NoAnswer(f"{request.get_method()} {request.full_url}: {error}") from error
