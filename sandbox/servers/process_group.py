"""Run a server that stops with this process, and wait until it is ready.

`kill -9` cannot be handled, so the server depends on a pipe: a small shell reads its standard input until this process
closes it or ends in any way, and then stops the server.
"""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Literal

from sandbox.servers.sources import Unavailable

#: $0 is the signal that stops the server. The watcher reads the pipe, which the server does not inherit.
WATCH = """
exec 3<&0
"$@" </dev/null 3<&- & server=$!
(cat <&3; kill -s "$0" $server) >/dev/null 2>&1 & watcher=$!
wait $server; status=$?
kill $watcher 2>/dev/null
exit $status
"""
#: Seconds between two checks whether a server is ready.
POLL_SECONDS = 0.1


@dataclass(frozen=True)
class Command:
    """A command with its log (None: a pipe for the caller to read)."""

    arguments: Sequence[str]
    env: Mapping[str, str]
    log: Path | None
    cwd: Path | None = None
    stop_signal: Literal["TERM", "KILL"] = "TERM"
    #: Seconds that the server gets to stop before it is killed.
    stop_seconds: float = field(default=20, kw_only=True)


@contextlib.contextmanager
def serving(command: Command) -> Iterator[subprocess.Popen[bytes]]:
    """Run the command for the length of the block, in its own process group, with its output in its log."""
    with contextlib.ExitStack() as stack:
        output: int | IO[bytes] = subprocess.PIPE
        if command.log:
            command.log.parent.mkdir(parents=True, exist_ok=True)
            output = stack.enter_context(command.log.open("ab"))
        process = subprocess.Popen(  # noqa: S603 - every caller passes its own fixed command
            ["/bin/sh", "-c", WATCH, command.stop_signal, *command.arguments],
            env=dict(command.env),
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=command.cwd,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        stop(process, seconds=command.stop_seconds)


def request_stop(process: subprocess.Popen[bytes]) -> None:
    """Have the server stopped, without waiting for it. May be repeated."""
    if process.stdin:
        process.stdin.close()


def stop(process: subprocess.Popen[bytes], *, seconds: float) -> None:
    """Stop the server; after `seconds`, kill what is left of the process group. May be repeated."""
    request_stop(process)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def wait_ready(process: subprocess.Popen[bytes], log: Path, ready: Callable[[], bool], *, seconds: float) -> None:
    """Return once `ready()` is true. Raises Unavailable, with the end of the log, if that does not happen in time."""
    deadline = time.monotonic() + seconds
    while not ready():
        if process.poll() is not None:
            raise Unavailable(f"it exited with status {process.returncode}; the end of {log}:\n{tail(log)}")
        if time.monotonic() > deadline:
            raise Unavailable(f"it was not ready after {seconds:.0f} s; the end of {log}:\n{tail(log)}")
        time.sleep(POLL_SECONDS)


def succeeds(command: Sequence[str], *, seconds: float = 15, quiet: bool = True) -> bool:
    """Whether the command can be run and ends with status 0 within the time."""
    with contextlib.suppress(subprocess.TimeoutExpired, OSError):
        stdin = subprocess.DEVNULL
        done = subprocess.run(command, stdin=stdin, capture_output=quiet, timeout=seconds, check=False)  # noqa: S603
        return done.returncode == 0
    return False


def tail(log: Path, lines: int = 15) -> str:
    """The last lines of a log, indented for display under a message."""
    text = log.read_text(errors="replace") if log.exists() else ""
    return "\n".join(f"    {line}" for line in text.splitlines()[-lines:])
