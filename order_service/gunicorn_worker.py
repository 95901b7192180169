"""The worker of gunicorn that serves the API: gthread, except that its threads do not wait for clients.

Works around: with gthread, a few slow clients stop the service for all others.
- Its main thread waits up to 2 s for the client's end of each connection that it closes.
- A thread waits 5 s for the first byte of a connection, indefinitely for the rest of a request, and indefinitely for a
  client that does not read its response.
- When `worker_connections` are open, even if most are idle, nothing is accepted.
- A connection returns to the main thread after each request, which costs about 11 % of the CPU of a POST.
Here, the main thread's poller waits for all these clients, a thread gets complete requests only, and the connection
that has waited longest is closed for a new one. A thread keeps its connection while requests follow each other.
Upstream: https://github.com/benoitc/gunicorn/issues/2652 for the reads; the others are not reported. Remove when
gthread passes tests/integration/test_gunicorn_worker.py.
"""

import io
import select
import selectors
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import structlog
from gunicorn.http import errors  # type: ignore[import-untyped]
from gunicorn.workers.gthread import STOP_KEEPALIVE_LINGER, ThreadWorker  # type: ignore[import-untyped]

from order_service.client_socket import BODY_BYTES, ClientSocket, PartialRequest, rest_of_request
from order_service.web import access

log = structlog.get_logger(__name__)

#: How long a client may send nothing in the middle of a request, or take nothing of its response, in seconds.
READ_SECONDS, SEND_SECONDS = 10, 30
#: How long a closed connection waits for the client's end, in seconds, as in gthread.
CLOSE_SECONDS = 2.0
#: How often the connections that have waited too long are closed, in seconds.
CHECK_SECONDS = 0.5
#: How long a thread waits for the next request of its connection, in milliseconds.
NEXT_REQUEST_MS = 5
#: The problems of requests that cannot be read; that of all others is bad_request.
REFUSALS = {
    errors.LimitRequestLine: "uri_too_long",
    errors.LimitRequestHeaders: "header_fields_too_large",
    errors.UnsupportedTransferCoding: "unsupported_transfer_encoding",
    errors.ExpectationFailed: "expectation_failed",
}
#: gunicorn's errors of the application or the configuration that look like those of a request.
OWN_ERRORS = (errors.InvalidResponseHeader, errors.InvalidResponseHeaderName, errors.ConfigurationProblem)

#: What `handle` returns for a request whose rest has not arrived.
_PARTIAL = object()


class Worker(ThreadWorker):  # type: ignore[misc]
    """Methods named as in gthread override it. All run in the main thread, except those for `handle`."""

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        #: When each waiting connection expires, and what to do then; the one that has waited longest is first.
        self._waiting: dict[Any, tuple[float, Callable[[Any], None]]] = {}
        self._next_check = 0.0

    def enqueue_req(self, conn: Any) -> None:
        """Pass a connection to a thread; a new one only when its client has sent something."""
        if conn.data_ready:
            super().enqueue_req(conn)
            return
        conn.data_ready, conn.sock = True, ClientSocket(conn.sock)
        if self.nr_conns >= self.worker_connections:
            self._close_longest_waiting()
        self._wait_for_request(conn, self.enqueue_req)

    def finish_request(self, conn: Any, fs: Any) -> None:
        """Decide what a connection waits for that comes back from its thread."""
        result = None if fs.cancelled() or fs.exception() else fs.result()
        if conn.sock.unsent:
            self._wait(conn, selectors.EVENT_WRITE, partial(self._send, fs=fs), self._close, SEND_SECONDS)
        elif result is _PARTIAL:
            self._wait_for_request(conn, self._receive)
        elif result is True:
            super().finish_request(conn, fs)
        else:
            self._end(conn)

    def murder_pending(self) -> None:
        """Expire connections that have waited too long. gthread calls this in each turn of its loop."""
        now = time.monotonic()
        if now < self._next_check:
            return
        self._next_check = now + CHECK_SECONDS
        for conn, (deadline, expire) in list(self._waiting.items()):
            if deadline <= now:
                self._stop_waiting(conn)
                expire(conn)

    def _cap_keepalive(self, deadline: float) -> None:
        """The worker stops: no connection waits for longer than an idle one may."""
        super()._cap_keepalive(deadline)
        self._waiting = {conn: (min(end, deadline), expire) for conn, (end, expire) in self._waiting.items()}

    def _wait(
        self, conn: Any, event: int, proceed: Callable[[Any], None], expire: Callable[[Any], None], seconds: float
    ) -> None:
        if not self.alive:
            seconds = min(seconds, STOP_KEEPALIVE_LINGER)
        self._waiting[conn] = (time.monotonic() + seconds, expire)

        def is_ready(_: Any) -> None:
            if conn in self._waiting:  # and not closed for a new connection that was accepted in the same turn
                self._stop_waiting(conn)
                proceed(conn)

        self.poller.register(conn.sock, event, is_ready)

    def _stop_waiting(self, conn: Any) -> None:
        del self._waiting[conn]
        self.poller.unregister(conn.sock)

    def _close_longest_waiting(self) -> None:
        if self._waiting:
            conn = next(iter(self._waiting))
            self._stop_waiting(conn)
            self._close(conn)
        elif self.keepalived_conns:
            self.keepalived_conns[0].timeout = 0  # gthread closes it at the end of this turn

    def _wait_for_request(self, conn: Any, proceed: Callable[[Any], None]) -> None:
        self._wait(conn, selectors.EVENT_READ, proceed, self._expire_request, READ_SECONDS)

    def _receive(self, conn: Any) -> None:
        """Receive a piece of a request, and pass the connection to a thread if the request may be complete."""
        try:
            is_partial = conn.sock.receive(conn.sock.received, BODY_BYTES) and next(conn.sock.rest, True) is None
        except PartialRequest:
            is_partial = True
        except (OSError, errors.ParseException):
            is_partial = False  # The thread ends the connection, or refuses the request.
        if is_partial:
            self._wait_for_request(conn, self._receive)
        else:
            self.enqueue_req(conn)

    def _expire_request(self, conn: Any) -> None:
        """Treat the request as if the client had closed its side: a thread then answers what there is."""
        conn.sock.is_expired = True
        self.enqueue_req(conn)

    def _send(self, conn: Any, fs: Any) -> None:
        try:
            conn.sock.send_unsent()
        except OSError:
            self._close(conn)
        else:
            self.finish_request(conn, fs)

    def _end(self, conn: Any) -> None:
        """Send the end, and close when the client has: closing before resets the connection if it still sends."""
        conn.timeout, conn.sock.received = time.monotonic() + CLOSE_SECONDS, None
        try:
            conn.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self._close(conn)
        else:
            self._wait_for_end(conn)

    def _wait_for_end(self, conn: Any) -> None:
        seconds = conn.timeout - time.monotonic()
        self._wait(conn, selectors.EVENT_READ, self._discard, self._close, seconds)

    def _discard(self, conn: Any) -> None:
        try:
            has_ended = not conn.sock.recv(BODY_BYTES)
        except OSError:
            has_ended = True
        (self._close if has_ended else self._wait_for_end)(conn)

    def _close(self, conn: Any) -> None:
        self.nr_conns -= 1
        conn.close()

    def handle(self, conn: Any) -> Any:
        """Answer the requests of a connection until none follows at once, in a thread."""
        result = self._handle_one(conn)
        while result is True and self.alive and not conn.sock.unsent and self._follows(conn):
            result = self._handle_one(conn)
        return result

    def _follows(self, conn: Any) -> bool:
        """Tell whether the client sends its next request at once and no other connection waits for a thread."""
        if not self.tpool._work_queue.empty():
            return False
        if conn.parser.unreader.buf.getvalue():
            return True
        poll = select.poll()
        poll.register(conn.sock, select.POLLIN)
        return bool(poll.poll(NEXT_REQUEST_MS))

    def _handle_one(self, conn: Any) -> Any:
        conn.init()
        sock, parser = conn.sock, conn.parser
        buffered = parser.unreader.take_buffered()
        if sock.received is None:
            sock.received = bytearray(buffered)
        # gunicorn's parser copies the data that it has got for each chunk, so it gets all by recv in small pieces.
        sock.read_bytes, parser.mesg = 0, None
        try:
            result = super().handle(conn)
        except PartialRequest:
            # The next attempt parses the request from its start.
            parser.req_count -= 1
            sock.rest = rest_of_request(sock.received, parser.mesg)
            next(sock.rest, None)  # It begins with the data that was parsed.
            return _PARTIAL
        sock.has_continued = False
        return result

    def handle_request(self, req: Any, conn: Any) -> Any:
        """Answer a request whose body has arrived, in a thread."""
        self._receive_body(req, conn.sock)
        # What follows the request.
        unreader = conn.parser.unreader
        unreader.unread(unreader.take_buffered() + bytes(conn.sock.received[conn.sock.read_bytes :]))
        conn.sock.received, conn.sock.holds_head = None, True
        result = super().handle_request(req, conn)
        conn.sock.send_head()
        return result

    def _receive_body(self, req: Any, sock: Any) -> None:
        if req._expected_100_continue and not sock.has_continued:
            sock.has_continued = True
            sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        req._expected_100_continue = False
        # Before the parser, which takes long for many chunks.
        data = sock.received
        for _ in rest_of_request(data, req):
            if not sock.receive(data, BODY_BYTES):
                break
        try:
            body = req.body.read(BODY_BYTES + 1)
        except errors.NoMoreData:  # gthread would close the connection without a response
            raise errors.ChunkMissingTerminator(b"") from None
        req.body = io.BytesIO(body)
        if len(body) > BODY_BYTES or sock.is_expired:
            req.force_close()

    def handle_error(self, req: Any, client: Any, addr: Any, exc: Exception) -> None:
        """Respond to a request that cannot be read, or whose handling failed, in a thread.

        gthread's response is a page with a part of the request; its log, too, might show a token.
        """
        is_refused = isinstance(exc, errors.ParseException) and not isinstance(exc, OWN_ERRORS)
        code = REFUSALS.get(type(exc), "bad_request") if is_refused else "internal_error"
        if is_refused:
            structlog.contextvars.clear_contextvars()  # the ids of the thread's last request
            log.warning("a request cannot be read", client=addr and addr[0], code=code, error=type(exc).__name__)
        else:
            log.error("unexpected error while handling a request", exc_info=exc)
        client.holds_head = False
        with suppress(OSError):
            client.sendall(access.refusal(code))

    def _keepalive_after(self, _conn: Any, keepalive: bool) -> bool:
        """Whether the connection remains open; gthread would first receive the rest of the body here."""
        return keepalive
