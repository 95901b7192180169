"""Waiting for a condition with a deadline."""

import time
from collections.abc import Callable
from typing import TypeVar

import pytest

T = TypeVar("T")

POLL_SECONDS = 0.05


def wait_until(check: Callable[[], T | None], what: str, *, seconds: float = 90, details: Callable[[], str] = str) -> T:
    """Return the first truthy result of `check()`. After `seconds`, fail with `what` and the details."""
    deadline = time.monotonic() + seconds
    while not (value := check()):
        if time.monotonic() > deadline:
            pytest.fail(f"waited {seconds:g} s for {what}; last result: {value!r}\n{details()}")
        time.sleep(POLL_SECONDS)
    return value
