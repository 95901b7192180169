"""How soon an order is paid when there is little to do, and at half of what the system can do."""

from benchmarks import load
from benchmarks.end_to_end import CONNECTIONS, burst, require_accepted
from benchmarks.load import percentile
from benchmarks.result import Effort
from benchmarks.stage import Stage

IDLE_PER_SECOND = 50.0


def measure(stage: Stage, effort: Effort) -> dict[str, float]:
    """Orders at a fixed rate, then as fast as it goes to learn what full load is, then at half of it."""
    idle = _paced(stage, IDLE_PER_SECOND, effort)
    full = burst(stage, orders=int(stage.system.orders * effort.share_of_orders), connections=CONNECTIONS)
    rate = full["paid_per_second"] / 2
    half = _paced(stage, rate, effort)
    return {
        "idle_p50_ms": percentile(idle, 50) * 1000,
        "idle_p99_ms": percentile(idle, 99) * 1000,
        "half_of_full_per_second": rate,
        "half_p50_ms": percentile(half, 50) * 1000,
        "half_p99_ms": percentile(half, 99) * 1000,
    }


def _paced(stage: Stage, per_second: float, effort: Effort) -> list[float]:
    before = stage.paid()
    answers = load.at_rate(
        stage.house.port, per_second=per_second, seconds=effort.paced_seconds, connections=CONNECTIONS,
        prefer=stage.prefer,
    )  # fmt: skip
    require_accepted(answers)
    stage.wait_paid(before + answers.accepted)
    return stage.seconds_to_paid()[-answers.accepted :]
