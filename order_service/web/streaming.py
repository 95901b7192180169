"""Server-sent events: a client sees each change of its order as it happens, and may come back where it was.

https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

import json
import threading
import time
from collections.abc import Iterator

from flask import Response

from order_service.domain.order import FINAL, Order
from order_service.web.problems import Problem
from order_service.web.requests import order_body
from order_service.web.waiting import Watcher

#: A comment goes out this often, so that proxies keep the connection and a client that left is noticed.
HEARTBEAT_SECONDS = 15.0
#: How soon an open stream notices that the process is to stop.
STOP_LOOK_SECONDS = 1.0


class Streams:
    """The open streams of one process: at most `limit`, each at most `seconds` long."""

    def __init__(self, watcher: Watcher, *, limit: int, seconds: float) -> None:
        self._watcher, self._seconds = watcher, seconds
        self._slots = threading.Semaphore(limit)
        self.stopping = threading.Event()

    def open(self, order: Order, last_event_id: str | None) -> Response:
        """A stream of this order, 204 if there is no more to come of it. Raises Problem 503 when too many are open."""
        if order.state in FINAL and last_event_id == str(order.version):
            # What an EventSource takes for the end; after a stream, however short, it would come back for ever.
            nothing = Response(status=204)
            del nothing.headers["Content-Type"]
            return nothing
        if not self._slots.acquire(blocking=False):
            raise Problem("too_many_streams")
        response = Response(self._events(order, last_event_id), content_type="text/event-stream")
        response.headers["Cache-Control"] = "no-store"
        # Called even if the client left before the first event was asked for.
        response.call_on_close(self._slots.release)
        return response

    def _events(self, order: Order, last_event_id: str | None) -> Iterator[str]:
        end = time.monotonic() + self._seconds
        if last_event_id != str(order.version):
            yield _event(order)
        heartbeat = time.monotonic() + HEARTBEAT_SECONDS
        while order.state not in FINAL and (left := end - time.monotonic()) > 0 and not self.stopping.is_set():
            seen, order = order, self._watcher.wait(order, min(left, STOP_LOOK_SECONDS))
            if order is not seen:
                yield _event(order)
            elif time.monotonic() >= heartbeat:
                heartbeat = time.monotonic() + HEARTBEAT_SECONDS
                yield ": still here\n\n"


def _event(order: Order) -> str:
    data = json.dumps(order_body(order), ensure_ascii=False)
    return f"event: status\nid: {order.version}\ndata: {data}\n\n"
