"""The log of refused requests and of those with more rights than a customer's.

Anyone can send requests that are refused, so repeats are counted instead of logged: a client cannot fill the disk.
"""

import contextvars
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import structlog
from flask import Flask, Response, current_app, g, request

from order_service.process import AUDIT
from order_service.web.caller import Caller, caller
from order_service.web.problems import Problem

log = structlog.get_logger(AUDIT)
#: For how long repeats of a line are counted, in seconds.
PERIOD_SECONDS = 10.0
#: The most different lines in a period; all further ones are counted together.
MOST_LINES = 1000
#: What a line and its repeats have in common, beside their client.
Fields = Mapping[str, object]
_EXTENSION = "audit"


@dataclass(slots=True)
class _Period:
    end: float
    event: str
    fields: Fields
    repeated: int = 0


class Repeats:
    """Logs the first of several similar events, and the number of the others when the period of the first is over.

    The periods end with the next event or request. What is counted when the process ends is not logged.
    """

    def __init__(self, most_lines: int = MOST_LINES, now: Callable[[], float] = time.monotonic) -> None:
        self._most_lines, self._now = most_lines, now
        #: All periods have the same length, so the oldest one ends first.
        self._periods: OrderedDict[tuple[object, ...], _Period] = OrderedDict()
        self._lock = threading.Lock()

    def log(self, client: str, event: str, address: str, kind: Fields, **more: object) -> None:
        """Log an event, or count it if the client caused one of the same kind a short time ago."""
        self.end_periods()
        identity = (client, event, *kind.items())
        with self._lock:
            if identity not in self._periods and len(self._periods) >= self._most_lines:
                identity, address, kind, more = (event,), "several", {}, {}
            if period := self._periods.get(identity):
                period.repeated += 1
                return
            fields = {"address": address, **kind}
            self._periods[identity] = _Period(self._now() + PERIOD_SECONDS, event, fields)
        log.info(event, **fields, **more)

    def end_periods(self) -> None:
        """Log how many events were counted in periods that have ended. Costs next to nothing if none has."""
        ended: list[_Period] = []
        with self._lock:
            while self._periods and next(iter(self._periods.values())).end <= self._now():
                _, period = self._periods.popitem(last=False)
                ended += [period] if period.repeated else []
        for each in ended:
            # Without the context of the present request, which is another one.
            contextvars.Context().run(log.info, each.event, **each.fields, repeated=each.repeated)


def install(app: Flask) -> None:
    """Log privileged requests, and those that `refused` names."""
    repeats = app.extensions[_EXTENSION] = Repeats()

    def log_privileged(response: Response) -> Response:
        _log_privileged(response)
        repeats.end_periods()
        return response

    app.after_request(log_privileged)


def refused(
    code: str,
    values: Mapping[str, object] | None = None,
    *,
    headers: Mapping[str, str] | None = None,
    reason: str | None = None,
    **more: object,
) -> Problem:
    """The problem of a refused request, which is logged."""
    known = caller()
    kind = {"subject": known.subject, "code": code} | ({"reason": reason} if reason else {})
    _repeats().log(known.key, "access refused", known.address, kind, **_target(), **more)
    return Problem(code, values or {}, headers=headers or {})


def _log_privileged(response: Response) -> None:
    """Log what a caller who may change the orders of all users sent, and how it was answered."""
    known: Caller | None = g.get("caller")
    is_privileged = known and known.subject and known.own_user_id is None and response.status_code not in (401, 403)
    if not is_privileged or known is None or request.method not in ("POST", "PUT", "DELETE"):
        return
    kind = {"subject": known.subject, "status": response.status_code}
    if response.status_code < 400:  # each changed an order, or found it as it was to be
        log.info("privileged request", address=known.address, **kind, **_target())
    else:
        _repeats().log(known.key, "privileged request", known.address, kind, **_target())


def _repeats() -> Repeats:
    found: Repeats = current_app.extensions[_EXTENSION]
    return found


def _target() -> dict[str, object]:
    # The id of a new order is in the context of the log.
    order = {name: value for name, value in (request.view_args or {}).items() if name == "order_id"}
    return {"operation": request.endpoint, **order}
