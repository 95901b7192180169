"""Faults that a sibling shows on demand, to see how the Order Service deals with them.

docs/siblings.md lists them. They are set at the start (MENU_FAULTS="delay=2,duplicate") and over HTTP (PUT /faults).
The service's own rows stay right: they hold what was decided and taken, and what is asked back is given back. An order
once reserved, rejected or paid stays so when the faults change. A delayed answer is published at its time, also after a
restart; an answer withheld by `silent` is never published, but a repeated request is answered again.
"""

import itertools
import os
import sqlite3
import time
import uuid
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from flask import Flask, request
from flask.typing import ResponseReturnValue
from werkzeug.exceptions import BadRequest

from sandbox.siblings.http import parse_json
from sandbox.siblings.kit import Handler, Service

#: How long `reorder` holds an answer back, in seconds: longer than the time until the next one.
REORDER_SECONDS = 1.0
#: The longest `delay`, in seconds.
MAX_SECONDS = 86_400
#: Faults in what is sent, which every sibling has. The others are faults in what is decided.
SENDING = ("silent", "delay", "duplicate", "reorder")


class UnknownFault(ValueError):
    """A fault that this service does not have, or an impossible value of one."""


class Faults:
    """The faults of one service, off at first. One thread sets them, others read them."""

    def __init__(self, deciding: Collection[str] = (), text: str = "") -> None:
        """`deciding` names the service's own faults; `text` sets faults as the environment does."""
        self.known = [*deciding, *SENDING]
        self.active: Mapping[str, Any] = {}
        self._turns = itertools.count()
        pairs = [part.strip().partition("=") for part in text.split(",") if part.strip()]
        self.replace({name: _seconds(value) if sign else True for name, sign, value in pairs})

    def replace(self, wanted: object) -> None:
        """Have these faults and no others. Raises UnknownFault and changes nothing if one of them is impossible."""
        if not isinstance(wanted, dict):
            raise UnknownFault('faults must be a JSON object, such as {"delay": 2}')
        for name, value in wanted.items():
            if name not in self.known:
                raise UnknownFault(f"unknown fault {name}; known are {', '.join(self.known)}")
            if not _is_possible(name, value):
                must = f"a number of seconds up to {MAX_SECONDS}" if name == "delay" else "true or false"
                raise UnknownFault(f"{name} must be {must}")
        self.active = {
            name: value if value is True else float(value) for name, value in wanted.items() if value is not False
        }

    def copies(self) -> Iterator[tuple[str, float]]:
        """The message id and the due time of each copy of one answer."""
        active = self.active
        if "silent" in active:
            return
        due_at = time.time() + active["delay"] if "delay" in active else 0.0
        if "reorder" in active and next(self._turns) % 2 == 0:
            due_at = max(due_at, time.time()) + REORDER_SECONDS
        message_id = str(uuid.uuid4())
        for _ in range(2 if "duplicate" in active else 1):
            yield message_id, due_at


def _is_possible(name: str, value: object) -> bool:
    if isinstance(value, bool):
        return name != "delay" or not value
    return name == "delay" and isinstance(value, int | float) and 0 < value <= MAX_SECONDS


def _seconds(text: str) -> object:
    """The number after `delay=`, or the text itself, which `replace` then refuses with the name of the fault."""
    try:
        return float(text)
    except ValueError:
        return text


def from_environment(name: str, deciding: Collection[str]) -> Faults:
    """The faults that the variable sets. Exits with the variable's name if it sets impossible ones."""
    try:
        return Faults(deciding, os.environ.get(name, ""))
    except UnknownFault as error:
        raise SystemExit(f"{name}: {error}") from None


class FaultyService(Service):
    """A service that publishes its answers as its faults say."""

    def __init__(
        self, name: str, database: Path, schema: str, handlers: Mapping[str, Handler], *, faults: Faults
    ) -> None:
        super().__init__(name, database, schema, handlers)
        self.faults = faults

    def enqueue(self, db: sqlite3.Connection, event_type: str, data: dict[str, Any], **more: Any) -> None:
        for message_id, due_at in self.faults.copies():
            super().enqueue(db, event_type, data, **more | {"message_id": message_id, "due_at": due_at})


def add_routes(app: Flask, faults: Faults) -> None:
    """GET and PUT /faults."""

    @app.get("/faults")
    def show_faults() -> ResponseReturnValue:
        return {"active": dict(faults.active), "known": faults.known}

    @app.put("/faults")
    def replace_faults() -> ResponseReturnValue:
        try:
            faults.replace(parse_json(request.get_data()))
        except ValueError as error:
            raise BadRequest(str(error)) from None
        return show_faults()
