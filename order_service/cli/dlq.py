"""The commands for dead letters: list, show, replay and discard them."""

import base64
import json
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import islice
from typing import Any

import click
import structlog

from order_service import process
from order_service.cli.holding import Matches, holding, publish, selected, selection
from order_service.cli.open_database import open_database
from order_service.cli.rehearsal import BATCH, rehearse
from order_service.cli.reporting import ForScripts, Report, counted, encoded
from order_service.config import Settings
from order_service.contract import topology
from order_service.contract.dead_letters import DeadLetter
from order_service.contract.envelope import Rejection
from order_service.domain.explanation import duration
from order_service.domain.order import FINAL
from order_service.domain.saga import expires_at
from order_service.storage.orders import read_orders

log = structlog.get_logger(__name__)
#: How many orders are read at once.
ORDERS_READ = 1000


@click.group()
def dlq() -> None:
    """List, show, replay and discard dead letters."""


@dlq.command("list", cls=ForScripts)
def list_letters() -> Report:
    """List the dead letters by queue, reason, type and sender, with the pending orders that they concern.

    Exits with 0 if there are none, with 1 if there are some, with 2 if it could not run.
    """
    settings = process.begin()
    groups: dict[tuple[str, ...], _Group] = {}
    with holding(settings, selection(everything=True)) as (_, letters):
        for letter in letters:
            key = letter.queue.dead_letters, letter.reason, letter.type, letter.sender
            groups.setdefault(key, _Group(letter)).add(letter)
    expiries = _expiries(settings, set().union(*(group.orders for group in groups.values())))
    found = [_shown(key, group, expiries) for key, group in sorted(groups.items(), key=lambda each: each[0])]
    total = sum(group.count for group in groups.values())
    value, note = {"dead_letters": total, "groups": found}, counted(total, "dead letter")
    return Report(value, map(_group_text, found), note, has_findings=bool(total))


@dlq.command(cls=ForScripts)
@click.argument("letter_id", metavar="ID")
def show(letter_id: str) -> Report:
    """Show the dead letters with this ID, and what a replay would do. Exits with 2 if there are none."""
    found = list(_rehearsed(process.begin(), selection([letter_id])))
    if not found:
        raise click.ClickException(f"no dead letter has the id {letter_id}; `dlq list --json` shows examples of ids")
    shown = [_copy(letter) | {"replay": outcome} for letter, outcome in found]
    lines = ("\n".join(f"{name}: {_text(value)}" for name, value in each.items()) + "\n" for each in shown)
    return Report(shown, lines)


@dlq.command(cls=ForScripts)
@selected
@click.option("--edit", is_flag=True, help="Open the body of the one selected dead letter in $EDITOR first.")
@click.option("--dry-run", is_flag=True, help="Print what would follow, by the decision table, and change nothing.")
def replay(edit: bool, dry_run: bool, **criteria: Any) -> Report:
    """Publish dead letters again, to the queue that rejected them and to no other.

    Each one is deleted after the broker has confirmed its copy. So an interrupted command loses none, and may be
    repeated: consumers recognize a message by its id. Exits with 0 if all were replayed, with 1 if some cannot be, none
    was selected or an ID was not found, with 2 if it could not run.
    """
    if edit and dry_run:
        raise click.UsageError("--dry-run is for the dead letters as they are; with --edit, leave it out")
    settings, matches = process.begin(), selection(**criteria)
    if dry_run:
        return _dry_run(settings, matches, criteria["ids"])
    edited = None
    if edit:
        matches, edited = _edited(settings, matches)
    replayed, left, seen = 0, [], set()
    with holding(settings, matches, progress="Replaying") as (channel, found):
        channel.confirm_delivery()
        for letter in found:
            seen.add(letter.id)
            if letter.delivery.oversized and edited is None:
                left.append(letter.id)
            else:
                publish(channel, letter, letter.body if edited is None else edited, process.utc_now())
                replayed += 1
    log.info("dead letters replayed", count=replayed, left=len(left))
    why = "is oversized, and only its beginning was kept; its sender must send it again"
    lines = [f"{replayed} replayed", *(f"left: {letter_id} {why}" for letter_id in left)]
    is_incomplete = _name_missing(criteria["ids"], seen)
    has_findings = is_incomplete or bool(left) or not replayed
    return Report({"replayed": replayed, "left": left}, lines, has_findings=has_findings)


@dlq.command(cls=ForScripts)
@selected
@click.option("--out", type=click.Path(dir_okay=False), help="Append a copy of each to this file, as a line of JSON.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def discard(out: str | None, yes: bool, **criteria: Any) -> Report:
    """Delete dead letters; each one is logged.

    Exits with 0 if they were discarded, with 1 if none was selected or an ID was not found, with 2 if it could not run.
    """
    settings = process.begin()
    with holding(settings, selection(**criteria)) as (_, found):
        chosen = [(letter.key, letter.id) for letter in found]
    is_incomplete = _name_missing(criteria["ids"], {letter_id for _, letter_id in chosen})
    # Without holding them: the broker closes the connection of a client that waits for an answer.
    if chosen and not yes:
        click.confirm(f"Discard {counted(len(chosen), 'dead letter')}?", abort=True, err=True)
    keys = {key for key, _ in chosen}
    discarded = 0
    with holding(settings, lambda letter: letter.key in keys, progress="Discarding") as (channel, found):
        for letter in found:
            if out:
                _append(out, _copy(letter))
            channel.basic_ack(letter.tag)
            discarded += 1
            log.warning("dead letter discarded", queue=letter.queue.dead_letters, message_id=letter.id,
                        type=letter.type, order_id=letter.order_id, reason=letter.reason)  # fmt: skip
    return Report({"discarded": discarded}, [f"{discarded} discarded"], has_findings=is_incomplete or not discarded)


def _rehearsed(settings: Settings, matches: Matches) -> Iterator[tuple[DeadLetter, str]]:
    """Dead letters, and what a replay of each would do; a batch at a time: all may not fit in memory."""
    with open_database(settings.database_url) as database, holding(settings, matches) as (_, letters):
        while batch := list(islice(letters, BATCH)):
            yield from zip(batch, rehearse(database, settings.policy, [each.reply for each in batch]), strict=True)


def _name_missing(ids: Sequence[str], found: Collection[str]) -> bool:
    """Print which of these ids were not found; return whether there are any."""
    missing = [each for each in dict.fromkeys(ids) if each not in found]
    for each in missing:
        click.echo(f"not found: {each}", err=True)
    return bool(missing)


def _dry_run(settings: Settings, matches: Matches, ids: Sequence[str]) -> Report:
    shown = [
        {"id": letter.id, "type": letter.type, "order_id": letter.order_id, "replay": outcome}
        for letter, outcome in _rehearsed(settings, matches)
    ]
    lines = ("{id}  {type} for order {order_id}: {replay}".format(**each) for each in shown)
    is_in_vain = any(str(each["replay"]).startswith("dead-lettered") for each in shown)
    is_incomplete = _name_missing(ids, {str(each["id"]) for each in shown})
    note = counted(len(shown), "dead letter")
    return Report(shown, lines, note, has_findings=is_in_vain or is_incomplete or not shown)


def _edited(settings: Settings, matches: Matches) -> tuple[Matches, bytes]:
    """The one selected dead letter, and its body as the user edited it. Raises ClickException if that is not valid."""
    with holding(settings, matches) as (_, found):
        chosen = list(found)
    if len(chosen) != 1:
        raise click.ClickException(f"--edit is for one dead letter, and {len(chosen)} are selected")
    key, letter = chosen[0].key, chosen[0]
    try:
        body = click.edit(letter.body.decode(), extension=".json", require_save=False)
    except UnicodeDecodeError:
        raise click.ClickException("its body is not UTF-8 text, so it cannot be edited") from None
    encoded = (body or "").strip().encode()
    corrected = DeadLetter(letter.queue, letter.replayed(encoded, process.utc_now()), encoded)
    if isinstance(corrected.reply, Rejection) and letter.queue in topology.QUEUES:
        raise click.ClickException(f"nothing was replayed, because the edited message is not valid: {corrected.reply}")
    return (lambda each: each.key == key), encoded


@dataclass
class _Group:
    """What is known of dead letters that are listed together, of which one is kept as an example."""

    example: DeadLetter
    count: int = 0
    orders: set[int] = field(default_factory=set)
    oldest: datetime | None = None
    newest: datetime | None = None

    def add(self, letter: DeadLetter) -> None:
        self.count += 1
        if letter.order_id:
            self.orders.add(letter.order_id)
        if at := letter.at:
            self.oldest, self.newest = min(self.oldest or at, at), max(self.newest or at, at)


def _expiries(settings: Settings, order_ids: set[int]) -> Mapping[int, datetime | None] | None:
    """When the pending ones of these orders expire; None if the database cannot be used."""
    ids, found = sorted(order_ids), {}
    try:
        with open_database(settings.database_url) as database:
            for start in range(0, len(ids), ORDERS_READ):
                with database.reading() as connection:
                    for order in read_orders(connection, ids[start : start + ORDERS_READ], unreadable=[]).values():
                        if order.state not in FINAL:
                            found[order.id] = expires_at(order, policy=settings.policy)
    except SystemExit:
        # The reason was printed.
        click.echo("The orders concerned are not shown.", err=True)
        return None
    return found


def _shown(key: tuple[str, ...], group: _Group, expiries: Mapping[int, datetime | None] | None) -> dict[str, Any]:
    pending = group.orders & (expiries or {}).keys()
    return dict(zip(("queue", "reason", "type", "sender"), key, strict=True)) | {
        "count": group.count,
        "oldest": group.oldest,
        "newest": group.newest,
        "orders": len(group.orders),
        "pending": None if expiries is None else len(pending),
        "pending_until": min(filter(None, map((expiries or {}).get, pending)), default=None),
        "example": {"id": group.example.id, "detail": group.example.detail},
    }


def _group_text(group: dict[str, Any]) -> str:
    now, until = process.utc_now(), group["pending_until"]
    ages = [duration(now - group[name]) for name in ("newest", "oldest") if group[name]] or ["unknown"]
    pending = "" if group["pending"] is None else ", {pending} of {orders} orders pending".format(**group)
    return (
        "{queue}  {reason}  {type} from {sender}: {count}, ".format(**group)
        + f"{' to '.join(dict.fromkeys(ages))} old{pending}"
        + (f", the first until {until:%Y-%m-%d %H:%M:%S}Z" if until else "")
        + "\n  for example {id}: {detail}".format(**group["example"])
    )


def _copy(letter: DeadLetter) -> dict[str, Any]:
    """Everything about a dead letter, as JSON can express it."""
    try:
        body = {"body": letter.body.decode()}
    except UnicodeDecodeError:
        body = {"body_base64": base64.b64encode(letter.body).decode()}
    names = ("id", "type", "sender", "order_id", "reason", "detail", "at")
    values = {name: getattr(letter, name) for name in names}
    return values | {"queue": letter.queue.dead_letters, "properties": dict(letter.properties)} | body


def _text(value: object) -> str:
    return json.dumps(value, default=encoded) if isinstance(value, dict) else process.printable(encoded(value))


def _append(path: str, copy: dict[str, Any]) -> None:
    """Write a line, and have it on the disk before the dead letter is deleted. Raises ClickException."""
    try:
        with open(path, "a", encoding="utf-8", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            file.write(_text(copy) + "\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise click.ClickException(
            f"--out {path}: {error.strerror}; no dead letter without a copy was deleted"
        ) from None
