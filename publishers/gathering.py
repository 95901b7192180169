"""A connection that sends many messages in one piece; pika sends each in three, and the broker wakes for each."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pika


class GatheringConnection(pika.SelectConnection):
    """pika's own, but for `gathering`."""

    def __init__(self, *args: Any, **named: Any) -> None:
        self._gathered: bytearray | None = None
        super().__init__(*args, **named)

    @contextmanager
    def gathering(self) -> Iterator[None]:
        """What is published within goes out at the end, in one piece."""
        self._gathered = bytearray()
        try:
            yield
        finally:
            gathered, self._gathered = self._gathered, None
            super()._adapter_emit_data(bytes(gathered))  # type: ignore[misc]

    def _adapter_emit_data(self, data: bytes) -> None:
        """The method by which every adapter of pika's hands frames to its transport."""
        if self._gathered is None:
            super()._adapter_emit_data(data)  # type: ignore[misc]
        else:
            self._gathered += data
