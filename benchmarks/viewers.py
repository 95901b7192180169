"""`python -m benchmarks.viewers PORT`: ten pages of the board, which read their streams and show nothing."""

import contextlib
import selectors
import socket
import sys
import time

VIEWERS = 10
REQUEST, ACCEPTED = b"GET /board/events HTTP/1.1\r\nHost: localhost\r\n\r\n", b"HTTP/1.1 200"
READ_BYTES = 1 << 20
#: The pause before a connection is tried again, in seconds.
RETRY_SECONDS = 0.1


def main() -> None:
    port = int(sys.argv[1])
    with selectors.DefaultSelector() as selector:
        for _ in range(VIEWERS):
            selector.register(_opened(port), selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                stream = key.fileobj
                assert isinstance(stream, socket.socket)
                if not stream.recv(READ_BYTES):
                    selector.unregister(stream)
                    stream.close()
                    selector.register(_opened(port), selectors.EVENT_READ)


def _opened(port: int) -> socket.socket:
    """A stream that was accepted; a refused one ends the process, and so the run."""
    while True:
        with contextlib.suppress(ConnectionRefusedError):
            stream = socket.create_connection(("127.0.0.1", port))
            stream.sendall(REQUEST)
            if (status := stream.recv(len(ACCEPTED))) != ACCEPTED:
                sys.exit(f"GET /board/events was answered {status!r}")
            return stream
        time.sleep(RETRY_SECONDS)


if __name__ == "__main__":
    main()
