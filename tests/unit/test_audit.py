"""How many lines the audit log gets of requests that anyone can send, and what their number is reported as."""

import pytest
import structlog
from structlog.testing import CapturingLogger

from order_service.web import audit
from order_service.web.audit import PERIOD_SECONDS, Repeats


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def log(monkeypatch: pytest.MonkeyPatch) -> CapturingLogger:
    log = CapturingLogger()
    monkeypatch.setattr(audit, "log", log)
    return log


def lines(log: CapturingLogger) -> list[dict[str, object]]:
    found = [call.kwargs for call in log.calls]
    log.calls.clear()
    return found


def test_first_of_a_kind_is_logged_and_the_number_of_the_others_at_the_end_of_its_period(log: CapturingLogger) -> None:
    clock = Clock()
    repeats = Repeats(now=clock)
    for order_id in range(5):
        repeats.log("9.9.9.9", "access refused", "9.9.9.9", {"code": "token_required"}, order_id=order_id)
    repeats.log("9.9.9.9", "access refused", "9.9.9.9", {"code": "rate_limited"})
    repeats.log("8.8.8.8", "access refused", "8.8.8.8", {"code": "rate_limited"})
    kind = {"address": "9.9.9.9", "code": "token_required"}
    assert lines(log) == [
        kind | {"order_id": 0}, kind | {"code": "rate_limited"}, {"address": "8.8.8.8", "code": "rate_limited"}
    ]  # fmt: skip

    clock.now += PERIOD_SECONDS
    repeats.end_periods()
    repeats.end_periods()
    repeats.log("9.9.9.9", "access refused", "9.9.9.9", {"code": "token_required"}, order_id=7)

    assert lines(log) == [kind | {"repeated": 4}, kind | {"order_id": 7}]


def test_addresses_of_one_network_are_one_client(log: CapturingLogger) -> None:
    repeats = Repeats(now=Clock())

    for number in range(100):
        repeats.log("2001:db8::/64", "access refused", f"2001:db8::{number}", {"code": "rate_limited"})

    assert [line["address"] for line in lines(log)] == ["2001:db8::0"]


def test_further_clients_are_counted_together(log: CapturingLogger) -> None:
    clock = Clock()
    repeats = Repeats(most_lines=3, now=clock)

    for _ in range(2):
        for number in range(100):
            repeats.log(f"10.0.0.{number}", "access refused", f"10.0.0.{number}", {"code": "rate_limited"})
    addresses = [line["address"] for line in lines(log)]
    clock.now += PERIOD_SECONDS
    repeats.end_periods()

    assert addresses == ["10.0.0.0", "10.0.0.1", "10.0.0.2", "several"]
    counted = {line["address"]: line["repeated"] for line in lines(log)}
    assert counted == {"10.0.0.0": 1, "10.0.0.1": 1, "10.0.0.2": 1, "several": 2 * 97 - 1}


def test_number_has_not_the_request_id_of_the_request_that_ends_the_period(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, object]] = []
    log = CapturingLogger()
    monkeypatch.setattr(
        log, "info", lambda *_, **__: seen.append(structlog.contextvars.get_contextvars()), raising=False
    )
    monkeypatch.setattr(audit, "log", log)
    clock = Clock()
    repeats = Repeats(now=clock)

    with structlog.contextvars.bound_contextvars(request_id="r-1"):
        for _ in range(2):
            repeats.log("9.9.9.9", "access refused", "9.9.9.9", {})
        clock.now += PERIOD_SECONDS
        repeats.end_periods()

    assert seen == [{"request_id": "r-1"}, {}]
