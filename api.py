"""Create the HTTP application, whose routes are in order_service/web/routes.py."""

import threading
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import structlog
from flask import Flask
from werkzeug.middleware.proxy_fix import ProxyFix
from werkzeug.routing import IntegerConverter
from werkzeug.serving import make_server

from order_service import ops, process
from order_service.config import Settings
from order_service.process import StopFlag
from order_service.storage.database import Database
from order_service.storage.schema import wait_for_database
from order_service.web import access, audit, authorization, observability, openapi, problems, routes
from order_service.web.endpoints import Api
from order_service.web.requests import MAX_REQUEST_BYTES

log = structlog.get_logger(__name__)


class _CanonicalInteger(IntegerConverter):
    """Matches canonical integers only: neither 01 nor digits of other scripts, which int() accepts."""

    regex = "0|[1-9][0-9]*"


class _App(Flask):
    def ensure_sync(self, func: Callable[..., Any]) -> Callable[..., Any]:
        """All functions are synchronous. Flask would inspect each one at each call: 3 % of a POST's CPU time."""
        return func


def create_app(settings: Settings | None = None, stopping: StopFlag | None = None) -> Flask:
    """Create the WSGI application, which connects to nothing until the first request.

    Set `stopping`, or the `stopping` of `app.extensions["api"]`, when the process is to stop.
    """
    app = _App(__name__, static_folder=None, template_folder="order_service/web/templates")
    # Flask truncates a longer chunked body without an error; the additional byte lets json_body() refuse it.
    app.config["MAX_CONTENT_LENGTH"] = MAX_REQUEST_BYTES + 1
    app.url_map.converters["int"] = _CanonicalInteger
    # A path with repeated slashes is not found; werkzeug would redirect it with an HTML answer.
    app.url_map.merge_slashes = False
    settings = settings or process.begin(is_api=True)
    document = cache(partial(openapi.document, needs_tokens=settings.needs_tokens))
    api = Api(settings, stopping or StopFlag(), document)
    app.extensions["api"] = api
    routes.install(app, api)
    observability.install(app)
    audit.install(app)
    access.install(app, settings.accepted_hosts, settings.allowed_origins)
    authorization.install(app, api.verifier, {route.operation_id: route.scopes for route in routes.ROUTES})
    problems.install(app)
    if proxies := settings.trusted_proxies:
        # Not X-Forwarded-Host, which would replace Host: a proxy that does not set it passes on the client's.
        fix = ProxyFix(app.wsgi_app, x_for=proxies, x_proto=proxies, x_host=0, x_prefix=proxies)
        app.wsgi_app = fix  # type: ignore[method-assign]
    return app


def main() -> None:
    """Serve with Flask's own server, for development; `make run` serves with gunicorn."""
    settings = process.begin(is_api=True)
    process.check_address(settings.host, settings.port)
    stop = process.stop_on_signal()
    loop = ops.Loop("server")
    ops.serve(settings, lambda: [loop])
    with Database(settings.database_url) as database:
        wait_for_database(database, stop)
    if stop.is_set():
        return
    app = create_app(settings, stop)
    server = make_server(settings.host, settings.port, app, threaded=True)
    server.service_actions = loop.turn  # type: ignore[method-assign]  # in each turn of serve_forever
    threading.Thread(target=server.serve_forever, daemon=True).start()
    log.info("serving", url=f"http://{settings.address}")
    stop.wait()
    server.shutdown()
    app.extensions["api"].close()


if __name__ == "__main__":
    main()
