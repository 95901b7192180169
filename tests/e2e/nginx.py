"""An nginx in front of the API."""

import contextlib
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.e2e.process import free_ports
from tests.polling import wait_until

PROGRAM = shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/sbin")
CONFIGURATION = """
daemon off; pid {directory}/nginx.pid; error_log {directory}/error.log;
events {{}}
http {{
  access_log off; client_body_temp_path {directory}/body; proxy_temp_path {directory}/proxy;
  fastcgi_temp_path {directory}/fastcgi; uwsgi_temp_path {directory}/uwsgi; scgi_temp_path {directory}/scgi;
  {server}
}}
"""


SERVER = """
server {{
  listen 127.0.0.1:{port};
  location {prefix} {{ proxy_pass http://127.0.0.1:{api_port}/; {directive} }}
}}
"""


@contextlib.contextmanager
def nginx(directory: Path, api_port: int, prefix: str, directive: str = "") -> Iterator[str]:
    """An nginx with nothing but proxy_pass and this directive; the address of the API behind it."""
    [port] = free_ports(1)
    with serving(directory, SERVER.format(port=port, prefix=prefix, api_port=api_port, directive=directive), port):
        yield f"http://127.0.0.1:{port}{prefix}"


@contextlib.contextmanager
def serving(directory: Path, server: str, port: int) -> Iterator[None]:
    """An nginx with this server, which listens on this port, and with its files in a new directory."""
    directory.mkdir()
    path = directory / "nginx.conf"
    path.write_text(CONFIGURATION.format(directory=directory, server=server))
    process = subprocess.Popen([str(PROGRAM), "-c", str(path), "-e", str(directory / "error.log")])
    try:
        wait_until(lambda: _accepts_connections(port), "nginx to accept connections", seconds=20)
        yield
    finally:
        process.terminate()
        process.wait(20)


def _accepts_connections(port: int) -> bool:
    with contextlib.suppress(OSError):
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
        return True
    return False
