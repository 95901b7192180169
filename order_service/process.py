"""Code that all processes share: logging, signals, the retry loop and the threads."""

import errno
import gc
import json
import logging
import os
import select
import signal
import socket
import sys
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from datetime import UTC, datetime
from typing import Generic, NoReturn, Protocol, TextIO, TypeVar

import structlog
from pydantic import ValidationError
from pydantic_core import to_json

from order_service import config, tracing
from order_service.backoff import Backoff, Postponed

log = structlog.get_logger(__name__)
T = TypeVar("T")
#: The delay before the next attempt to reach the broker or the database.
RECONNECT = Backoff(first=0.1, longest=5)
#: The intervals at which an outage that goes on is logged again, in seconds.
REPORTS = Backoff(first=10, longest=600)
#: The logger of refused requests and of those with more rights than a customer's (docs/rest.md).
AUDIT = "order_service.audit"
#: How long a process waits for its threads when it stops, in seconds.
STOP_SECONDS = 8.0
#: How many more objects than before Python's garbage collector looks through, and how rarely the older ones.
GARBAGE_THRESHOLDS = 10_000, 20, 20


#: The level, phrase and fields of a log line; fields that are None are left out.
Event = tuple[int, str, Mapping[str, object]]
_LEVELS = {number: name.lower() for name, number in logging.getLevelNamesMapping().items() if name != "WARN"}
#: Writes all lines as JSON; None in the console format.
_json_handler: "logging.StreamHandler[TextIO] | None" = None


def configure_logging(level: str, log_format: str | None = None) -> None:
    """Write one line for each log record, the libraries' included, to standard error.

    `log_format`: json or console; None is console on a terminal.
    """
    is_json = log_format == "json" or (log_format is None and not sys.stderr.isatty())
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso"),
    ]
    structlog.configure(
        # The level filter comes first, because it is the cheapest.
        processors=[structlog.stdlib.filter_by_level, *shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler()
    # Plain tracebacks: the formatted ones print local variables, and so passwords.
    colors, plain = sys.stderr.isatty(), structlog.dev.plain_traceback
    console = structlog.dev.ConsoleRenderer(colors=colors, pad_event_to=0, exception_formatter=plain)
    rendering: list[structlog.typing.Processor] = [_escape, console]
    if is_json:
        rendering = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(_json_text)]
    processors = [structlog.stdlib.ProcessorFormatter.remove_processors_meta, *rendering]
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=processors))
    global _json_handler
    _json_handler = handler if is_json else None
    logging.basicConfig(level=level, handlers=[handler], force=True)
    # pika logs every failed connection attempt with a traceback; supervise() logs it once.
    logging.getLogger("pika").setLevel(logging.CRITICAL)
    # werkzeug, the development server, logs every address with its query, which may hold a token.
    for chatty in ("alembic", "httpx2", "httpcore2", "werkzeug"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    # Who did what is logged at every level.
    logging.getLogger(AUDIT).setLevel(logging.INFO)


def _escape(_: object, __: str, record: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Escape line breaks and all else that is not printable, so that no value imitates a line or drives a terminal.

    The renderer quotes values with a space, = or a quote, which could imitate fields; an empty one is quoted here.
    """
    for name, value in record.items():
        if isinstance(value, str) and name not in ("exception", "stack"):
            record[name] = printable(value)
            if not value and name != "event":
                record[name] = "''"
    return record


def printable(value: object) -> str:
    """The text, with line breaks and all else that is not printable escaped, lone surrogates too."""
    text = str(value)
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def _json_text(value: object, **_: object) -> str:
    with suppress(ValueError):  # bytes or surrogates that are not UTF-8
        text = to_json(value, fallback=repr, inf_nan_mode="strings").decode()
        if text.isprintable():
            return text
    # ASCII only: other control characters could drive a terminal.
    return json.dumps(value, default=repr)


def log_events(logger: str, events: Sequence[Event]) -> None:
    """Log several events: as JSON in one write, at a small part of the cost of as many calls of a logger."""
    if not events:  # as of most transactions at level WARNING; to look up a logger takes a lock
        return
    known = logging.getLogger(logger)
    enabled = [event for event in events if known.isEnabledFor(event[0])]
    if not enabled:
        return
    context = structlog.contextvars.get_contextvars()
    shared = {"timestamp": f"{utc_now():%FT%T.%fZ}", "logger": logger, **context}
    lines: list[str] = []
    for level, phrase, fields in enabled:
        given = {key: value for key, value in fields.items() if value is not None}
        if _json_handler is None:
            structlog.stdlib.get_logger(logger).log(level, phrase, **context | given)
        else:
            lines.append(_json_text(shared | {"level": _LEVELS[level], "event": phrase} | given) + "\n")
    if _json_handler and lines:
        # As in logging, a standard error that cannot be written does not fail the caller.
        with _json_handler.lock or nullcontext(), suppress(OSError, ValueError):
            _json_handler.stream.write("".join(lines))
            _json_handler.flush()


def begin(*, is_api: bool = False) -> config.Settings:
    """Read the settings and configure logging. Exits with 2 and prints every invalid setting.

    Only the API reads PORT and needs to know its callers, and only a process that listens reads HOST: other programs
    set both too.
    """
    try:
        settings = config.Settings() if is_api else config.Settings.without_api()
    except ValidationError as error:
        refuse(config.explain(error))
    if is_api and settings.ops_port == settings.port:
        refuse("ORDER_OPS_PORT: must be another port than PORT")
    configure_logging(settings.log_level, settings.log_format)
    try:
        tracing.start(str(settings.otel_endpoint or ""))
    except ValueError as error:
        refuse(f"OTEL_*: a variable of OpenTelemetry has a value that cannot be used: {error}")
    return settings


def refuse(problem: str) -> NoReturn:
    """Print a problem that a retry cannot solve, and exit with 2."""
    print(problem, file=sys.stderr)
    raise SystemExit(2)


def check_address(host: str, port: int, *, setting: str = "PORT") -> None:
    """Exit with 2, and name HOST or the setting, if this process cannot listen. A server would retry, or say less."""
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            # As servers do: connections that have ended may still use the port.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        refuse_address(error, host, port, setting=setting)


def refuse_address(error: OSError, host: str, port: int, *, setting: str) -> NoReturn:
    """Exit with 2, and name the setting because of which this process cannot listen."""
    if error.errno == errno.EADDRINUSE:
        refuse(f"{setting}: another program listens on {port} of {host}; stop it or set another {setting}")
    if error.errno == errno.EACCES:
        refuse(f"{setting}: this user may not listen on {port}; set a {setting} above 1023")
    refuse(f"HOST: cannot listen on {host}: {error.strerror}; set it to an address of this machine")


class AccessRefused(Exception):
    """A server answers but refuses this client, until an operator changes something; the text says what."""


class Stop(Protocol):
    """What ends a loop: a StopFlag, or something that also serves a connection while it waits."""

    def is_set(self) -> bool: ...

    def wait(self, timeout: float, /) -> object: ...


class StopFlag:
    """A threading.Event that a signal handler may set.

    Event.set is not re-entrant: a second signal during the first one's handler waits for a lock that its own thread
    holds. This flag has no lock; waiting threads poll a pipe that becomes readable when it is set.
    """

    def __init__(self) -> None:
        self._is_set = False
        self._read, self.wakeup_descriptor = os.pipe()
        os.set_blocking(self.wakeup_descriptor, False)
        weakref.finalize(self, _close_all, self._read, self.wakeup_descriptor)

    def is_set(self) -> bool:
        return self._is_set

    def set(self) -> None:
        """Set the flag for good, which wakes all waiting threads."""
        if not self._is_set:
            self._is_set = True
            os.write(self.wakeup_descriptor, b".")

    def wait(self, timeout: float | None = None, /) -> bool:
        """Wait until the flag is set, at most `timeout` seconds; return whether it is."""
        poll = select.poll()
        poll.register(self._read, select.POLLIN)
        poll.poll(None if timeout is None else timeout * 1000)
        return self._is_set


def _close_all(*descriptors: int) -> None:
    for each in descriptors:
        os.close(each)


def stop_on_signal() -> StopFlag:
    """A flag that SIGTERM and SIGINT set, in any number and at any interval."""
    stop = StopFlag()
    # Python runs a handler only between two instructions of the main thread: after a signal just before a poll, when
    # that poll ends. The wakeup descriptor ends it. https://docs.python.org/3/library/signal.html#signal.set_wakeup_fd
    signal.set_wakeup_fd(stop.wakeup_descriptor, warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return stop


def supervise(
    attempt: Callable[[Callable[[], None]], object],
    stop: Stop,
    *,
    what: str,
    unreachable: tuple[type[Exception], ...],
    restart: bool = False,
) -> None:
    """Call `attempt` until it returns or `stop` is set, with a growing delay after each failure.

    An `unreachable` error or AccessRefused is logged when an outage of `what` begins and when it becomes the other one,
    and again at growing intervals. Any other exception is raised, or with `restart` logged with its traceback.
    `attempt` receives a function to call once it works, which ends the outage and resets the delay.
    """
    outage = Outage(what)
    expected: tuple[type[Exception], ...] = (*unreachable, AccessRefused)
    while not stop.is_set():
        try:
            attempt(outage.end)
        except expected as error:
            outage.note(error)
        except Exception:
            if not restart:
                raise
            log.exception("unexpected error, restarting")
        else:
            if not stop.is_set():
                outage.end()
            return
        stop.wait(outage.pause())


class Attempt(Generic[T]):
    """A call that may never return, such as one to a server that is suspended, and then holds up no other thread.

    It is made in a thread of its own, and not again before it has ended. That thread does not end: at its end OpenSSL,
    which PostgreSQL's library uses, takes a lock, which a process that is forked at that moment inherits as held.
    """

    def __init__(self, call: Callable[[], T], seconds: float) -> None:
        self._call, self._seconds = call, seconds
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._is_due, self._has_ended = threading.Semaphore(0), threading.Event()
        self._result: T | None = None

    def result(self) -> T | None:
        """What the call returns; None if it fails or takes longer than `seconds`, or an earlier one has not ended."""
        with self._lock:
            if self._thread is None:
                thread = threading.Thread(target=self._run, daemon=True)
                thread.start()  # If it fails, the next call tries again.
                self._thread = thread
            elif not self._has_ended.is_set():
                return None
            self._has_ended.clear()
            self._is_due.release()
            return self._result if self._has_ended.wait(self._seconds) else None

    def _run(self) -> None:
        while self._is_due.acquire():
            self._result = None
            try:
                self._result = self._call()
            except Exception:
                log.exception("unexpected error")
            self._has_ended.set()


class Outage:
    """The delays and the log of an outage of `what`."""

    def __init__(self, what: str) -> None:
        self._what, self._delays = what, RECONNECT.jittered()
        #: What was logged last, and when it is logged again.
        self._problem, self._reported = "", Postponed[str](REPORTS)

    def note(self, error: Exception) -> None:
        """Log a failed attempt, unless the same problem was logged recently."""
        is_refused = isinstance(error, AccessRefused)
        problem = f"access to {self._what} is refused" if is_refused else f"{self._what} is unreachable"
        problem += ", retrying"
        if problem != self._problem:
            self._problem, self._reported = problem, Postponed(REPORTS)
        if self._reported.add(problem):
            log.warning(problem, error=str(error) if is_refused else first_line(error))

    def pause(self) -> float:
        """The delay before the next attempt, in seconds."""
        return next(self._delays)

    def end(self) -> None:
        """Note that an attempt works."""
        if self._problem:
            back = f"{self._what} is reachable again"
            log.info(back)
        self._problem, self._delays = "", RECONNECT.jittered()


def run_together(stop: StopFlag, *runs: Callable[[], None]) -> None:
    """Run each in a thread until one of them ends or `stop` is set; then give the others STOP_SECONDS to finish.

    A thread that ends stops the whole process, so that it is restarted as a whole. Raises SystemExit with the highest
    status of the threads, unless all are 0.
    """
    statuses = [0]

    def run_then_stop(run: Callable[[], None]) -> None:
        try:
            run()
        except SystemExit as refused:
            statuses.append(int(refused.code or 0))
        except Exception:
            log.exception("a thread failed")
            statuses.append(1)
        stop.set()

    threads = [threading.Thread(target=run_then_stop, args=[run], daemon=True) for run in runs]
    for thread in threads:
        thread.start()
    stop.wait()
    end = time.monotonic() + STOP_SECONDS
    for thread in threads:
        # A broker that hangs must not delay the exit: unsettled work rolls back and is repeated.
        thread.join(max(0, end - time.monotonic()))
    if any(statuses):
        raise SystemExit(max(statuses))


def tune_garbage_collection() -> None:
    """Collect garbage less often, and never look through what exists already: call it when all is imported.

    A batch creates objects by the thousand, nearly all of which reference counting frees; with the default thresholds
    the collector takes an eighth of a consumer's CPU time. https://docs.python.org/3/library/gc.html#gc.freeze
    """
    gc.freeze()
    gc.set_threshold(*GARBAGE_THRESHOLDS)


def client_name(role: str) -> str:
    """What the consoles of the broker and the database show of a connection: its role, process and host."""
    return f"order-service {role} {os.getpid()}@{socket.gethostname()}"


def first_line(error: BaseException) -> str:
    """An error in one line, for a log record without a traceback."""
    text = str(error).strip()
    # Several errors of pika have a text in their representation only.
    return (f"{type(error).__name__}: {text}" if text else repr(error)).splitlines()[0]


def utc_now() -> datetime:
    return datetime.now(UTC)
