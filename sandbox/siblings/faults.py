"""What a sibling does wrong on purpose, so that a team can watch how the Order Service takes it.

Fault         | what the service does                              | the order then
--------------|----------------------------------------------------|---------------------------------
reject        | Menu: out_of_stock; nothing is held                | failed
              | Payment: PaymentFailed; nothing is taken           | failed, stock given back
price         | Menu: each dish costs 1000 more than listed        | price_changed, if a total was
              |                                                    | expected; else dearer
wrong_amount  | Payment: takes 1 more than was requested           | amount_mismatch, money given back
silent        | does its work and answers nothing                  | reminders, then expired
delay=SECONDS | answers late                                       | paid later, or expired
duplicate     | sends each answer twice, under one id              | paid, once
reorder       | keeps every other answer back for 1 s, so that the | paid, once
              | next one overtakes it                              |

At start: MENU_FAULTS="delay=2,duplicate", PAYMENT_FAULTS=wrong_amount. At any time, over HTTP, replacing what was on:

    curl localhost:5002/faults
    curl -X PUT localhost:5002/faults -d '{"delay": 2, "duplicate": true}'
    curl -X PUT localhost:5002/faults -d '{}'

The service's own books stay right: they hold what was really decided and taken, and what is asked back is given back.
An order once reserved, rejected or paid stays so, whatever is switched later. What is delayed leaves at its time, also
after a restart; what is withheld by `silent` never does, but a repeated request is answered anew.

PAYMENT_MODE=manual has no `reject` and no `wrong_amount`: whoever pays by hand decides that.
"""

import itertools
import time
import uuid
from collections.abc import Collection, Iterator, Mapping
from decimal import Decimal
from typing import Any, TypeVar

from flask import Flask, request
from flask.typing import ResponseReturnValue
from werkzeug.exceptions import BadRequest

from sandbox.siblings.events import parse_json

T = TypeVar("T")
#: How long `reorder` keeps an answer back, in seconds: longer than it takes until the next one comes.
REORDER_SECONDS = 1.0
#: The longest `delay`.
MAX_SECONDS = 86_400
#: Those that every sibling can be switched to: they concern what is sent. The others concern what is decided.
SENDING = ("silent", "delay", "duplicate", "reorder")


class UnknownFault(ValueError):
    """A fault that this service does not know, or with a value that it cannot have."""


class Faults:
    """The faults of one service, off at first. Switched in one thread, looked at in others."""

    def __init__(self, deciding: Collection[str] = (), text: str = "") -> None:
        """`deciding` names those that this service has handlers for; `text` is what the environment says."""
        self.known = [*deciding, *SENDING]
        self._active: Mapping[str, Any] = {}
        self._turns = itertools.count()
        pairs = [part.strip().partition("=") for part in text.split(",") if part.strip()]
        self.switch({name: _number(value) if sign else True for name, sign, value in pairs})

    @property
    def active(self) -> dict[str, Any]:
        return dict(self._active)

    def switch(self, wanted: object) -> None:
        """Have these faults and no others. Raises UnknownFault, nothing being switched."""
        if not isinstance(wanted, dict):
            raise UnknownFault('faults must be a JSON object, such as {"delay": 2}')
        for name, value in wanted.items():
            if name not in self.known:
                raise UnknownFault(f"unknown fault {name}; known are {', '.join(self.known)}")
            if not _fits(name, value):
                must = f"a number of seconds up to {MAX_SECONDS}" if name == "delay" else "true or false"
                raise UnknownFault(f"{name} must be {must}")
        self._active = {
            name: value if value is True else float(value) for name, value in wanted.items() if value is not False
        }

    def choose(self, event_type: str, right: T, faulty: Mapping[tuple[str, str], T]) -> T:
        """The handler of a message: the right one, unless one of the faults that are on has its own."""
        return next((faulty[name, event_type] for name in self._active if (name, event_type) in faulty), right)

    def departures(self) -> Iterator[tuple[str, float]]:
        """The message id and the moment of each copy of one answer that is to leave."""
        active = self._active
        if "silent" in active:
            return
        due_at = time.time() + active["delay"] if "delay" in active else 0.0
        if "reorder" in active and next(self._turns) % 2 == 0:
            due_at += REORDER_SECONDS
        message_id = str(uuid.uuid4())
        for _ in range(2 if "duplicate" in active else 1):
            yield message_id, due_at


def _fits(name: str, value: object) -> bool:
    if isinstance(value, bool):
        return name != "delay" or not value
    return name == "delay" and isinstance(value, int | float | Decimal) and 0 < value <= MAX_SECONDS


def _number(text: str) -> object:
    """What stands behind `delay=`, or the text itself, which is refused with its fault's name."""
    try:
        return float(text)
    except ValueError:
        return text


def read(name: str, text: str, deciding: Collection[str]) -> Faults:
    """The faults of a service, switched as its environment says. Exits naming the variable that says otherwise."""
    try:
        return Faults(deciding, text)
    except UnknownFault as error:
        raise SystemExit(f"{name}: {error}") from None


def add_routes(app: Flask, faults: Faults) -> None:
    """GET and PUT /faults."""

    @app.get("/faults")
    def show_faults() -> ResponseReturnValue:
        return {"active": faults.active, "known": faults.known}

    @app.put("/faults")
    def switch_faults() -> ResponseReturnValue:
        try:
            faults.switch(parse_json(request.get_data()))
        except ValueError as error:
            raise BadRequest(str(error)) from None
        return show_faults()
