"""The User Service: does this user exist?"""

import asyncio
import threading

import httpx2 as httpx

#: What a check may take in all, its one repetition included, in seconds.
TOTAL_SECONDS = 2.0
ATTEMPTS = 2
#: Checks under way at once in one process; a User Service that hangs must not take every thread.
LIMIT = 64


class UserServiceDown(Exception):
    """The User Service gave no usable answer in time."""


class Users:
    """Asks `GET {url}/users/{id}`; one object serves all threads.

    An event loop of its own, because only that can end an attempt as a whole: the timeouts of a blocking client count
    anew for every byte.
    """

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")
        self._slots = threading.Semaphore(LIMIT)
        self._start = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None

    def exists(self, user_id: int) -> bool:
        """True or False as the User Service says. Raises UserServiceDown after at most TOTAL_SECONDS."""
        if not self._slots.acquire(blocking=False):
            raise UserServiceDown(f"User Service at {self._url}: {LIMIT} checks are waiting for it already")
        try:
            return asyncio.run_coroutine_threadsafe(self._ask(user_id), self._running_loop()).result()
        finally:
            self._slots.release()

    def close(self) -> None:
        """Close the connections; the object can be used again afterwards."""
        with self._start:
            if self._loop:
                asyncio.run_coroutine_threadsafe(self._client.aclose(), self._loop).result()
                self._loop.call_soon_threadsafe(self._loop.stop)
                self._thread.join()
                self._loop.close()
                self._loop = None

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        with self._start:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._client = httpx.AsyncClient(timeout=None, limits=httpx.Limits(max_connections=LIMIT))
                self._thread = threading.Thread(target=self._loop.run_forever, name="users", daemon=True)
                self._thread.start()
            return self._loop

    async def _ask(self, user_id: int) -> bool:
        problem = "no answer"
        for _ in range(ATTEMPTS):
            try:
                async with asyncio.timeout(TOTAL_SECONDS / ATTEMPTS):
                    status = (await self._client.get(f"{self._url}/users/{user_id}")).status_code
            except (httpx.HTTPError, TimeoutError) as error:
                problem = f"{type(error).__name__}: {error}"
                continue
            if status in (200, 404):
                return status == 200
            problem = f"it answered {status}"
        raise UserServiceDown(f"User Service at {self._url}: {problem}")
