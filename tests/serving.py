"""Serve in a thread of a test."""

import contextlib
import threading
from collections.abc import Iterator
from socketserver import BaseServer

#: How soon a server sees that it shall stop, in seconds; the default is 0.5.
POLL_SECONDS = 0.02


@contextlib.contextmanager
def serving(server: BaseServer) -> Iterator[int]:
    """The port of the server, which serves until the block ends."""
    thread = threading.Thread(target=server.serve_forever, args=[POLL_SECONDS])
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
