"""A text of any length, in any field of a message, is read in at most 50 ms of CPU."""

import copy
import json
import time
from contextlib import suppress
from typing import Any

import pytest

from order_service.contract import samples
from order_service.contract.envelope import MAX_BODY_BYTES, Delivery, Rejection, read
from order_service.contract.events import INCOMING

LIMIT_SECONDS = 0.05
#: What makes a backtracking pattern slow: repetitions that almost match, up to the largest body.
TEXTS = {
    "version": "/" + ".1" * 125_000 + "x",
    "separators": "/" * 250_000,
    "digits": "1" * 250_000,
    "letters": "v" * 250_000,
    "spaces": " " * 250_000,
    "quotes": "'" * 125_000,
    "escapes": "\\" * 125_000,
    "surrogates": "\ud800" * 40_000,
}
ATTRIBUTES = ["specversion", "id", "source", "type", "subject", "time", "datacontenttype", "dataschema", "traceparent"]
FIELDS = sorted({f"data.{name}" for model in INCOMING.values() for name in model.model_fields} | {"data.items.name"})


def seconds_to_read(delivery: Delivery) -> float:
    """The CPU seconds of one read: the least of three, as a garbage collection can fall into one."""
    seconds = []
    for _ in range(3):
        began = time.thread_time()
        with suppress(Rejection):
            read(delivery)
        seconds.append(time.thread_time() - began)
    return min(seconds)


def with_text(event_type: str, path: str, text: str) -> bytes:
    event: dict[str, Any] = copy.deepcopy(samples.event(event_type))
    *parents, name = path.split(".")
    place: Any = event
    for parent in parents:
        place = place[parent][0] if parent == "items" else place[parent]
    place[name] = text
    return json.dumps(event).encode()[:MAX_BODY_BYTES]


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
@pytest.mark.parametrize("path", [*ATTRIBUTES, *FIELDS])
def test_a_long_text_in_a_field_is_read_in_time(path: str, text: str) -> None:
    event_type = next(
        (name for name, model in INCOMING.items() if path.split(".")[-1] in model.model_fields), "MenuReserved"
    )

    assert (
        seconds_to_read(Delivery("order-service.menu", "menu.reserved", with_text(event_type, path, text)))
        < LIMIT_SECONDS
    )


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
@pytest.mark.parametrize("name", ["type", "message_id", "correlation_id", "app_id", "content_type"])
def test_a_long_text_in_a_property_is_read_in_time(name: str, text: str) -> None:
    body = json.dumps(samples.event("MenuReserved")["data"]).encode()

    assert seconds_to_read(Delivery("order-service.menu", text, body, {name: text})) < LIMIT_SECONDS
