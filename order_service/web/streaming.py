"""Server-sent events: a client receives each change of its order, and can resume with Last-Event-ID.

https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

import json
import select
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from flask import Response, request

from order_service.domain.order import FINAL, Order
from order_service.process import StopFlag
from order_service.web import responses
from order_service.web.limits import Places
from order_service.web.placing import STOP_CHECK_SECONDS, Watcher
from order_service.web.problems import Problem, prefers_english

#: The interval of comments, in seconds: proxies keep the connection open.
HEARTBEAT_SECONDS = 15.0
#: After how many milliseconds an EventSource reconnects.
RETRY_MS = 3000
_COMMENT = ": still here\n\n"
#: nginx would otherwise collect the events of a stream until its end.
#: https://nginx.org/en/docs/http/ngx_http_proxy_module.html#proxy_buffering
_HEADERS = {"X-Accel-Buffering": "no"}
#: The servers' names for the socket of a request.
_SOCKETS = ("gunicorn.socket", "werkzeug.socket")
#: A client that has closed its side; behind unread data only Linux tells.
_HAS_LEFT = getattr(select, "POLLRDHUP", 0) | select.POLLHUP | select.POLLERR
#: The pieces of a stream that lasts this many seconds, or until the function says that the client has left.
Events = Callable[[float, Callable[[], bool]], Iterator[str]]


class Streams:
    """The open streams of one process: at most `limit`, each at most `seconds` long, and `own` of each client."""

    def __init__(self, watcher: Watcher, stopping: StopFlag, *, limit: int, seconds: float, own: int) -> None:
        self._watcher, self._stopping, self._seconds, self._own = watcher, stopping, seconds, Places(own)
        self._slots = threading.Semaphore(limit)

    def open(self, order: Order, last_event_id: str | None, *, expires_at: float | None) -> Response:
        """A stream of this order, or 204 if no change can follow. Raises Problem 429 or 503 when too many are open.

        `expires_at`: when the caller's token expires, in seconds since 1970; the stream then ends.
        """
        if order.state in FINAL and last_event_id == str(order.version):
            # An EventSource reconnects after every stream that ends; only 204 stops it.
            nothing = Response(status=204)
            del nothing.headers["Content-Type"]
            return nothing
        english = prefers_english()
        response = self.start(
            lambda seconds, has_left: self._events(order, last_event_id, has_left, seconds=seconds, english=english),
            expires_at=expires_at,
        )
        response.headers.add("Vary", "Accept-Language")
        return response

    def start(self, events: Events, *, expires_at: float | None) -> Response:
        """A stream of these events. Raises Problem 429 or 503 when too many are open; `expires_at`: see `open`."""
        give_back = self._own.take()
        if not self._slots.acquire(blocking=False):
            give_back()
            raise Problem("too_many_streams")
        seconds = self._seconds if expires_at is None else min(self._seconds, expires_at - time.time())
        pieces = events(seconds, _leaving(request.environ))
        response = Response(pieces, content_type="text/event-stream", headers=_HEADERS)
        # Called even if the client disconnects before the first event is produced.
        response.call_on_close(self._slots.release)
        response.call_on_close(give_back)
        return response

    def _events(
        self, order: Order, last_event_id: str | None, has_left: Callable[[], bool], *, seconds: float, english: bool
    ) -> Iterator[str]:
        end = time.monotonic() + seconds
        # At once, even if there is nothing new: the server sends the headers with the first piece.
        yield _event(order, english=english) if last_event_id != str(order.version) else _COMMENT
        heartbeat = time.monotonic() + HEARTBEAT_SECONDS
        with self._watcher.watch(order, is_hurried=False) as watch:
            while order.state not in FINAL and (left := end - time.monotonic()) > 0:
                if self._stopping.is_set() or has_left():
                    break
                seen, order = order, watch.wait(min(left, STOP_CHECK_SECONDS))
                if order is not seen:
                    yield _event(order, english=english)
                elif time.monotonic() >= heartbeat:
                    heartbeat = time.monotonic() + HEARTBEAT_SECONDS
                    yield _COMMENT


def _leaving(environ: dict[str, Any]) -> Callable[[], bool]:
    """A function that tells whether the client has closed its side of the connection; always False without a socket."""
    sockets = [environ[name] for name in _SOCKETS if name in environ]
    poll = select.poll()
    for each in sockets:
        poll.register(each, _HAS_LEFT)
    return lambda: bool(poll.poll(0))


def _event(order: Order, *, english: bool) -> str:
    body = responses.Order.of(order, english=english).model_dump(mode="json", exclude_unset=True)
    data = json.dumps(body, ensure_ascii=False)
    return f"event: status\nid: {order.version}\ndata: {data}\n\nretry: {RETRY_MS}\n\n"
