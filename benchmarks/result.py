"""What a run found, and how much a run does."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Result:
    """The figures of one run of one system."""

    measure: str
    system: str
    database: str
    #: What was different from the plain run, where a measure compares a system with itself.
    variant: str
    round: int
    values: Mapping[str, float]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Effort:
    """How much each run does. Less is for trying the benchmarks out: its figures are worth little."""

    #: Of what a system says an end-to-end run should post.
    share_of_orders: float = 1.0
    #: For each of the two rates.
    paced_seconds: float = 15.0
    replies: int = 20_000
    #: Finished orders in the tables.
    grown: tuple[int, ...] = (10_000, 1_000_000, 5_000_000)
    #: Replies in the queues, and rows in the outbox.
    backlog: int = 100_000
    copies: tuple[int, ...] = (1, 2, 4)


FULL = Effort()
QUICK = Effort(
    share_of_orders=0.2, paced_seconds=4, replies=4_000, grown=(10_000, 100_000), backlog=10_000, copies=(1, 2)
)
