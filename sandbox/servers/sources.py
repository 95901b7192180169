"""Sources of a server, tried in order: the first available one is used, and the reasons against others are reported."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import TypeVar

T = TypeVar("T")

#: Prints a line for the user.
Say = Callable[[str], None]
#: Provides a server, with its description, for the length of a block; raises Unavailable on entry.
Source = Callable[[Say], AbstractContextManager[tuple[T, str]]]


class Unavailable(Exception):
    """A source provides no server; the text says why."""


@contextlib.contextmanager
def first_available(name: str, sources: Sequence[Source[T]], *, advice: str, say: Say) -> Iterator[tuple[T, str]]:
    """The first available server for the length of the block, with its description and the reasons against the others.

    Raises Unavailable, with the advice and all reasons, if no source is available.
    """
    reasons: list[str] = []
    with contextlib.ExitStack() as stack:
        for source in sources:
            try:
                server, what = stack.enter_context(source(say))
                break
            except Unavailable as reason:
                reasons.append(str(reason))
        else:
            raise Unavailable("\n".join([advice, *(f"  - {reason}" for reason in reasons)]))
        description = "\n".join([what, *(f"  because {reason}" for reason in reasons)])
        say(f"{name}: {description}")
        yield server, description


def print_line(line: str) -> None:
    """Print at once, also into a file. A closed output is ignored."""
    with contextlib.suppress(OSError):
        print(line, flush=True)
