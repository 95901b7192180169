"""The few calls of RabbitMQ's management API that the sandbox and the tests make."""

import json
import urllib.error
import urllib.request
from base64 import b64encode
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

#: Seconds for one call.
CALL_SECONDS = 10


class ManagementError(Exception):
    """The management API cannot be reached, or refused a call."""


class Management:
    """A client of the API at `url`, which carries user and password: http://guest:guest@localhost:15672."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.user = parts.username or "guest"
        self._base = urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path.rstrip("/"), "", ""))
        login = f"{self.user}:{parts.password or 'guest'}"
        self._headers = {
            "authorization": "Basic " + b64encode(login.encode()).decode(),
            "content-type": "application/json",
        }

    def call(self, method: str, *path: str, body: object = None) -> Any:
        """One call; path segments are quoted here (the default vhost is `/`). Returns the decoded JSON, or None."""
        url = "/".join([self._base, "api", *(quote(segment, safe="") for segment in path)])
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(url, data=data, headers=self._headers, method=method)  # noqa: S310
        try:
            with urllib.request.urlopen(request, timeout=CALL_SECONDS) as response:  # noqa: S310
                return json.loads(response.read() or "null")
        except (OSError, ValueError) as error:
            detail = error.read().decode(errors="replace") if isinstance(error, urllib.error.HTTPError) else ""
            raise ManagementError(f"{method} {url}: {error} {detail}".strip()) from error

    def create_vhost(self, name: str) -> None:
        """Create a vhost that its creator may use fully. May be repeated."""
        self.call("PUT", "vhosts", name, body={})
        self.call("PUT", "permissions", name, self.user, body={"configure": ".*", "write": ".*", "read": ".*"})

    def delete_vhost(self, name: str) -> None:
        """Delete a vhost with everything in it; its connections are closed."""
        self.call("DELETE", "vhosts", name)


def console(url: str | None) -> str:
    """The console's address and login as one shows them to a person."""
    if url is None:
        return "not reachable (the broker's management plugin is off, or elsewhere)"
    parts = urlsplit(url)
    address = urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
    return f"{address}  (login {parts.username}, password {parts.password})"
