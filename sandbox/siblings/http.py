"""JSON over HTTP, and the process around it: settings, threads, graceful shutdown on SIGTERM."""

import logging
import os
import signal
import sys
import threading
from decimal import Decimal
from pathlib import Path
from typing import Annotated, TypeVar

from flask import Flask, request
from flask.typing import ResponseReturnValue
from pydantic import BaseModel, Field, ValidationError
from werkzeug.exceptions import HTTPException, NotFound
from werkzeug.serving import make_server

from sandbox.siblings.kit import Service

#: Seconds that a thread gets to finish after a signal.
STOP_SECONDS = 3.0
#: How soon the server sees that it shall stop, in seconds.
POLL_SECONDS = 0.1

#: Ids and numbers of the contract.
Id = Annotated[int, Field(ge=1, le=2**31 - 1)]
#: An id that another service chose, returned unchanged.
Reference = Annotated[str, Field(max_length=100)] | int
#: An id that this service chose, as text: others may return an integer.
OwnId = Annotated[str, Field(coerce_numbers_to_str=True)]
#: A JSON number keeps 15 digits in every language (RFC 8259, section 6).
Amount = Annotated[Decimal, Field(ge=0, max_digits=15)]

Body = TypeVar("Body", bound=BaseModel)
T = TypeVar("T")
log = logging.getLogger(__name__)


def json_number(amount: str) -> int | float:
    """A stored amount as JSON writes it: 18000, not 18000.0. A float keeps 15 digits exactly."""
    number = Decimal(amount)
    return int(number) if number == number.to_integral_value() else float(number)


def json_app(name: str, service: Service | None = None) -> Flask:
    """An application whose responses are JSON, errors included. It is healthy without the broker.

    Each request runs in its own thread and so needs its own database connection.
    """
    app = Flask(name, static_folder=None)

    @app.get("/healthz")
    def healthz() -> ResponseReturnValue:
        return {"status": "ok"} | ({"broker": "connected" if service.connected else "absent"} if service else {})

    @app.errorhandler(HTTPException)
    def show_error(error: HTTPException) -> ResponseReturnValue:
        return {"message": error.description}, error.code or 500

    @app.errorhandler(ValidationError)
    def show_invalid_fields(error: ValidationError) -> ResponseReturnValue:
        fields = sorted({str(part["loc"][0]) if part["loc"] else "body" for part in error.errors()})
        return {"message": f"Data tidak valid: {', '.join(fields)}."}, 400

    return app


def read_body(model: type[Body]) -> Body:
    """The body of the request. If it is not JSON or does not match the model, the response is 400."""
    return model.model_validate_json(request.get_data())


def found(value: T | None, message: str) -> T:
    """The value. Without one, the response is 404."""
    if value is None:
        raise NotFound(message)
    return value


def setting(name: str, default: str) -> str:
    """The value of an environment variable; an empty one is unset, as for the Order Service."""
    return os.environ.get(name) or default


def db_path(name: str) -> Path:
    return Path(setting("SANDBOX_DIR", "var/sandbox")) / name


def port_of(variable: str, default: int) -> int:
    """The port that the variable sets; Kubernetes sets MENU_PORT=tcp://... beside a Service called `menu`."""
    value = setting(variable, str(default))
    return default if value.startswith("tcp://") else int(value)


def serve(app: Flask, port_variable: str, default_port: int, service: Service | None = None) -> None:
    """Serve HTTP, and the broker in another thread, until SIGTERM or SIGINT."""
    level = setting("LOG_LEVEL", "INFO").upper()
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)-7s %(message)s")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # not every request
    # Blocked before the first thread starts, so that sigwait below receives them.
    stop_signals = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, stop_signals)
    host = setting("HOST", "127.0.0.1")
    try:
        server = make_server(host, port_of(port_variable, default_port), app, threaded=True)
    except OSError as error:
        sys.exit(f"HOST: cannot listen on {host!r}: {error}")
    stopping = threading.Event()
    threads = [threading.Thread(target=server.serve_forever, args=[POLL_SECONDS], daemon=True)]
    if service:
        threads.append(threading.Thread(target=service.run, args=[stopping], daemon=True))
    for thread in threads:
        thread.start()
    log.info("%s: serving on %s, port %d", app.name, host, server.port)
    signal.sigwait(stop_signals)
    stopping.set()
    server.shutdown()
    for thread in threads:
        thread.join(STOP_SECONDS)
