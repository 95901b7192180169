"""The dishes that the board's form offers: those that a Menu Service lists over HTTP."""

from collections.abc import Sequence
from contextlib import suppress

from pydantic import ValidationError

from order_service.contract.events import ReservedItem
from order_service.http_client import HttpClient, RequestFailed

#: The time limit of a request, in seconds.
TOTAL_SECONDS = 1.0


class Dishes:
    """Sends `GET {url}`; one object serves all threads."""

    def __init__(self, url: str) -> None:
        self._client = HttpClient(url, total_seconds=TOTAL_SECONDS)

    def read(self) -> Sequence[ReservedItem]:
        """The usable ones among the dishes; none if there is no usable answer in time."""
        try:
            given = self._client.request("GET", "").json()
        except RequestFailed:
            return []
        found: list[ReservedItem] = []
        for each in given if isinstance(given, list) else ():
            with suppress(ValidationError):
                found.append(ReservedItem.model_validate(each))
        return found

    def close(self) -> None:
        self._client.close()
