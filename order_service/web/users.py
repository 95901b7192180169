"""Check with the User Service whether a user exists."""

import threading

from order_service.credentials import masked
from order_service.http_client import HttpClient, RequestFailed

#: The time limit of a check including its one retry, in seconds.
TOTAL_SECONDS = 2.0
ATTEMPTS = 2
#: Concurrent checks of one process; an unresponsive User Service must not occupy every thread.
LIMIT = 64


class UserServiceDown(Exception):
    """The User Service gave no usable answer in time."""


class Users:
    """Sends `GET {url}/users/{id}`; one object serves all threads."""

    def __init__(self, url: str) -> None:
        self._name = f"User Service at {masked(url)}"
        self._client = HttpClient(url, total_seconds=TOTAL_SECONDS / ATTEMPTS)
        self._slots = threading.Semaphore(LIMIT)

    def exists(self, user_id: int) -> bool:
        """Return whether the user exists. Raises UserServiceDown after at most TOTAL_SECONDS."""
        if not self._slots.acquire(blocking=False):
            raise UserServiceDown(f"{self._name}: {LIMIT} checks are waiting already")
        try:
            return self._ask(user_id)
        finally:
            self._slots.release()

    def close(self) -> None:
        self._client.close()

    def _ask(self, user_id: int) -> bool:
        problem = ""
        for _ in range(ATTEMPTS):
            try:
                status = self._client.request("GET", f"/users/{user_id}").status
            except RequestFailed as error:
                problem = str(error)
                continue
            if status in (200, 404):
                return status == 200
            problem = f"status {status}"
        raise UserServiceDown(f"{self._name}: {problem}")
