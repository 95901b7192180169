"""How fast replies are worked off: the queues are full, and nothing runs but the system's worker.

Half of the replies are the menu's, for orders that wait for it; the other half are payments of other orders.
"""

import contextlib
import time
from collections.abc import Callable, Iterator

from benchmarks import database
from benchmarks.result import Effort
from benchmarks.stage import POLL_SECONDS, STALL_SECONDS, Failed, Stage
from benchmarks.system import Ask, Publish, Wire

#: A slow system is stopped after so long; the rate is the same.
LONGEST_SECONDS = 30.0
#: A moment of the run: when, replies applied, CPU seconds of the worker.
Look = tuple[float, int, float]


def measure(stage: Stage, effort: Effort) -> dict[str, float]:
    """The figures of one worker process on a prepared stage."""
    return work_off(stage, replies=effort.replies, workers=1)


def work_off(stage: Stage, *, replies: int, workers: int) -> dict[str, float]:
    """Fill the queues, start the workers, and watch them until the queues are worked off."""
    half = replies // 2
    preload(stage, half)
    with contextlib.ExitStack() as stack:
        names = [stage.start(stage.system.worker, stack, copy=copy) for copy in range(1, workers + 1)]
        first, last = _watch(stage, lambda: applied(stage, half), 2 * half, names)
        peak = stage.usage(*names).peak_mib
    seconds, done, cpu = (b - a for a, b in zip(first, last, strict=True))
    return {"replies_per_second": done / seconds, "cpu_us_per_reply": cpu / done * 1_000_000, "peak_memory_mib": peak}


def preload(stage: Stage, half: int) -> None:
    """So many orders that wait for the menu, and as many for the payment, and a reply to each of them."""
    stage.system.preload(stage.database_url, half, half)
    database.settle(stage.database_url)
    stage.fill(replies_to(stage.system.wire, half), stage.system.wire.reply_queues)


def replies_to(wire: Wire, half: int) -> Iterator[Publish]:
    """Of each kind by turns, as they come in a run."""
    for order_id in range(1, half + 1):
        yield wire.reserved(Ask("menu", order_id))
        yield wire.completed(Ask("payment", half + order_id))


def applied(stage: Stage, half: int) -> int:
    """How many replies are in the database."""
    return stage.count(stage.system.count_reserved) - half + stage.paid()


def _watch(stage: Stage, count: Callable[[], int], goal: int, names: list[str]) -> tuple[Look, Look]:
    """The first and the last moment at which the workers were at work: their start and the idle end do not count."""
    looks: list[Look] = []
    began = time.monotonic()
    while True:
        now, cpu, done = time.monotonic(), stage.usage(*names).cpu_seconds, count()
        if done and (not looks or done > looks[-1][1]):
            looks.append((now, done, cpu))
        if done >= goal or (looks and now - looks[0][0] > LONGEST_SECONDS):
            break
        if now - (looks[-1][0] if looks else began) > STALL_SECONDS:
            raise Failed(f"{done} of {goal} replies after {STALL_SECONDS} s without one more")
        stage.require_alive()
        time.sleep(POLL_SECONDS)
    # The last look may have come some time after the last reply; the one before was amid the work.
    amid = [look for look in looks if look[1] < goal]
    if len(amid) < 2:
        raise Failed(f"{goal} replies were worked off between two looks: give it more")
    return amid[0], amid[-1]
