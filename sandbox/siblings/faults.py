"""Injected faults of a sibling service, to test the Order Service.

docs/siblings.md lists them. They are set at the start (MENU_FAULTS="delay=2,duplicate") and over HTTP (PUT /faults).
The service's own rows stay correct: they record each decision, and compensations are applied. A decision does not
change when the faults change. A delayed reply is published at its due time, also after a restart. A reply that `silent`
suppresses is never published; a repeated request gets a new reply.
"""

import itertools
import json
import os
import sqlite3
import time
import uuid
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from flask import Flask, request
from flask.typing import ResponseReturnValue
from werkzeug.exceptions import BadRequest

from sandbox.siblings.kit import Event, Service

#: Seconds by which `reorder` delays a reply: more than the time until the next one.
REORDER_SECONDS = 1.0
#: The longest `delay`, in seconds.
MAX_SECONDS = 86_400
#: Faults of publishing, which every sibling has. The others are faults of its decisions.
SENDING = ("silent", "delay", "duplicate", "reorder")


class Faults:
    """The faults of one service, off at first; `deciding` names its own. One thread sets them, others read them."""

    def __init__(self, deciding: Collection[str] = ()) -> None:
        self.known = [*deciding, *SENDING]
        self.active: Mapping[str, Any] = {}
        self._turns = itertools.count()

    def replace(self, wanted: object) -> None:
        """Set exactly these faults. Raises ValueError, and changes nothing, if one of them is invalid."""
        if not isinstance(wanted, dict):
            raise ValueError('faults must be a JSON object, such as {"delay": 2}')
        for name, value in wanted.items():
            if name not in self.known:
                raise ValueError(f"unknown fault {name}; known are {', '.join(self.known)}")
            if name == "delay" and value is not False:
                if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= MAX_SECONDS:
                    raise ValueError(f"delay must be a number of seconds up to {MAX_SECONDS}")
            elif not isinstance(value, bool):
                raise ValueError(f"{name} must be true or false")
        self.active = {name: value for name, value in wanted.items() if value is not False}

    def copies(self) -> Iterator[tuple[str, float]]:
        """The message id and the due time of each copy of one reply."""
        active = self.active
        if "silent" in active:
            return
        due_at = time.time() + active["delay"] if "delay" in active else 0.0
        if "reorder" in active and next(self._turns) % 2 == 0:
            due_at = max(due_at, time.time()) + REORDER_SECONDS
        message_id = str(uuid.uuid4())
        for _ in range(2 if "duplicate" in active else 1):
            yield message_id, due_at


def from_environment(name: str, deciding: Collection[str]) -> Faults:
    """The faults that the variable sets, such as delay=2,duplicate. Exits with its name if one of them is invalid."""
    parts = [part.strip().partition("=") for part in os.environ.get(name, "").split(",") if part.strip()]
    faults = Faults(deciding)
    try:
        faults.replace({fault: float(value) if sign else True for fault, sign, value in parts})
    except ValueError as error:
        raise SystemExit(f"{name}: {error}") from None
    return faults


class FaultyService(Service):
    """A service whose replies are subject to faults."""

    def __init__(self, faults: Faults, *service: Any) -> None:
        super().__init__(*service)
        self.faults = faults

    def enqueue(self, db: sqlite3.Connection, reply: Event, trace: Mapping[str, str] | None = None, *_: Any) -> None:
        for message_id, due_at in self.faults.copies():
            super().enqueue(db, reply, trace, message_id, due_at)


def add_routes(app: Flask, faults: Faults) -> None:
    @app.get("/faults")
    def show_faults() -> ResponseReturnValue:
        return {"active": dict(faults.active), "known": faults.known}

    @app.put("/faults")
    def replace_faults() -> ResponseReturnValue:
        try:
            faults.replace(json.loads(request.get_data()))
        except (ValueError, RecursionError) as error:
            raise BadRequest(str(error)) from None
        return show_faults()
