"""Exit with 0 if this container works: `python deploy/healthcheck.py [PORT PATH]`.

With PORT and PATH: it answers with 200. Without: its loops turn, and it is connected to what it needs; the image sets
ORDER_OPS_PORT, and the API also answers at its own port.
"""

import http.client
import os
import sys


def answers(port: int, path: str) -> bool:
    """Whether a GET is answered with 200. http.client uses no proxy of the environment, which Docker may set."""
    connection = http.client.HTTPConnection("localhost", port, timeout=4)
    connection.request("GET", path)
    return connection.getresponse().status == 200


def is_healthy() -> bool:
    if len(sys.argv) > 2:
        return answers(int(sys.argv[1]), sys.argv[2])
    port = int(os.environ.get("ORDER_OPS_PORT") or os.environ.get("PORT") or 5003)
    return answers(port, "/healthz") and answers(port, "/readyz")


if __name__ == "__main__":
    try:
        sys.exit(not is_healthy())
    except OSError as error:
        sys.exit(str(error))
