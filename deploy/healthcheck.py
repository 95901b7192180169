"""Exit with 0 if this container works: `python deploy/healthcheck.py [PORT PATH]`.

With PORT and PATH, and for the API: it answers with 200. For consumers and publishers: they are connected to the
broker.
"""

import http.client
import os
import sys
from pathlib import Path
from urllib.parse import urlsplit

#: The state of an open connection in /proc/net/tcp: https://www.kernel.org/doc/Documentation/networking/proc_net_tcp.txt
ESTABLISHED = "01"


def answers(port: int, path: str) -> bool:
    """Whether a GET is answered with 200. http.client uses no proxy of the environment, which Docker may set."""
    connection = http.client.HTTPConnection("localhost", port, timeout=4)
    connection.request("GET", path)
    return connection.getresponse().status == 200


def is_connected() -> bool:
    """Whether a connection to a port of RABBITMQ_URL is open; a container has no connections of other containers."""
    urls = (os.environ.get("RABBITMQ_URL") or "amqp://localhost").split(",")
    default_ports = {"amqp": 5672, "amqps": 5671}
    ports = {url.port or default_ports.get(url.scheme) for url in map(urlsplit, map(str.strip, urls))}
    for table in ("tcp", "tcp6"):
        for line in Path("/proc/net", table).read_text().splitlines()[1:]:
            _, _, remote, state, *_ = line.split()
            if state == ESTABLISHED and int(remote.rpartition(":")[2], 16) in ports:
                return True
    return False


def is_healthy() -> bool:
    if len(sys.argv) > 2:
        return answers(int(sys.argv[1]), sys.argv[2])
    command = Path("/proc/1/cmdline").read_text()
    if "consumers" in command or "publishers" in command:
        return is_connected()
    return answers(int(os.environ.get("PORT") or 5003), "/readyz")


if __name__ == "__main__":
    try:
        sys.exit(not is_healthy())
    except OSError as error:
        sys.exit(str(error))
