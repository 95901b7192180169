"""The retry loop of every process: when it retries, what it logs, and how it ends; without sleeping."""

import itertools
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
from structlog.testing import CapturingLogger

from order_service import process
from order_service.process import RECONNECT, REPORTS, AccessRefused, Attempt, supervise
from tests.polling import wait_until

LOST, BACK = "the broker is unreachable, retrying", "the broker is reachable again"
REFUSED = "access to the broker is refused, retrying"


class Unreachable(Exception):
    pass


class Stop:
    """Records the delays instead of waiting, and is set after a number of them."""

    def __init__(self, *, after: int = 100) -> None:
        self.waits: list[float] = []
        self.waited = 0.0
        self._after = after

    def is_set(self) -> bool:
        return len(self.waits) >= self._after

    def wait(self, timeout: float, /) -> None:
        self.waits.append(timeout)
        self.waited += timeout


@pytest.fixture(autouse=True)
def log(monkeypatch: pytest.MonkeyPatch) -> CapturingLogger:
    log = CapturingLogger()
    monkeypatch.setattr(process, "log", log)
    return log


class Interrupted(Unreachable):
    """An error after the attempt worked."""


def run(stop: Stop, *outcomes: Exception | None, restart: bool = False) -> None:
    """Supervise attempts with these outcomes: an exception, or None to return."""
    attempts = iter(outcomes)

    def attempt(working: Callable[[], None]) -> None:
        outcome = next(attempts)
        if isinstance(outcome, Interrupted):
            working()
        if outcome:
            raise outcome

    supervise(attempt, stop, what="the broker", unreachable=(Unreachable,), restart=restart)


def messages(log: CapturingLogger) -> list[object]:
    return [call.args[0] for call in log.calls]


def test_each_outage_is_logged_once_and_its_end_too(log: CapturingLogger) -> None:
    stop = Stop()

    run(stop, Unreachable("refused"), Unreachable(), Interrupted(), Unreachable(), None)

    assert messages(log) == [LOST, BACK, LOST, BACK]
    assert log.calls[0].kwargs == {"error": "Unreachable: refused"}
    assert len(stop.waits) == 4


@pytest.mark.parametrize(("error", "message"), [(Unreachable(), LOST), (AccessRefused("no vhost"), REFUSED)])
def test_an_outage_that_goes_on_is_logged_again_at_growing_intervals(
    error: Exception, message: str, log: CapturingLogger, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given: attempts for more than a day
    stop, logged_at = Stop(after=50_000), list[float]()
    monkeypatch.setattr("order_service.backoff.time", SimpleNamespace(monotonic=lambda: stop.waited))
    log.warning = lambda *_, **__: logged_at.append(stop.waited)  # type: ignore[attr-defined]

    # when
    run(stop, *[error] * 50_000)

    # then: at the start, after about 10, 20, 40 ... seconds, and finally every 10 minutes
    pauses = [after - before for before, after in pairwise(logged_at)]
    limits = [REPORTS.delay(reports) for reports in range(1, len(pauses) + 1)]
    assert logged_at[0] == 0
    assert len(pauses) > 100
    assert all(limit <= pause + 0.01 <= limit + 6 for limit, pause in zip(limits, pauses, strict=True))


def test_calls_that_may_never_return_are_made_in_one_thread_which_does_not_end_at_a_failure(
    log: CapturingLogger,
) -> None:
    """A process that is forked at the end of such a thread inherits OpenSSL's lock as held."""
    outcomes = iter([Interrupted()])

    def call() -> threading.Thread:
        for error in outcomes:
            raise error
        return threading.current_thread()

    attempt = Attempt(call, seconds=30)

    assert attempt.result() is None
    assert messages(log) == ["unexpected error"]
    first, second = attempt.result(), attempt.result()
    assert first is second is not None
    assert first.is_alive()


def test_call_that_has_not_returned_is_not_made_again_before() -> None:
    count, returns = itertools.count(), threading.Event()
    attempt = Attempt(lambda: (next(count), returns.wait(30)), seconds=0.01)

    assert [attempt.result(), attempt.result()] == [None, None]
    returns.set()
    assert wait_until(attempt.result, "the next call") == (1, True)


def test_a_refusal_is_told_from_an_outage(log: CapturingLogger) -> None:
    run(Stop(), Unreachable(), AccessRefused("no vhost"), AccessRefused("no vhost"), Unreachable(), None)

    assert messages(log) == [LOST, REFUSED, LOST, BACK]
    assert log.calls[1].kwargs == {"error": "no vhost"}


def test_an_error_without_a_text_is_logged_by_its_representation(log: CapturingLogger) -> None:
    run(Stop(), Unreachable(OSError("no route to host")), None)
    run(Stop(), Unreachable(), None)

    assert log.calls[0].kwargs == {"error": "Unreachable: no route to host"}
    assert log.calls[2].kwargs == {"error": "Unreachable()"}


def test_delays_grow_while_an_outage_lasts_and_start_again_after_it() -> None:
    stop = Stop()

    run(stop, *[Unreachable()] * 40, Interrupted(), *[Unreachable()] * 2, None)

    limits = [RECONNECT.delay(failures) for failures in [*range(1, 41), 1, 2, 3]]
    assert all(wait <= limit for wait, limit in zip(stop.waits, limits, strict=True))
    # Full jitter: 40 delays would stay this short once in millions of runs.
    assert max(stop.waits[:40]) > RECONNECT.longest / 2
    assert max(stop.waits[40:]) <= RECONNECT.delay(3)


def test_other_exceptions_are_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        run(Stop(), ZeroDivisionError())


def test_other_exceptions_restart_the_attempt_where_asked_to(log: CapturingLogger) -> None:
    stop = Stop()

    run(stop, ZeroDivisionError(), None, restart=True)

    assert messages(log) == ["unexpected error, restarting"]
    assert log.calls[0].method_name == "exception"
    assert len(stop.waits) == 1


def test_stop_ends_the_loop_before_the_next_attempt() -> None:
    run(Stop(after=0))
    run(Stop(after=2), Unreachable(), Unreachable())


ROOT = Path(__file__).parents[2]
#: Two signals of another process, 0 to 200 us apart; Event.set in a handler hangs within a few hundred of them.
TWO_SIGNALS = """
import os, signal, time
from order_service.process import stop_on_signal

for number in range(400):
    stop = stop_on_signal()
    sender = os.fork()
    if not sender:
        os.kill(os.getppid(), signal.SIGTERM)
        end = time.perf_counter() + number % 20 * 1e-5
        while time.perf_counter() < end:
            pass
        os.kill(os.getppid(), signal.SIGTERM)
        os._exit(0)
    stop.wait()
    os.waitpid(sender, 0)
print("stopped", end="")
"""


def test_two_signals_close_together_stop_the_process() -> None:
    ended = subprocess.run([sys.executable, "-c", TWO_SIGNALS], cwd=ROOT, capture_output=True, text=True, timeout=60)

    assert (ended.returncode, ended.stdout) == (0, "stopped"), ended.stderr


#: A field with its value, which may be quoted as in Python.
FIELD = re.compile(r"""(\w+)=('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|\S*)""")
LOGGING = """
import logging, structlog
from order_service import process
process.configure_logging("INFO", "{log_format}")
for value in {values}:
    structlog.get_logger("a").info("message refused", id=value, code="x")
    logging.getLogger("b").info("invalid request: %s", value)
"""
IMITATIONS = [
    "1 code=y", "1\ncode=y", "1\r\n2026-01-01 [info] access granted", "1\tcode=y", "code=y", "'1' code=y", '"', "1\x1b[2K\x1b[1A",
    "1\x0b\x0ccode=y", "1\x85code=y", "1\u2028code=y", "1\u202ey=edoc", "1\u00a0code=y", "\\", "", "\x00", "ünïcödé",
]  # fmt: skip


@pytest.mark.parametrize("log_format", ["console", "json"])
def test_no_logged_value_imitates_a_field_or_a_line_or_drives_a_terminal(log_format: str) -> None:
    script = LOGGING.format(values=ascii(IMITATIONS), log_format=log_format)
    environment = os.environ | {"PYTHONUTF8": "1"}
    command = [sys.executable, "-c", script]

    log = subprocess.run(command, capture_output=True, check=True, encoding="utf-8", env=environment).stderr

    lines = log.removesuffix("\n").split("\n")
    assert len(lines) == 2 * len(IMITATIONS)
    assert [line for line in lines if not line.isprintable()] == []
    if log_format == "json":
        assert [json.loads(line)["id"] for line in lines[::2]] == IMITATIONS
        return
    for line in lines[::2]:
        assert [name for name, _ in FIELD.findall(line)] == ["code", "id"], line
