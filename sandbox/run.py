"""`make run`: all processes, with their output prefixed by their names, until Ctrl-C. Data is kept.

`make run WITHOUT=menu` leaves out a sibling service, so that another one can take its place. `make run AUTH=jwt` has
the API require access tokens, for which it creates a key.
"""

import argparse
import itertools
import os
import subprocess
import sys
import threading
from collections.abc import Collection

from sandbox import issuer, processes
from sandbox.processes import PORTS, PROJECT_DIR, SIBLINGS
from sandbox.servers import broker
from sandbox.servers.management import console
from sandbox.servers.sources import print_line

VAR = PROJECT_DIR / "var"
#: ANSI's cyan, yellow, green, magenta, blue, red, for the names of the processes.
COLOURS = (36, 33, 32, 35, 34, 31)

READY = """
  Ready. Ctrl-C stops everything.

  The orders, live  http://localhost:{api}/board

  In another terminal:

    curl -d '{{"user_id":1,"menu_ids":[1,2]}}' -H 'content-type: application/json' localhost:{api}/orders
    curl localhost:{api}/orders/1

  Order Service     http://localhost:{api}
    its requests    http://localhost:{api}/docs
    its events      http://localhost:{api}/asyncapi
  User Service      http://localhost:{users}/users
  Menu Service      http://localhost:{menu}/menus
  Payment Service   http://localhost:{payment}/payments
  /metrics, /healthz and /readyz
    of the API      http://localhost:{api_ops}/metrics
    of consumers    http://localhost:{consumers_ops}/metrics
    of publishers   http://localhost:{publishers_ops}/metrics
  RabbitMQ console  {console}
  RABBITMQ_URL      {amqp_url}
"""

#: How to send requests that need a token; the key of `python -m order_service token` is the one that is created here.
TOKENS = """  Requests need a token:

    TOKEN=$(.venv/bin/python -m order_service token --sub 1 --scope orders)
    curl -H "authorization: Bearer $TOKEN" localhost:{api}/orders
"""


def run(without: Collection[str] = (), *, needs_tokens: bool = False) -> None:
    """Print the output of the processes until one of the Order Service's exits, which raises StartupError."""
    VAR.mkdir(mode=0o700, exist_ok=True)
    with broker.running(VAR / "run" / "broker", needs_management=False, keep=True) as found:
        access = _token_settings() if needs_tokens else {}
        env, exited = processes.environment(found, found.amqp_url, **access), threading.Event()
        processes.prepare(env)
        with processes.started(env, log_dir=None, without=without) as running:
            for (name, process), colour in zip(running.items(), itertools.cycle(COLOURS), strict=False):
                threading.Thread(target=_print_output, args=[name, process, colour, exited], daemon=True).start()
            processes.wait_healthy(running)
            ops_ports = {f"{name}_ops": port for name, port in processes.OPS_PORTS.items()}
            amqp_url = found.amqp_url if ":guest@" in found.amqp_url else broker.masked(found.amqp_url)
            print_line(READY.format(**PORTS, **ops_ports, console=console(found.management_url), amqp_url=amqp_url))
            if needs_tokens:
                print_line(TOKENS.format(**PORTS))
            if without:
                print_line(f"  Not started: {', '.join(without)}. Start your own with this RABBITMQ_URL.\n")
            try:
                exited.wait()
            finally:
                exited.set()  # the siblings that exit from now on were stopped
            processes.require_alive({name: each for name, each in running.items() if name not in SIBLINGS})


def _token_settings() -> dict[str, str]:
    """Have the API accept the tokens that are signed with the development key, which is created if it is missing."""
    key, name = issuer.development_key(VAR), os.environ.get("ORDER_JWT_ISSUER") or "development"
    return {"ORDER_AUTH": "jwt", "ORDER_JWT_KEY_FILE": str(key), "ORDER_JWT_JWKS_URL": "", "ORDER_JWT_ISSUER": name}


def _print_output(name: str, process: subprocess.Popen[bytes], colour: int, exited: threading.Event) -> None:
    prefix = f"{name:<10} |"
    if sys.stdout.isatty():
        prefix = f"\033[{colour}m{prefix}\033[0m"
    for line in process.stdout or ():
        print_line(f"{prefix} {line.decode(errors='replace').rstrip()}")
    status = process.wait()
    if name not in SIBLINGS:
        exited.set()
    elif not exited.is_set():
        print_line(f"{prefix} exited with status {status}; the others keep running, and yours can take its place")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m sandbox.run", description="Run everything until Ctrl-C.")
    parser.add_argument("--without", default="", help=f"siblings to leave out, of {', '.join(SIBLINGS)}")
    parser.add_argument("--auth", default="none", choices=["none", "jwt"], help="jwt: requests need an access token")
    arguments = parser.parse_args()
    without = arguments.without.replace(",", " ").split()
    if unknown := set(without).difference(SIBLINGS):
        parser.error(f"{', '.join(sorted(unknown))}: only {', '.join(SIBLINGS)} can be left out")
    needs_tokens = arguments.auth == "jwt"
    return processes.exit_status(lambda: run(without, needs_tokens=needs_tokens), if_interrupted=0, without=without)


if __name__ == "__main__":
    sys.exit(main())
