"""What every process does first and last: log alike, wait for what is absent, refuse what is not set up, stop."""

import logging
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import NoReturn

import sqlalchemy as sa
import structlog

from order_service import config
from order_service.storage import migrate as schema
from order_service.storage.database import Database

log = structlog.get_logger(__name__)
#: Waiting for something absent: full jitter up to a limit that doubles from the first to the last.
FIRST_PAUSE_SECONDS, LAST_PAUSE_SECONDS = 0.1, 5.0
#: How long a process takes to stop at most.
STOP_SECONDS = 8.0


def configure_logging(level: str) -> None:
    """One line a log record, the libraries' included, on standard error."""
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso"),
    ]
    structlog.configure(
        # First what costs nothing: most lines of a quiet level are made for nobody.
        processors=[structlog.stdlib.filter_by_level, *shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler()
    # Plain tracebacks: the pretty ones print local variables, passwords among them.
    renderer = structlog.dev.ConsoleRenderer(
        colors=sys.stderr.isatty(), pad_event_to=0, exception_formatter=structlog.dev.plain_traceback
    )
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared, processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer]
        )
    )
    logging.basicConfig(level=level, handlers=[handler], force=True)
    # pika logs every failed attempt with a traceback; the edges say it once, in their own words.
    logging.getLogger("pika").setLevel(logging.CRITICAL)
    for chatty in ("alembic", "httpx2", "httpcore2"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


def begin() -> config.Settings:
    """The settings of this process, its log configured. Exits with 2 naming every setting that cannot be used."""
    try:
        settings = config.load()
    except config.SettingsError as error:
        refuse(str(error))
    configure_logging(settings.log_level)
    return settings


def refuse(problem: str) -> NoReturn:
    """Exit with 2: what is wrong will not mend itself by waiting."""
    print(problem, file=sys.stderr)
    raise SystemExit(2)


def stop_on_signal() -> threading.Event:
    """An event that SIGTERM and SIGINT set."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return stop


def pauses() -> Iterator[float]:
    """How long to wait before each further attempt, in seconds."""
    limit = FIRST_PAUSE_SECONDS
    while True:
        yield random.uniform(0, limit)  # noqa: S311 - spreads load, guards nothing
        limit = min(limit * 2, LAST_PAUSE_SECONDS)


def run_together(stop: threading.Event, *runs: Callable[[], None]) -> None:
    """Run each in a thread until one of them ends or `stop` is set, then let the others finish, STOP_SECONDS at most.

    One that ends, ends the process: half of it would be worse than a restart. Raises SystemExit with its status.
    """
    threads = [_Ending(run, stop) for run in runs]
    for thread in threads:
        thread.start()
    stop.wait()
    end = time.monotonic() + STOP_SECONDS
    for thread in threads:
        # A broker that hangs must not keep the process; what is not settled rolls back and comes again.
        thread.join(max(0, end - time.monotonic()))
    status = max(thread.status for thread in threads)
    if status:
        raise SystemExit(status)


class _Ending(threading.Thread):
    """A thread that sets `stop` however it ends, and remembers with which status."""

    def __init__(self, run: Callable[[], None], stop: threading.Event) -> None:
        super().__init__(daemon=True)
        self._work, self._stop_all, self.status = run, stop, 0

    def run(self) -> None:
        try:
            self._work()
        except SystemExit as refused:
            self.status = int(refused.code or 0)
        except Exception:
            log.exception("a thread failed")
            self.status = 1
        self._stop_all.set()


def wait_for_database(database: Database, wait: Callable[[float], object], stopped: Callable[[], bool]) -> None:
    """Return once the database answers and is migrated. Exits with 2 if it is not migrated."""
    absent = False
    for pause in pauses():
        if stopped():
            return
        try:
            schema.check_migrated(database)
        except schema.NotMigrated as error:
            refuse(f"{error}: run `python -m order_service migrate` first")
        except sa.exc.SQLAlchemyError as error:
            if not absent:
                log.warning("the database does not answer, waiting for it", error=first_line(error))
            absent = True
            wait(pause)
        else:
            if absent:
                log.info("the database answers again")
            return


def first_line(error: BaseException) -> str:
    """An error in one line, for a log record that needs no traceback."""
    return f"{type(error).__name__}: {str(error).strip() or 'no detail'}".splitlines()[0]


def utc_now() -> datetime:
    return datetime.now(UTC)
