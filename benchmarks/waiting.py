"""What it costs to answer 201: 64 clients that wait for the menu, next to 64 that do not."""

from benchmarks import load
from benchmarks.end_to_end import burst, require_accepted
from benchmarks.load import percentile
from benchmarks.result import Effort
from benchmarks.stage import Stage

CONNECTIONS = 64


def measure(stage: Stage, effort: Effort) -> dict[str, float]:
    """Both rates, one after the other on the same stage, and how many of those who waited got their 201."""
    orders = int(stage.system.orders * effort.share_of_orders)
    without = burst(stage, orders=orders, connections=CONNECTIONS)
    before = stage.paid()
    answers = load.as_fast_as_answered(stage.house.port, orders=orders, connections=CONNECTIONS, prefer=None)
    require_accepted(answers)
    per_second = orders / (stage.wait_paid(before + orders) - answers.began)
    return {
        "respond_async_paid_per_second": without["paid_per_second"],
        "wait_paid_per_second": per_second,
        "wait_to_respond_async": per_second / without["paid_per_second"],
        "share_of_201": answers.statuses[201] / orders,
        "wait_post_p50_ms": percentile(answers.latencies, 50) * 1000,
        "wait_post_p99_ms": percentile(answers.latencies, 99) * 1000,
    }
