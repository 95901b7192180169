"""The calls of RabbitMQ's management API that the sandbox and the tests make."""

from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

from sandbox.servers import http_client


class Management:
    """A client of the API at `url`, which includes user and password: http://guest:guest@localhost:15672."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.user = parts.username or "guest"
        self._login = f"{self.user}:{parts.password or 'guest'}"
        self.base = urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path.rstrip("/"), "", ""))

    def call(self, method: str, *path: str, body: object = None) -> Any:
        """One call, its path segments quoted here (the default vhost is `/`). Raises RequestFailed."""
        url = "/".join([self.base, "api", *(quote(segment, safe="") for segment in path)])
        return http_client.call(method, url, body, login=self._login)

    def is_administrator(self) -> bool:
        """Whether the login may create users."""
        return "administrator" in self.call("GET", "whoami")["tags"]

    def create_vhost(self, name: str) -> None:
        """Create a vhost with full permissions for its creator. May be repeated."""
        self.call("PUT", "vhosts", name, body={})
        self.call("PUT", "permissions", name, self.user, body={"configure": ".*", "write": ".*", "read": ".*"})

    def delete_vhost(self, name: str) -> None:
        """Delete a vhost with everything in it; its connections are closed."""
        self.call("DELETE", "vhosts", name)


def refusal(url: str) -> str | None:
    """Why the API at this URL cannot be used; None if it responds."""
    try:
        Management(url).call("GET", "whoami")
    except http_client.RequestFailed as error:
        return str(error)
    return None


def console(url: str | None) -> str:
    """The console's address and login, for display."""
    if url is None:
        return "not reachable (the broker's management plugin is off, or elsewhere)"
    # RabbitMQ's own default is no secret.
    password = "guest" if ":guest@" in url else "as in RABBITMQ_URL or .env"
    return f"{Management(url).base}  (login {urlsplit(url).username}, password {password})"
