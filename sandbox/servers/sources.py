"""Ways of getting a server: tried in order, the first that can be had is taken, and why the others were not is kept."""

import contextlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TypeVar

T = TypeVar("T")

#: Tells the person in front of the terminal what happens.
Say = Callable[[str], None]
#: A context manager that has the server for the length of its block, or raises Unavailable on entry.
Way = Callable[[Say], AbstractContextManager[T]]


class Unavailable(Exception):
    """A server cannot be had in this way; says why. Another way may still work."""


def first(ways: Sequence[Way[T]], stack: contextlib.ExitStack, *, say: Say, message: str) -> tuple[T, list[str]]:
    """Enter the first way that can be had; return it with the reasons against those before it.

    Raises Unavailable with the message and all the reasons when there is none.
    """
    reasons: list[str] = []
    for way in ways:
        try:
            return stack.enter_context(way(say)), reasons
        except Unavailable as reason:
            reasons.append(str(reason))
    raise Unavailable("\n".join([message, *(f"  - {reason}" for reason in reasons)]))


def told(what: str, reasons: Sequence[str]) -> str:
    """What was taken and, line by line, why not a way before it."""
    return "\n".join([what, *(f"  because {reason}" for reason in reasons)])


def say_aloud(line: str) -> None:
    """Print now, also when the output goes to a file. Nobody left to read it is no reason to fail."""
    with contextlib.suppress(OSError):
        print(line, flush=True)
