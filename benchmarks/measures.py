"""What is measured on a deployed system. Each measure returns its figures, with their units in their names."""

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from benchmarks import load, servers
from benchmarks.deployment import PREFER, STUBS, Deployment, RunFailed
from benchmarks.load import Responses
from benchmarks.results import Figures, percentile
from benchmarks.system import Message, Protocol

#: Connections of the clients in general, and in the wait measure.
CONNECTIONS, WAITING_CONNECTIONS = 16, 64
#: The low rate of the idle measure, in orders per second.
IDLE_PER_SECOND = 50.0
#: The worker measure ends after this time even if replies are left: the rate is the same.
WORKER_SECONDS = 30.0


@dataclass(frozen=True)
class Effort:
    """How much each run does."""

    #: Of the orders that a system specifies for an end-to-end run.
    share_of_orders: float = 1.0
    #: For each of the two rates of the idle measure.
    paced_seconds: float = 15.0
    replies: int = 20_000
    #: Ended orders in the tables.
    old_orders: tuple[int, ...] = (10_000, 1_000_000, 5_000_000)
    #: Replies in the queues, and rows in the outbox.
    backlog: int = 100_000
    copies: tuple[int, ...] = (1, 2, 4)


FULL = Effort()
QUICK = Effort(0.2, paced_seconds=4, replies=4_000, old_orders=(10_000, 100_000), backlog=10_000, copies=(1, 2))


def end_to_end(deployment: Deployment, effort: Effort, *, connections: int = CONNECTIONS) -> Figures:
    """POST orders as fast as they are answered, with respond-async, and wait until all are paid."""
    orders = int(deployment.system.orders * effort.share_of_orders)
    usage, stubs, database = deployment.usage(), deployment.usage(STUBS), deployment.database_cpu()
    responses, ended = _post_until_paid(deployment, [0.0] * orders, connections=connections)
    after, thousands = deployment.usage(), orders / 1000
    return {
        "accepted_per_second": orders / (responses.ended - responses.began),
        **_percentiles("post", responses.latencies),
        "paid_per_second": orders / (ended - responses.began),
        **_percentiles("to_paid", deployment.seconds_to_paid()[-orders:]),
        "cpu_seconds_per_1000": (after.cpu_seconds - usage.cpu_seconds) / thousands,
        "database_cpu_seconds_per_1000": (deployment.database_cpu() - database) / thousands,
        "stubs_cpu_seconds_per_1000": (deployment.usage(STUBS).cpu_seconds - stubs.cpu_seconds) / thousands,
        "peak_memory_mib": after.peak_mib,
    }


def wait(deployment: Deployment, effort: Effort) -> Figures:
    """Compare 64 connections that wait for the menu's reply with 64 that do not, one after the other."""
    orders = int(deployment.system.orders * effort.share_of_orders)
    without = end_to_end(deployment, effort, connections=WAITING_CONNECTIONS)["paid_per_second"]
    responses, ended = _post_until_paid(deployment, [0.0] * orders, connections=WAITING_CONNECTIONS, prefer=None)
    per_second = orders / (ended - responses.began)
    return {
        "respond_async_paid_per_second": without,
        "wait_paid_per_second": per_second,
        "wait_to_respond_async": per_second / without,
        "share_of_201": responses.statuses[201] / orders,
        **_percentiles("wait_post", responses.latencies),
    }


def idle(deployment: Deployment, effort: Effort) -> Figures:
    """The time from POST to paid at a low rate and at half of full load, which a burst between the two determines."""
    low = _paced(deployment, IDLE_PER_SECOND, effort)
    rate = end_to_end(deployment, effort)["paid_per_second"] / 2
    half = _paced(deployment, rate, effort)
    return {**_percentiles("idle", low), "half_of_full_per_second": rate, **_percentiles("half", half)}


def worker(deployment: Deployment, effort: Effort, *, workers: int = 1) -> Figures:
    """The rate at which workers process a backlog of replies, while no other process of the system runs."""
    half = effort.replies // 2
    deployment.system.preload(deployment.database_url, half, half)
    servers.settle(deployment.database_url)
    deployment.publish(_replies(deployment.system.protocol, half))
    with contextlib.ExitStack() as stack:
        names = deployment.start(deployment.system.worker, stack, copies=workers)
        first, last = _working_samples(deployment, half, names)
        peak_mib = deployment.usage(*names).peak_mib
    done = last.processed - first.processed
    return {
        "replies_per_second": done / (last.at - first.at),
        "cpu_us_per_reply": (last.cpu_seconds - first.cpu_seconds) / done * 1_000_000,
        "peak_memory_mib": peak_mib,
    }


def _percentiles(prefix: str, seconds: list[float]) -> Figures:
    return {f"{prefix}_p{percent}_ms": percentile(seconds, percent) * 1000 for percent in (50, 99)}


def _post_until_paid(
    deployment: Deployment, due_times: Sequence[float], *, connections: int = CONNECTIONS, prefer: str | None = PREFER
) -> tuple[Responses, float]:
    """The responses to these POSTs, and the moment at which all of their orders are paid."""
    before = deployment.paid()
    responses = load.post_orders(
        deployment.servers.port, due_times, connections=connections, prefer=prefer, users=deployment.system.users()
    )
    if not responses.statuses.keys() <= {200, 201, 202}:  # a rejected order costs less than an accepted one
        raise RunFailed(f"not every order was accepted: {dict(responses.statuses)}")
    return responses, deployment.wait_until(deployment.paid, before + len(due_times), what="paid orders")


def _paced(deployment: Deployment, per_second: float, effort: Effort) -> list[float]:
    orders, began = int(per_second * effort.paced_seconds), time.monotonic()
    _post_until_paid(deployment, [began + n / per_second for n in range(orders)])
    return deployment.seconds_to_paid()[-orders:]


def _replies(protocol: Protocol, half: int) -> Iterator[Message]:
    """MenuReserved for the first half of the preloaded orders and PaymentCompleted for the other half, alternately."""
    for order_id in range(1, half + 1):
        yield protocol.menu_reserved(order_id)
        yield protocol.payment_completed(half + order_id)


class _Sample(NamedTuple):
    """A moment of the worker measure: the replies processed until then, and the CPU seconds of the workers."""

    at: float
    processed: int
    cpu_seconds: float


def _working_samples(deployment: Deployment, half: int, names: list[str]) -> tuple[_Sample, _Sample]:
    """The first and the last sample during the work, so that neither the start nor the idle end counts."""
    goal, samples = 2 * half, list[_Sample]()

    def sample() -> int:
        # The clock and the CPU time are read first: counting takes a while.
        now, cpu_seconds = time.monotonic(), deployment.usage(*names).cpu_seconds
        processed = deployment.reserved() - half + deployment.paid()
        if processed and (not samples or processed > samples[-1].processed):
            samples.append(_Sample(now, processed, cpu_seconds))
        return goal if samples and now - samples[0].at > WORKER_SECONDS else processed

    deployment.wait_until(sample, goal, what="replies")
    # The sample that reaches the goal may be taken some time after the last reply.
    working = [each for each in samples if each.processed < goal]
    if len(working) < 2:
        raise RunFailed(f"{goal} replies were processed between two samples; more replies are needed")
    return working[0], working[-1]
