"""Exit with 0 if this container works: `python deploy/healthcheck.py [PORT PATH]`.

With PORT and PATH: it answers with 200. Without: /healthz and /readyz of ORDER_OPS_PORT do, which the image sets, and
those of the API at its own port too.
"""

import http.client
import os
import sys
from pathlib import Path


def answers(port: int, path: str) -> bool:
    """Whether a GET is answered with 200. http.client uses no proxy of the environment, which Docker may set."""
    connection = http.client.HTTPConnection("localhost", port, timeout=4)
    connection.request("GET", path)
    return connection.getresponse().status == 200


def is_healthy() -> bool:
    if len(sys.argv) > 2:
        return answers(int(sys.argv[1]), sys.argv[2])
    ports = [int(os.environ["ORDER_OPS_PORT"])] if os.environ.get("ORDER_OPS_PORT") else []
    if not ports or "api:" in Path("/proc/1/cmdline").read_text():
        ports.append(int(os.environ.get("PORT") or 5003))
    return all(answers(port, path) for port in ports for path in ("/healthz", "/readyz"))


if __name__ == "__main__":
    try:
        sys.exit(not is_healthy())
    except OSError as error:
        sys.exit(str(error))
