"""The socket of a client in the gunicorn worker: it never waits, and tells when a request has arrived.

The worker (gunicorn_worker.py) waits for it in its main thread.
"""

import errno
import re
import select
import socket
import time
from collections.abc import Generator, Iterator
from contextlib import suppress
from typing import Any

from gunicorn.http import errors  # type: ignore[import-untyped]
from gunicorn.http.body import ChunkedReader  # type: ignore[import-untyped]

#: How long a response of several pieces, such as an event stream, waits for its client to take a piece. It occupies a
#: thread, and is less than gunicorn's graceful_timeout.
PIECE_SECONDS = 5
#: The bytes of a body that are received before a thread gets the request; the API refuses bodies of half this size.
BODY_BYTES = 128 * 1024
#: The most bytes of a chunked body beside its data. gunicorn parses a few hundred thousand chunks per second, and a
#: body of 64 KiB in chunks of one byte would occupy it for as long as a hundred requests.
FRAMING_BYTES = 16 * 1024
#: The bytes of a request, with its head, after which it is refused.
REQUEST_BYTES = 4 * BODY_BYTES
#: The end of a head, and the line with the size of a chunk, which follows the end of a line.
HEAD_END, CHUNK_SIZE = b"\r\n\r\n", re.compile(rb"\r\n([0-9A-Fa-f]+)")


class PartialRequest(BaseException):
    """The rest of the request has not arrived. No Exception, because gthread would answer it with 500."""


class ClientSocket(socket.socket):
    """A connection that does not wait for its client to send, and for it to receive only if a piece is still unsent."""

    def __init__(self, accepted: socket.socket) -> None:
        super().__init__(accepted.family, accepted.type, accepted.proto, accepted.detach())
        super().settimeout(0)
        self.unsent = memoryview(b"")
        #: The data received for the present request; None while no request is being received.
        self.received: bytearray | None = None
        #: How many bytes of it the parser has read.
        self.read_bytes = 0
        #: Ends when the rest of the present request has arrived, see `_rest`.
        self.rest: Iterator[None] = iter(())
        #: Whether the client has taken too long, and its request counts as ended.
        self.is_expired = False
        self.has_continued = False
        #: Whether the head of a response is next, and the head that is sent with the first piece of its body: two
        #: system calls and packets take a client longer, and 2 % more of the CPU of a POST.
        self.holds_head, self._head = False, b""

    def settimeout(self, value: float | None) -> None:
        """Ignored: gthread changes the timeout several times per request."""

    def setblocking(self, flag: bool) -> None:
        """Ignored, see settimeout."""

    def recv(self, bufsize: int, flags: int = 0) -> bytes:
        if self.received is None:
            return super().recv(bufsize, flags)
        if self.read_bytes == len(self.received):
            self.receive(self.received, bufsize)
        data = bytes(self.received[self.read_bytes : self.read_bytes + bufsize])
        self.read_bytes += len(data)
        return data

    def receive(self, received: bytearray, bufsize: int) -> bool:
        """Add a piece from the client to the data received, and tell whether there is one."""
        if self.is_expired:
            return False
        if len(received) > REQUEST_BYTES:
            raise errors.LimitRequestHeaders("the request is too large")
        try:
            data = super().recv(bufsize)
        except BlockingIOError:
            raise PartialRequest from None
        received += data
        return bool(data)

    def sendall(self, data: Any, flags: int = 0) -> None:
        """Send what the kernel takes now; the rest becomes `unsent`."""
        if self.holds_head:
            self.holds_head, self._head = False, data
            return
        if self._head:
            data, self._head = self._head + data, b""
        try:
            if self.unsent:
                self._wait_until_sent()
            self.unsent = memoryview(data)
            self.send_unsent()
        except OSError:
            self.unsent = memoryview(b"")
            raise

    def send_head(self) -> None:
        """Send the head of a response without a body."""
        self.holds_head = False
        if self._head:
            self.sendall(b"")

    def close(self) -> None:
        self.unsent = memoryview(b"")
        super().close()

    def send_unsent(self) -> None:
        with suppress(BlockingIOError):
            self.unsent = self.unsent[self.send(self.unsent) :]

    def _wait_until_sent(self) -> None:
        poll, end = select.poll(), time.monotonic() + PIECE_SECONDS
        poll.register(self, select.POLLOUT)
        while self.unsent:
            if not poll.poll(max(0, end - time.monotonic()) * 1000):
                raise BrokenPipeError(errno.EPIPE, "the client does not read its response")
            self.send_unsent()


def rest_of_request(data: bytearray, req: Any) -> Iterator[None]:
    """Yield until `data`, which grows, may be a complete request; `req` is its head if this is complete.

    gunicorn's parser starts again from the beginning of a request, so it must not run for each piece that arrives.
    The work here is linear in the bytes of the request.
    """
    if req is None:
        # The parser refuses a head that is too long, so it also runs when the data has doubled.
        yield from _until_found(data, HEAD_END, 0, 2 * len(data))
        return
    start = data.index(HEAD_END) + len(HEAD_END)
    if isinstance(req.body.reader, ChunkedReader):
        yield from _chunks(data, start)
    else:
        yield from _until_long(data, start + min(req.body.reader.length, BODY_BYTES + 1))


def _chunks(data: bytearray, start: int) -> Iterator[None]:
    """Yield until all chunks from `start` have arrived, or more than BODY_BYTES of their data.

    Raises InvalidChunkSize if their sizes, extensions and trailers have more than FRAMING_BYTES.
    """
    content, line = 0, start - 2
    while content <= BODY_BYTES:
        limit = start + content + FRAMING_BYTES
        end = yield from _until_found(data, b"\r\n", line + 2, limit)
        if end >= 0:
            found = CHUNK_SIZE.match(data, line)
            if found is None:  # The parser refuses it.
                return
            size = int(found[1], 16)
            if not size:
                end = yield from _until_found(data, HEAD_END, end, limit)
        if end < 0:
            raise errors.InvalidChunkSize(b"more sizes, extensions and trailers than are accepted")
        if not size:
            return
        yield from _until_long(data, end + 2 + min(size + 2, BODY_BYTES + 1 - content))
        content, line = content + size, end + 2 + size


def _until_long(data: bytearray, length: int) -> Iterator[None]:
    while len(data) < length:
        yield


def _until_found(data: bytearray, end: bytes, start: int, limit: int) -> Generator[None, None, int]:
    """Yield until `end` or `limit` bytes have arrived; return the position of `end` before that limit, or -1."""
    while (found := data.find(end, start, limit)) < 0 and len(data) < limit:
        start = max(start, len(data) - len(end) + 1)
        yield
    return found
