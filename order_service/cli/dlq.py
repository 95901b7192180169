"""The commands for dead letters: list, show, replay and discard them."""

import base64
import json
import os
from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import click
import structlog

from order_service import process
from order_service.cli.holding import Held, Selection, holding, publish, selected
from order_service.cli.rehearsal import rehearse
from order_service.cli.reporting import AS_JSON, ForScripts, finish, opened_database, print_json
from order_service.config import Settings
from order_service.contract import topology
from order_service.contract.dead_letters import DeadLetter
from order_service.contract.envelope import Rejection
from order_service.domain.explanation import duration
from order_service.domain.order import FINAL
from order_service.domain.saga import expires_at
from order_service.storage.orders import read_orders

log = structlog.get_logger(__name__)


@click.group()
def dlq() -> None:
    """List, show, replay and discard dead letters."""


@dlq.command("list", cls=ForScripts)
@AS_JSON
def list_letters(as_json: bool) -> None:
    """List the dead letters by queue, reason, type and sender, with the pending orders that they concern.

    Exits with 0 if there are none, with 1 if there are some, with 2 if it could not run.
    """
    settings = process.begin()
    with holding(settings, lambda held: True) as (_, found):
        letters = [held.letter for held in found]
    expiries = _expiries(settings, {letter.order_id for letter in letters if letter.order_id})
    groups: dict[tuple[str, ...], list[DeadLetter]] = defaultdict(list)
    for letter in letters:
        groups[letter.queue.dead_letters, letter.reason, letter.type, letter.sender].append(letter)
    found_groups = [_group(key, group, expiries) for key, group in sorted(groups.items())]
    if as_json:
        print_json({"dead_letters": len(letters), "groups": found_groups})
    else:
        for each in found_groups:
            click.echo(_group_text(each))
        click.echo(f"{len(letters)} dead letters", err=True)
    finish(letters)


@dlq.command(cls=ForScripts)
@click.argument("letter_id", metavar="ID")
@AS_JSON
def show(letter_id: str, as_json: bool) -> None:
    """Show the dead letters with this ID, and what a replay would do. Exits with 2 if there are none."""
    settings = process.begin()
    with holding(settings, Selection((letter_id,)).matches) as (_, found):
        letters = [held.letter for held in found]
    if not letters:
        raise click.ClickException(f"no dead letter has the id {letter_id}; `dlq list --json` shows examples of ids")
    with opened_database(settings) as database:
        outcomes = rehearse(database, settings.policy, [letter.reply for letter in letters])
    shown = [_copy(letter) | {"replay": outcome} for letter, outcome in zip(letters, outcomes, strict=True)]
    if as_json:
        print_json(shown)
        return
    for each in shown:
        click.echo("\n".join(f"{name}: {_readable(value)}" for name, value in each.items()) + "\n")


@dlq.command(cls=ForScripts)
@selected
@click.option("--edit", is_flag=True, help="Open the body of the one selected dead letter in $EDITOR first.")
@click.option("--dry-run", is_flag=True, help="Print what would follow, by the decision table, and change nothing.")
@AS_JSON
def replay(selection: Selection, edit: bool, dry_run: bool, as_json: bool) -> None:
    """Publish dead letters again, to the queue that rejected them and to no other.

    Each one is deleted after the broker has confirmed its copy. So an interrupted command loses none, and may be
    repeated: consumers recognize a message by its id. Exits with 0 if all were replayed, with 1 if some cannot be or
    none was selected, with 2 if it could not run.
    """
    settings = process.begin()
    if dry_run:
        _print_rehearsal(settings, selection, as_json)
        return
    chosen, edited = _edited(settings, selection) if edit else (None, None)
    replayed, left = 0, []
    with holding(settings, selection.matches, progress="Replaying") as (channel, found):
        channel.confirm_delivery()
        for held in found:
            if chosen and held.key != chosen.key:
                continue
            if held.letter.delivery.oversized and not chosen:
                left.append(held.letter.id)
            else:
                publish(channel, held, edited or held.letter.body, process.utc_now())
                replayed += 1
    log.info("dead letters replayed", count=replayed, left=len(left))
    if as_json:
        print_json({"replayed": replayed, "left": left})
    else:
        click.echo(f"{replayed} replayed")
        for letter_id in left:
            click.echo(
                f"left: {letter_id} is oversized, and only its beginning was kept; its sender must send it again"
            )
    finish(left or not replayed)


@dlq.command(cls=ForScripts)
@selected
@click.option("--out", type=click.Path(dir_okay=False), help="Append a copy of each to this file, as a line of JSON.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@AS_JSON
def discard(selection: Selection, out: str | None, yes: bool, as_json: bool) -> None:
    """Delete dead letters; each one is logged.

    Exits with 0 if some were discarded, with 1 if none was selected, with 2 if it could not run.
    """
    settings = process.begin()
    with holding(settings, selection.matches) as (_, found):
        keys = {held.key for held in found}
    # Without holding them: the broker closes the connection of a client that waits for an answer.
    if keys and not yes:
        click.confirm(f"Discard {len(keys)} dead letters?", abort=True, err=True)
    discarded = 0
    with holding(settings, lambda held: held.key in keys, progress="Discarding") as (channel, found):
        for held in found:
            if out:
                _append(out, _copy(held.letter))
            channel.basic_ack(held.tag)
            discarded += 1
            log.warning("dead letter discarded", queue=held.letter.queue.dead_letters, message_id=held.letter.id,
                        type=held.letter.type, order_id=held.letter.order_id, reason=held.letter.reason)  # fmt: skip
    if as_json:
        print_json({"discarded": discarded})
    else:
        click.echo(f"{discarded} discarded")
    finish(not discarded)


def _edited(settings: Settings, selection: Selection) -> tuple[Held, bytes]:
    """The one selected dead letter, and its body as the user edited it. Raises ClickException if that is not valid."""
    with holding(settings, selection.matches) as (_, found):
        chosen = list(found)
    if len(chosen) != 1:
        raise click.ClickException(f"--edit is for one dead letter, and {len(chosen)} are selected")
    letter = chosen[0].letter
    try:
        body = click.edit(letter.body.decode(), extension=".json", require_save=False)
    except UnicodeDecodeError:
        raise click.ClickException("its body is not UTF-8 text, so it cannot be edited") from None
    encoded = (body or "").strip().encode()
    properties = {name: value for name, value in letter.properties.items() if name != "content_encoding"}
    corrected = DeadLetter(letter.queue, properties | {"headers": letter.replayed_headers(process.utc_now())}, encoded)
    if isinstance(corrected.reply, Rejection) and letter.queue in topology.QUEUES:
        raise click.ClickException(f"nothing was replayed, because the edited message is not valid: {corrected.reply}")
    return chosen[0], encoded


def _print_rehearsal(settings: Settings, selection: Selection, as_json: bool) -> None:
    with holding(settings, selection.matches) as (_, found):
        letters = [held.letter for held in found]
    with opened_database(settings) as database:
        outcomes = rehearse(database, settings.policy, [letter.reply for letter in letters])
    shown = [
        {"id": letter.id, "type": letter.type, "order_id": letter.order_id, "replay": outcome}
        for letter, outcome in zip(letters, outcomes, strict=True)
    ]
    if as_json:
        print_json(shown)
    for each in () if as_json else shown:
        click.echo("{id}  {type} for order {order_id}: {replay}".format(**each))
    finish(not shown or any(outcome.startswith("dead-lettered") for outcome in outcomes))


def _expiries(settings: Settings, order_ids: set[int]) -> dict[int, datetime | None] | None:
    """When the pending ones of these orders expire; None if the database cannot be used."""
    try:
        with opened_database(settings) as database, database.reading() as connection:
            found = read_orders(connection, sorted(order_ids)) if order_ids else {}
    except click.ClickException as error:
        click.echo(f"The orders concerned are not shown: {error.message}", err=True)
        return None
    pending = (order for order in found.values() if order.state not in FINAL)
    return {order.id: expires_at(order, policy=settings.policy) for order in pending}


def _group(
    key: tuple[str, ...], letters: Sequence[DeadLetter], expiries: dict[int, datetime | None] | None
) -> dict[str, Any]:
    times = sorted(letter.at for letter in letters if letter.at)
    orders = {letter.order_id for letter in letters if letter.order_id}
    until = sorted(filter(None, (expiries[id] for id in orders if id in expiries))) if expiries else []
    return dict(zip(("queue", "reason", "type", "sender"), key, strict=True)) | {
        "count": len(letters),
        "oldest": times[0] if times else None,
        "newest": times[-1] if times else None,
        "orders": len(orders),
        "pending": None if expiries is None else len(orders & expiries.keys()),
        "pending_until": until[0] if until else None,
        "example": {"id": letters[0].id, "detail": letters[0].detail},
    }


def _group_text(group: dict[str, Any]) -> str:
    now = process.utc_now()
    ages = [duration(now - group[name]) for name in ("newest", "oldest") if group[name]] or ["unknown"]
    until = group["pending_until"]
    pending = f", {group['pending']} of {group['orders']} orders pending" if group["pending"] is not None else ""
    return (
        f"{group['queue']}  {group['reason']}  {group['type']} from {group['sender']}: {group['count']}, "
        f"{' to '.join(dict.fromkeys(ages))} old{pending}"
        + (f", the first until {until:%Y-%m-%d %H:%M:%S}Z" if until else "")
        + "\n  for example {id}: {detail}".format(**group["example"])
    )


def _copy(letter: DeadLetter) -> dict[str, Any]:
    """Everything about a dead letter, as JSON can express it."""
    try:
        body: dict[str, object] = {"body": letter.body.decode()}
    except UnicodeDecodeError:
        body = {"body_base64": base64.b64encode(letter.body).decode()}
    names = ("id", "type", "sender", "order_id", "reason", "detail", "at")
    values = {name: getattr(letter, name) for name in names}
    return values | {"queue": letter.queue.dead_letters, "properties": dict(letter.properties)} | body


def _readable(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, default=str) if isinstance(value, dict) else str(value)


def _append(path: str, copy: dict[str, Any]) -> None:
    """Write a line, and have it on the disk before the dead letter is deleted."""
    with open(path, "a", encoding="utf-8", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        file.write(json.dumps(copy, ensure_ascii=False, default=str) + "\n")
        file.flush()
        os.fsync(file.fileno())
