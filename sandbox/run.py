"""`make run`: everything, with one prefixed log per process, until Ctrl-C. The data stays for the next time.

Each process hangs on a lifeline of its own, so that none is left behind however this ends: by Ctrl-C, by a closed
terminal, by the death of whatever read the output, or by `kill -9`.
"""

import itertools
import sys
import threading
from collections.abc import Mapping

from sandbox import processes
from sandbox.processes import PORTS, PROJECT_DIR, Started, Trouble
from sandbox.servers import broker
from sandbox.servers.management import console
from sandbox.servers.sources import Unavailable, say_aloud

VAR = PROJECT_DIR / "var"
#: Of the processes' names, one each: ANSI's cyan, yellow, green, magenta, blue, red.
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


def main() -> int:
    """Returns the exit status."""
    processes.interrupt_once()
    try:
        processes.require_free_ports()
        VAR.mkdir(exist_ok=True)
        with broker.running(VAR / "run" / "broker", needs_management=False, keep=True) as found:
            env = processes.environment(found, found.amqp_url)
            say_aloud("Preparing the database and the broker ...")
            processes.prepare(env)
            _run(found, env)
    except KeyboardInterrupt:
        say_aloud("Stopped.")
    except (Trouble, Unavailable) as trouble:
        print(trouble, file=sys.stderr)
        return 1
    return 0


def _run(found: broker.Broker, env: Mapping[str, str]) -> None:
    """Show what the processes write until one of them ends, which raises Trouble, or somebody interrupts."""
    ended = threading.Event()
    with processes.started(env, log_dir=None) as running:
        for each, colour in zip(running, itertools.cycle(COLOURS), strict=False):
            threading.Thread(target=_show, args=[each, colour, ended], daemon=True).start()
        processes.wait_healthy(lambda: processes.require_alive(running))
        addresses = {name: str(port) for name, port in PORTS.items()}
        say_aloud(READY.format(**addresses, console=console(found.management_url), amqp_url=found.amqp_url))
        ended.wait()
        processes.require_alive(running)


def _show(started: Started, colour: int, ended: threading.Event) -> None:
    """Print the lines of one process under its name until it ends."""
    prefix = f"{started.name:<10} |"
    if sys.stdout.isatty():
        prefix = f"\033[{colour}m{prefix}\033[0m"
    for line in started.process.stdout or ():
        say_aloud(f"{prefix} {line.decode(errors='replace').rstrip()}")
    started.process.wait()
    ended.set()


if __name__ == "__main__":
    sys.exit(main())
