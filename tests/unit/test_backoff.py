"""The one backoff: delays that double up to a limit, with full jitter."""

from itertools import islice

import pytest

from order_service.backoff import Backoff, Postponed


@pytest.mark.parametrize(("failures", "delay"), [(1, 0.5), (2, 1), (3, 2), (7, 32), (8, 60), (10_000, 60)])
def test_delay_doubles_up_to_the_longest(failures: int, delay: float) -> None:
    assert Backoff(first=0.5, longest=60).delay(failures) == delay


def test_jittered_delays_stay_below_the_doubling_limit_and_differ() -> None:
    backoff = Backoff(first=1, longest=4)

    runs = [list(islice(backoff.jittered(), 5)) for _ in range(20)]

    for run in runs:
        assert all(0 <= delay <= limit for delay, limit in zip(run, (1, 2, 4, 4, 4), strict=True))
    assert len(set(map(tuple, runs))) == len(runs)
    # The delays use their whole range: the last three would stay below 2 once in 2**60 runs.
    assert max(delay for run in runs for delay in run) > 2


def test_failed_keys_are_postponed_for_their_delay_and_reported_once() -> None:
    long, short = Postponed[int](Backoff(first=60, longest=60)), Postponed[int](Backoff(first=0, longest=0))

    assert [each.add(1) for each in (long, short)] == [True, True]
    assert [each.add(1) for each in (long, short)] == [False, True]

    assert (long.current(), short.current()) == ([1], [])
