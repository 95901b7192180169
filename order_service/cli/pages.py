"""The pages that are printed from the code: docs/saga.md and docs/settings.md."""

from order_service.config import Settings, environment_name
from order_service.contract.event_tables import table
from order_service.domain.messages import Message
from order_service.domain.order import FINAL, State
from order_service.domain.saga import DECISIONS, Rule

MEANINGS = {
    State.AWAITING_MENU: "placed; the menu has not answered",
    State.AWAITING_MENU_PREPAID: "paid before the menu answered",
    State.AWAITING_PAYMENT: "stock reserved and priced; the payment is awaited",
    State.PAID: "both replies are in and the amount is right",
    State.FAILED: "will not be served; `reason` says why, and everything taken is given back",
    State.CANCELLED: "the client cancelled; everything taken is given back",
}
#: What is no event on the wire goes by the name its sender knows.
NAMES = {
    "ReportPaid": "PUT paid", "ReportFailed": "PUT failed", "ReportPending": "PUT pending", "Cancel": "cancel (DELETE)",
    "MenuDeadline": "menu deadline", "PaymentDeadline": "payment deadline",
}  # fmt: skip
SETTINGS_INTRO = """# The settings

Environment variables, read once at start; one that cannot be used is named and ends the process with status 2. This
page is printed by `python -m order_service settings > docs/settings.md`.

"""
INTRO = """# The saga

What every message does to an order, in every state. This page is printed from the table the service decides by
(`order_service/domain/saga.py`) and not written by hand: `python -m order_service saga > docs/saga.md`.

In parentheses stands the outcome for a REST caller: `done` is answered 200, `remembered` 202, `refused` 409.
"""
INVARIANT = """## What always holds

*A pending order ends at its first deciding moment*: a MenuRejected; a PaymentFailed or PUT failed; a cancel; the menu
deadline before a usable MenuReserved; the payment deadline after one; a MenuReserved at a price other than
`expected_total`; or the moment a usable MenuReserved and a payment are both in, judged by the first payment. Nothing
else changes status or reason, and what comes later can only be given back.

Every end (failed, cancelled) gives back the accepted reservation and every payment, and so does a paid order with what
it does not need: each under one id, once, repeated under that id until the sibling confirms it.
"""


def saga_page() -> str:
    """The whole page, ending with a newline."""
    states = ([f"`{state}`", state.status, MEANINGS[state]] for state in State)
    cells = ([_name(message), *map(_cell, rules)] for message, rules in DECISIONS.items())
    parts = [INTRO, "## The states\n", table(["state", "status", "meaning"], states), "## The decisions\n"]
    parts += [table(["message", *State], cells), "## The ways through\n", _diagram(), INVARIANT]
    return "\n".join(parts)


def settings_page() -> str:
    """docs/settings.md: every environment variable of the service, ending with a newline."""
    rows = []
    for name, field in Settings.model_fields.items():
        default = "" if field.default is None else f"`{field.default}`"
        rows.append([f"`{environment_name(name)}`", default, field.description or ""])
    return SETTINGS_INTRO + table(["variable", "default", "meaning"], rows)


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
    ways = [f"{before} --> {after} : {', '.join(names)}" for (before, after), names in arrows.items()]
    ends = [f"{state} --> [*]" for state in State if state in FINAL]
    lines = [f"[*] --> {State.AWAITING_MENU} : POST /orders", *ways, *ends]
    return "```mermaid\nstateDiagram-v2\n" + "".join(f"    {line}\n" for line in lines) + "```\n"
