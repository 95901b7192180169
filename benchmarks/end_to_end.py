"""From POST to paid, as fast as it goes: 16 connections, respond-async."""

from benchmarks import load
from benchmarks.load import percentile
from benchmarks.result import Effort
from benchmarks.stage import Failed, Stage

CONNECTIONS = 16


def measure(stage: Stage, effort: Effort) -> dict[str, float]:
    """The figures of one run on a complete stage."""
    return burst(stage, orders=int(stage.system.orders * effort.share_of_orders), connections=CONNECTIONS)


def burst(stage: Stage, *, orders: int, connections: int) -> dict[str, float]:
    """Post so many orders as fast as they are answered, and wait until all are paid."""
    before, usage, database, stubs = stage.paid(), stage.usage(), stage.database_cpu(), stage.stubs_cpu()
    answers = load.as_fast_as_answered(stage.house.port, orders=orders, connections=connections, prefer=stage.prefer)
    require_accepted(answers)
    ended = stage.wait_paid(before + orders)
    after, thousands = stage.usage(), orders / 1000
    to_paid = stage.seconds_to_paid()[-orders:]
    return {
        "accepted_per_second": answers.per_second,
        "post_p50_ms": percentile(answers.latencies, 50) * 1000,
        "post_p99_ms": percentile(answers.latencies, 99) * 1000,
        "paid_per_second": orders / (ended - answers.began),
        "to_paid_p50_ms": percentile(to_paid, 50) * 1000,
        "to_paid_p99_ms": percentile(to_paid, 99) * 1000,
        "cpu_seconds_per_1000": (after.cpu_seconds - usage.cpu_seconds) / thousands,
        "database_cpu_seconds_per_1000": (stage.database_cpu() - database) / thousands,
        "stubs_cpu_seconds_per_1000": (stage.stubs_cpu() - stubs) / thousands,
        "peak_memory_mib": after.peak_mib,
    }


def require_accepted(answers: load.Answers) -> None:
    """Raise Failed unless every POST was accepted: refusing is easily fast."""
    if answers.accepted != len(answers.latencies):
        raise Failed(f"not every order was accepted: {dict(answers.statuses)}")
