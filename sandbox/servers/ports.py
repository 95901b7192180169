"""Free TCP ports of this machine."""

import contextlib
import socket


def free_ports(*preferred: int) -> list[int]:
    """A free port for each preferred one: that one if it is free, else (and for 0) any."""
    with contextlib.ExitStack() as held:  # all held at once, so that they differ
        return [_bind(held.enter_context(socket.socket()), port) for port in preferred]


def _bind(listener: socket.socket, preferred: int) -> int:
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections in TIME_WAIT do not count
    try:
        listener.bind(("127.0.0.1", preferred))
    except OSError:
        listener.bind(("127.0.0.1", 0))
    port: int = listener.getsockname()[1]
    return port
