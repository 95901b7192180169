"""What makes a process of a service: its settings, JSON over HTTP, threads that end on SIGTERM."""

import logging
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import structlog
from flask import Flask, request
from flask.typing import ResponseReturnValue
from pydantic import BaseModel, ValidationError
from werkzeug.exceptions import HTTPException
from werkzeug.serving import WSGIRequestHandler, make_server

from sandbox.siblings.consumer import Consumer, Service
from sandbox.siblings.events import parse_json
from sandbox.siblings.relay import Relay

log = structlog.get_logger()

STOP_SIGNALS = {signal.SIGTERM, signal.SIGINT}
#: Seconds a thread gets to finish once it was told to stop.
STOP_SECONDS = 3.0

Body = TypeVar("Body", bound=BaseModel)


@dataclass(frozen=True)
class Settings:
    """What the environment decides."""

    host: str
    port: int
    directory: Path
    amqp_url: str
    log_level: str

    @classmethod
    def read(cls, environ: Mapping[str, str], *, port_name: str, default_port: int) -> "Settings":
        """Each service has a port variable of its own, so that one environment suits all three."""
        return cls(
            host=environ.get("HOST", "127.0.0.1"),
            port=int(environ.get(port_name, default_port)),
            directory=Path(environ.get("SANDBOX_DIR", "var/sandbox")),
            amqp_url=environ.get("RABBITMQ_URL", "amqp://guest:guest@localhost:5672/"),
            log_level=environ.get("LOG_LEVEL", "INFO").upper(),
        )


class Worker(Protocol):
    """Something that runs in a thread until it is told to stop."""

    def run(self) -> None: ...

    def stop(self) -> None: ...


class QuietHandler(WSGIRequestHandler):
    """Requests are not logged: at some hundred a second nobody could read anything else."""

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        pass


def workers(service: Service, amqp_url: str) -> tuple[Consumer, Relay]:
    """The two threads between a service and its broker."""
    relay = Relay(service, amqp_url)
    return Consumer(service, amqp_url, answered=relay.wake), relay


def json_app(name: str, connected: Callable[[], bool] | None = None) -> Flask:
    """An app whose every answer is JSON, errors included, and that says whether it is well at /healthz.

    It is well without the broker: HTTP is answered, events wait in the outbox.
    """
    app = Flask(name, static_folder=None)

    @app.get("/healthz")
    def healthz() -> ResponseReturnValue:
        return {"status": "ok"} | ({"broker": "connected" if connected() else "absent"} if connected else {})

    @app.errorhandler(HTTPException)
    def refused(error: HTTPException) -> ResponseReturnValue:
        return {"message": error.description}, error.code or 500

    @app.errorhandler(ValidationError)
    def invalid(error: ValidationError) -> ResponseReturnValue:
        fields = sorted({str(part["loc"][0]) if part["loc"] else "body" for part in error.errors()})
        return {"message": f"Data tidak valid: {', '.join(fields)}."}, 400

    return app


def read_body(model: type[Body]) -> Body:
    """The request's body. What is no JSON, or not as the model wants it, is answered 400."""
    try:
        value = parse_json(request.get_data())
    except ValueError:
        value = None
    return model.model_validate(value)


def serve(settings: Settings, app: Flask, workers: Sequence[Worker] = ()) -> None:
    """Answer HTTP and run the workers until SIGTERM or SIGINT; returns within seconds of it."""
    configure_logging(settings.log_level)
    # Blocked before the first thread starts, so that every thread leaves them to sigwait below.
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    server = make_server(settings.host, settings.port, app, threaded=True, request_handler=QuietHandler)
    targets = [server.serve_forever, *(worker.run for worker in workers)]
    threads = [threading.Thread(target=target, daemon=True) for target in targets]
    for thread in threads:
        thread.start()
    log.info("serving", app=app.name, host=settings.host, port=settings.port)
    signal.sigwait(STOP_SIGNALS)
    for worker in workers:
        worker.stop()
    server.shutdown()
    for thread in threads:
        thread.join(STOP_SECONDS)


def configure_logging(level: str) -> None:
    """Our lines on standard error; pika's and werkzeug's not, which tell every failed attempt."""
    logging.getLogger("pika").setLevel(logging.CRITICAL)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty()),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
