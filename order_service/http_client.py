"""HTTP requests to another service, each within one total deadline."""

import asyncio
import json
import threading
from concurrent.futures import CancelledError
from contextlib import aclosing
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import httpx2 as httpx

#: The longest response body that is read.
MAX_RESPONSE_BYTES = 64 * 1024
#: The part of the deadline in which a connection must be made, to tell a failure to connect from a lost response.
CONNECT_SHARE = 0.8
#: How many redirects of one GET are followed.
MAX_REDIRECTS = 3
_NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)


class RequestFailed(Exception):
    """No status was received; `is_sent` is False only if the request certainly was not sent."""

    def __init__(self, error: BaseException, *, is_sent: bool) -> None:
        super().__init__(f"{type(error).__name__}: {error}".removesuffix(": "))
        self.is_sent = is_sent


@dataclass(frozen=True, slots=True)
class ServiceResponse:
    """The status, and the body; empty if it did not arrive whole in time or is longer than MAX_RESPONSE_BYTES."""

    status: int
    body: bytes

    def json(self) -> Any:
        """The body's JSON with exact decimals, or None if it is not JSON."""
        try:
            return json.loads(self.body, parse_float=Decimal)
        except (ValueError, RecursionError):
            return None


class HttpClient:
    """A client of one service, for any number of threads. The first request starts its thread, after any fork.

    The requests run on an event loop, which can cancel each as a whole: a blocking client restarts its timeout with
    every byte received.
    """

    def __init__(
        self, url: str, *, total_seconds: float, reuses_connections: bool = True, follows_redirects: bool = True
    ) -> None:
        self._url, self._total_seconds = url.rstrip("/"), total_seconds
        self._max_redirects = MAX_REDIRECTS if follows_redirects else 0
        self._limits = httpx.Limits(max_keepalive_connections=None if reuses_connections else 0)
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None

    def request(self, method: str, path: str, body: object = None) -> ServiceResponse:
        """Send one request once; only a GET follows redirects. Raises RequestFailed if no status arrives in time."""
        try:
            return asyncio.run_coroutine_threadsafe(self._request(method, path, body), self._running_loop()).result()
        except CancelledError as error:
            raise RequestFailed(error, is_sent=True) from error

    def close(self) -> None:
        """Cancel all requests and close all connections. A later request starts the client again."""
        with self._lock:
            if self._loop:
                asyncio.run_coroutine_threadsafe(self._finish(), self._loop).result()
                self._loop.call_soon_threadsafe(self._loop.stop)
                self._thread.join()
                self._loop.close()
                self._loop = None

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                connecting = CONNECT_SHARE * self._total_seconds
                timeout = httpx.Timeout(None, connect=connecting, pool=connecting)
                # A client without a transport of its own would use the proxies of http_proxy and https_proxy, which
                # are for the internet: they do not reach the services of this system.
                self._client = httpx.AsyncClient(
                    timeout=timeout, transport=httpx.AsyncHTTPTransport(limits=self._limits)
                )
                self._thread = threading.Thread(target=self._loop.run_forever, name="http client", daemon=True)
                self._thread.start()
            return self._loop

    async def _request(self, method: str, path: str, body: object) -> ServiceResponse:
        status, received, content = None, b"", b""
        try:
            async with (
                asyncio.timeout(self._total_seconds),
                aclosing(await self._response(method, self._url + path, body)) as response,
            ):
                status = response.status_code
                async for part in response.aiter_bytes():
                    received += part
                    if len(received) > MAX_RESPONSE_BYTES:
                        return ServiceResponse(status, b"")
                content = received
        except (httpx.HTTPError, TimeoutError) as error:
            # Once the status is known it is returned, even if the body cannot be read.
            if status is None:
                raise RequestFailed(error, is_sent=not isinstance(error, _NOT_SENT)) from error
        return ServiceResponse(status, content)

    async def _response(self, method: str, url: str, body: object) -> httpx.Response:
        """The response whose body is to be read, after the redirects of a GET."""
        request = self._client.build_request(method, url, json=body)
        response = await self._client.send(request, stream=True)
        for _ in range(self._max_redirects if method == "GET" else 0):
            following = response.next_request
            # From https to http, anybody on the network could answer.
            if following is None or (request.url.scheme, following.url.scheme) == ("https", "http"):
                break
            await response.aclose()
            request, response = following, await self._client.send(following, stream=True)
        return response

    async def _finish(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._client.aclose()
