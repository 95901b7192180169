"""Check a sibling service: the rules that concern all replies, and the run through the table of rules."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from order_service.cli.conversation import Broken, NotChecked
from order_service.cli.menu_rules import MENU_RULES, MenuTalk
from order_service.cli.payment_rules import PAYMENT_RULES, PaymentTalk
from order_service.cli.talk import QUIET_SECONDS, Rule, Talk
from order_service.contract.envelope import Delivery, binary_attributes
from order_service.contract.events import INCOMING
from order_service.contract.topology import EXCHANGE, published_on


def _replies_are_valid(talk: Talk) -> None:
    for each in talk.received:
        if each.reply is None:
            raise Broken(sent=_about(talk, each.order_id), came=each.text, expected="a valid reply")


def _replies_are_published_as_agreed(talk: Talk) -> str | None:
    for each in talk.received:
        if each.reply is None:
            continue
        properties, key = each.delivery.properties, INCOMING[each.reply.type].routing_key
        own_exchange = published_on(each.reply.type)
        came = {
            "exchange": each.exchange,
            "routing key": each.delivery.routing_key,
            "delivery mode": properties.get("delivery_mode"),
            "expiration": properties.get("expiration"),
            "id": "present" if _own_id(each.delivery) else "absent",
        }
        exchange = EXCHANGE if each.exchange == EXCHANGE else own_exchange
        agreed = {"exchange": exchange, "routing key": key, "delivery mode": 2, "expiration": None, "id": "present"}
        if came != agreed:
            raise Broken(sent=_about(talk, each.order_id), came=f"{each.text}, {came}", expected=str(agreed))
    if any(each.exchange == EXCHANGE for each in talk.received):
        return f"on the shared exchange {EXCHANGE}, which a broker with rights refuses: see docs/siblings.md"
    return None


def _own_id(delivery: Delivery) -> object:
    """The id that the sender gave a message."""
    with suppress(ValueError, TypeError):
        event = json.loads(delivery.body)
        if "specversion" in event:
            return event.get("id")
    return delivery.properties.get("message_id") or binary_attributes(delivery).get("id")


def _ids_are_used_once(talk: Talk) -> None:
    known: dict[tuple[str, str], tuple[int, str]] = {}
    for each in talk.received:
        if each.reply:
            content = each.order_id, each.reply.digest
            if known.setdefault((each.reply.type, each.reply.message_id), content) != content:
                expected = f"another id than {each.reply.message_id}, which an earlier message has"
                raise Broken(sent=_about(talk, each.order_id), came=each.text, expected=expected)


def _requests_get_one_reply(talk: Talk) -> None:
    talk.listen(QUIET_SECONDS)
    requests = Counter((each.order_id, each.type) for each in talk.sent)
    for (order_id, request), count in requests.items():
        found = talk.replies_to(request, order_id)
        if len(found) > count and order_id not in talk.uncounted:
            came = f"{len(found)} replies, with the ids {', '.join(reply.message_id for reply in found)}"
            raise Broken(
                sent=f"{count} times {_about(talk, order_id, request)}", came=came, expected=f"{count} replies"
            )


def _replies_come_in_time(talk: Talk) -> None:
    seconds, sent = talk.slowest
    if seconds > talk.wanted.reply_seconds:
        raise Broken(sent=sent, came=f"its reply after {seconds:.1f} s", expected=f"{talk.wanted.reply_seconds:g} s")


def _about(talk: Talk, order_id: int, request: str | None = None) -> str:
    return next(each.text for each in talk.sent if each.order_id == order_id and request in (None, each.type))


_ANSWERS = ("answers",)
_COMMON = (
    Rule("valid", None, "every reply is a valid event", _replies_are_valid),
    Rule("published", 8, "replies are persistent, do not expire, and have an id, their exchange and their routing key",
         _replies_are_published_as_agreed, _ANSWERS),
    Rule("ids", 7, "each message has an id of its own", _ids_are_used_once, _ANSWERS),
    Rule("once", 7, "each request gets one reply", _requests_get_one_reply, _ANSWERS),
    Rule("in_time", None, "replies come in time", _replies_come_in_time, _ANSWERS),
)  # fmt: skip
#: The rules by sibling, in the order in which they are checked; the numbers are those of docs/siblings.md.
RULES: Mapping[str, tuple[Rule, ...]] = {"menu": (*MENU_RULES, *_COMMON), "payment": (*PAYMENT_RULES, *_COMMON)}
TALKS: Mapping[str, type[Talk]] = {"menu": MenuTalk, "payment": PaymentTalk}


@dataclass(frozen=True)
class Result:
    """The outcome of one rule: passed, failed or skipped; the other fields say why."""

    rule: str
    number: int | None
    text: str
    outcome: str
    reason: str = ""
    sent: str = ""
    came: str = ""
    expected: str = ""


def check(talk: Talk, rules: Iterable[Rule]) -> Iterator[Result]:
    """Check each rule, and yield its result at once."""
    holding: set[str] = set()
    for rule in rules:
        about: dict[str, Any] = {"rule": rule.name, "number": rule.number, "text": rule.text}
        if missing := [name for name in rule.needs if name not in holding]:
            yield Result(**about, outcome="skipped", reason=f"{missing[0]} did not pass")
            continue
        talk.begin()
        try:
            note = rule.check(talk)
        except NotChecked as reason:
            result = Result(**about, outcome="skipped", reason=str(reason))
        except Broken as error:
            result = Result(**about, outcome="failed", sent=error.sent, came=error.came, expected=error.expected)
        else:
            holding.add(rule.name)
            result = Result(**about, outcome="passed", reason=note or "")
        yield result
        # What a rule leaves reserved or paid must not change the next one's.
        for order_id in talk.orders:
            with suppress(Broken):
                talk.give_back(order_id, None)
            if not talk.replies_to(talk.undo, order_id):
                break
