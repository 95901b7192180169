"""`make run`: all processes, with their output prefixed by their names, until Ctrl-C. Data is kept."""

import itertools
import subprocess
import sys
import threading

from sandbox import processes
from sandbox.processes import PORTS, PROJECT_DIR
from sandbox.servers import broker
from sandbox.servers.management import console
from sandbox.servers.sources import print_line

VAR = PROJECT_DIR / "var"
#: ANSI's cyan, yellow, green, magenta, blue, red, for the names of the processes.
COLOURS = (36, 33, 32, 35, 34, 31)

READY = """
  Ready. Ctrl-C stops everything. In another terminal:

    curl -d '{{"user_id":1,"menu_ids":[1,2]}}' -H 'content-type: application/json' localhost:{api}/orders
    curl localhost:{api}/orders/1

  Order Service     http://localhost:{api}
  User Service      http://localhost:{users}/users
  Menu Service      http://localhost:{menu}/menus
  Payment Service   http://localhost:{payment}/payments
  RabbitMQ console  {console}
  RABBITMQ_URL      {amqp_url}
"""


def run() -> None:
    """Print the output of the processes until one of them exits, which raises StartupError."""
    VAR.mkdir(mode=0o700, exist_ok=True)
    with broker.running(VAR / "run" / "broker", needs_management=False, keep=True) as found:
        env, exited = processes.environment(found, found.amqp_url), threading.Event()
        processes.prepare(env)
        with processes.started(env, log_dir=None) as running:
            for (name, process), colour in zip(running.items(), itertools.cycle(COLOURS), strict=False):
                threading.Thread(target=_print_output, args=[name, process, colour, exited], daemon=True).start()
            processes.wait_healthy(running)
            amqp_url = found.amqp_url if ":guest@" in found.amqp_url else broker.masked(found.amqp_url)
            print_line(READY.format(**PORTS, console=console(found.management_url), amqp_url=amqp_url))
            exited.wait()
            processes.require_alive(running)


def _print_output(name: str, process: subprocess.Popen[bytes], colour: int, exited: threading.Event) -> None:
    prefix = f"{name:<10} |"
    if sys.stdout.isatty():
        prefix = f"\033[{colour}m{prefix}\033[0m"
    for line in process.stdout or ():
        print_line(f"{prefix} {line.decode(errors='replace').rstrip()}")
    process.wait()
    exited.set()


if __name__ == "__main__":
    sys.exit(processes.exit_status(run, if_interrupted=0))
