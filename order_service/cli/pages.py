"""The text of the generated pages docs/saga.md, docs/settings.md and docs/metrics.md."""

from order_service.config import Settings
from order_service.contract.event_tables import table
from order_service.domain.messages import Message
from order_service.domain.order import FINAL, MAX_PAYMENTS, MAX_RESERVATIONS, State
from order_service.domain.saga import DECISIONS, Rule
from order_service.metrics import METRICS

MEANINGS = {
    State.AWAITING_MENU: "placed, waiting for the menu's reply",
    State.AWAITING_MENU_PREPAID: "paid before the menu replied",
    State.AWAITING_PAYMENT: "stock reserved and priced, waiting for the payment",
    State.PAID: "stock reserved, and paid with the right amount",
    State.FAILED: "cannot be served, for the reason in `reason`; stock and payments are compensated",
    State.CANCELLED: "cancelled by the client; stock and payments are compensated",
}
#: The documented names of messages that are not events.
NAMES = {
    "ReportPaid": "PUT paid", "ReportFailed": "PUT failed", "ReportPending": "PUT pending", "Cancel": "cancel (DELETE)",
    "MenuDeadline": "menu deadline", "PaymentDeadline": "payment deadline",
}  # fmt: skip
SETTINGS_INTRO = """# Settings

Environment variables, read once at start. If a variable is invalid, the process prints its name and exits with
status 2. This page is generated from `order_service/config.py`: `python -m order_service settings > docs/settings.md`.
`broker definitions` also reads the passwords of the broker's users, and `database roles --apply` those of the roles of
the database: [rights.md](rights.md).

This program reads no other variable, but its libraries read some by their own rules:

- libpq, `PGPASSFILE`, `PGSSLMODE`, `PGAPPNAME` and [the other `PG*`](https://www.postgresql.org/docs/current/libpq-envars.html):
  what a `postgresql://` URL leaves open.
- prometheus_client, `PROMETHEUS_MULTIPROC_DIR`: with several API workers, `deploy/gunicorn.conf.py` sets it to a new
  directory. Do not set it: yours would be used as it is, with the metrics of former processes.
- OpenSSL, `SSL_CERT_FILE` and `SSL_CERT_DIR`: the CAs for `https://`. gunicorn, `GUNICORN_CMD_ARGS`: its options.

`http_proxy`, `https_proxy`, `all_proxy` and `no_proxy` are not used: sibling services and the keys of the issuer
(`ORDER_JWT_JWKS_URL`) are requested directly, so they must be reachable without a proxy.

"""
METRICS_INTRO = """# Metrics

What each process exports at `/metrics` of its `ORDER_OPS_PORT` ([monitoring.md](monitoring.md)), beside the Prometheus
library's own `process_` and `python_` metrics; without that setting, the API exports its part at `/metrics` of `PORT`.
This page is generated from `order_service/metrics.py`: `python -m order_service metrics > docs/metrics.md`.

A metric appears when it has its first value. The API's are the sums of all its processes. The gauges are read from the
database at a scrape, at most every 5 s; each publisher process exports the same ones, so use `max()` for several of
them, and `sum()` for counters and histograms.

"""
INTRO = """# The saga

What each message does to an order in each state. This page is generated from the decision table in
`order_service/domain/saga.py`: `python -m order_service saga > docs/saga.md`.

The outcome for a client's request is in parentheses: `done` returns 200, `remembered` 202 and `refused` 409.
"""
INVARIANTS = f"""## Invariants

*The first of these events ends a pending order*: a MenuRejected; a PaymentFailed or PUT failed while no payment is
known; a cancel; the menu deadline before a valid MenuReserved; the payment deadline after one; a MenuReserved at a
price other than `expected_total`; or the arrival of the second of a valid MenuReserved and a payment, judged by the
first payment. A free order, whose total is 0, needs no payment. A failed attempt beside a completed payment decides
nothing.
Nothing else changes the status or the reason, and a later reservation or payment is only compensated.

A deadline waits for an event that was never handed to a working broker, but not for one that the broker returned. When
an order is as old as `ORDER_LIFETIME_SECONDS`, its deadline passes in any case.

A failed or cancelled order compensates its accepted reservation and every payment; a paid order compensates every
reservation and payment but its own. Each compensation is requested under one id until the sibling confirms it.

An order records at most {MAX_RESERVATIONS} reservations and {MAX_PAYMENTS} payments with different ids. A message
with one more is dead-lettered (`too_many`) and changes nothing: no compensation is requested for it.
"""


def saga_page() -> str:
    """The text of docs/saga.md."""
    states = ([f"`{state}`", state.status, MEANINGS[state]] for state in State)
    cells = ([_name(message), *map(_cell, rules)] for message, rules in DECISIONS.items())
    parts = [INTRO, "## States\n", table(["state", "status", "meaning"], states), "## Decisions\n"]
    parts += [table(["message", *State], cells), "## Transitions\n", _diagram(), INVARIANTS]
    return "\n".join(parts)


def settings_page() -> str:
    """The text of docs/settings.md."""
    rows = []
    for field in Settings.model_fields.values():
        default = "" if field.default in (None, "") else f"`{field.default}`"
        rows.append([f"`{field.validation_alias}`", default, " ".join((field.description or "").split())])
    return SETTINGS_INTRO + table(["variable", "default", "meaning"], rows)


def metrics_page() -> str:
    """The text of docs/metrics.md."""
    rows = (
        [f"`{metric.name}`", metric.kind, ", ".join(f"`{label}`" for label in metric.labels), metric.processes,
         metric.meaning]
        for metric in METRICS
    )  # fmt: skip
    return METRICS_INTRO + table(["metric", "type", "labels", "processes", "meaning"], rows)


def _name(message: type[Message]) -> str:
    return NAMES.get(message.__name__, message.__name__)


def _cell(rule: Rule) -> str:
    return f"{rule.text} ({rule.outcome})" if rule.outcome else rule.text


def _diagram() -> str:
    arrows: dict[tuple[State, State], list[str]] = {}
    for message, rules in DECISIONS.items():
        for before, rule in zip(State, rules, strict=True):
            for after in rule.to:
                if after != before:
                    arrows.setdefault((before, after), []).append(_name(message))
    transitions = [f"{before} --> {after} : {', '.join(names)}" for (before, after), names in arrows.items()]
    ends = [f"{state} --> [*]" for state in State if state in FINAL]
    lines = [f"[*] --> {State.AWAITING_MENU} : POST /orders", *transitions, *ends]
    return "```mermaid\nstateDiagram-v2\n" + "".join(f"    {line}\n" for line in lines) + "```\n"
