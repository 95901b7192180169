"""The commands for the teams of sibling services."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from decimal import Decimal
from typing import Any

import click
import pika

from order_service import process
from order_service.cli import conformance
from order_service.cli.broker import SIBLING_QUEUES, by_declaring, open_channel
from order_service.cli.conformance import Result
from order_service.cli.conversation import Wanted
from order_service.contract import topology
from order_service.contract.events import MAX_ID, exact_decimal

_ID, _SECONDS = click.IntRange(1, MAX_ID), click.FloatRange(0, min_open=True)
_COLOURS = {"passed": "green", "failed": "red", "skipped": "yellow"}


def _prices(_context: click.Context, _option: click.Parameter, dishes: Iterable[str]) -> Mapping[int, Decimal]:
    prices = {}
    for dish in dishes:
        menu_id, _, price = dish.partition("=")
        try:
            prices[int(menu_id)] = exact_decimal(price)
        except ValueError:
            raise click.BadParameter(f"{dish!r} is not a dish and its price, such as 1=18000") from None
    if len(prices) != 2:
        raise click.UsageError("give --dish twice, for two different dishes")
    return prices


def _amount(_context: click.Context, _option: click.Parameter, text: str) -> Decimal:
    try:
        return exact_decimal(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


@click.group()
def siblings() -> None:
    """Check the services of other teams."""


# fmt: off
@siblings.command(context_settings={"show_default": True})
@click.argument("sibling", type=click.Choice(list(conformance.RULES)))
@click.option("--dish", "prices", metavar="ID=PRICE", callback=_prices, multiple=True, default=("1=18000", "2=20000"),
              help="A dish in stock and its price; give two.")
@click.option("--unknown-dish", "unknown_id", type=_ID, default=MAX_ID, help="A menu id that does not exist.")
@click.option("--sold-out", "sold_out_id", type=_ID, help="A dish that is sold out. By default, one portion more of "
              "the second dish is ordered than there is.")
@click.option("--amount", callback=_amount, default="38000.5", help="The amount to charge.")
@click.option("--user", "user_id", type=_ID, default=1, help="The user who orders.")
@click.option("--queue", help="The sibling's queue, to count its consumers. Default: menu-service.orders or "
              "payment-service.orders.")
@click.option("--reply-seconds", type=_SECONDS, default=2, help="How long a reply may take.")
@click.option("--wait-seconds", type=_SECONDS, default=10, help="How long a reply is waited for.")
@click.option("--kill", "kill_pid", metavar="PID", type=click.IntRange(2), help="Kill this process of the sibling "
              "during a burst of requests. It must be started again within a minute, by its supervisor or by you.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object; the progress goes to standard error.")
def check(sibling: str, queue: str | None, as_json: bool, **wanted: Any) -> None:
    # fmt: on
    """Check a running SIBLING, menu or payment, against the rules of docs/siblings.md.

    Plays the Order Service on the broker at RABBITMQ_URL: sends requests with order ids from 2000000000 on, and judges
    the replies. Prints a line for each rule. Exits with 0 if no rule failed, with 1 if one did, with 2 if the check
    could not run.

    Needs a virtual host without the queues of an Order Service. Do not run it against a sibling in production: stock is
    reserved and money is charged, and what is given back depends on the sibling.
    """
    try:
        results = _run(sibling, Wanted(**wanted, queue=queue or SIBLING_QUEUES[sibling]), to_stderr=as_json)
    except click.ClickException as error:
        error.show()
        raise SystemExit(2) from error
    counts = {outcome: sum(each.outcome == outcome for each in results) for outcome in _COLOURS}
    if as_json:
        click.echo(json.dumps({"sibling": sibling, **counts, "rules": [asdict(each) for each in results]}, indent=2))
    click.echo(", ".join(f"{count} {outcome}" for outcome, count in counts.items()), err=as_json)
    if counts["failed"]:
        raise SystemExit(1)


def _run(sibling: str, wanted: Wanted, *, to_stderr: bool) -> list[Result]:
    remedy = "The check needs a login with all rights, on the broker of a test installation."
    results = []
    with open_channel(process.begin(), role="siblings check", remedy=remedy) as channel:
        _require_no_order_service(channel.connection)
        talk = conformance.TALKS[sibling](channel, wanted)
        click.echo(f"Checking {sibling} with the orders after {talk.first_id}", err=True)
        for result in conformance.check(talk, conformance.RULES[sibling]):
            _show(result, to_stderr=to_stderr)
            results.append(result)
    return results


def _require_no_order_service(connection: pika.BlockingConnection) -> None:
    """Exit with 2 if a queue of the Order Service exists: the replies, about unknown orders, would end up in it."""
    if found := [queue.name for queue in topology.BY_NAME.values() if by_declaring(connection, queue.name).exists]:
        process.refuse(
            f"{found[0]} exists on this virtual host, so an Order Service uses it: the replies to the check would stay "
            "in its queues. Run the check and the sibling on a virtual host of their own (`rabbitmqctl add_vhost "
            "check`, and a RABBITMQ_URL that ends with /check)."
        )


def _show(result: Result, *, to_stderr: bool) -> None:
    outcome = click.style(f"{result.outcome:<8}", fg=_COLOURS[result.outcome])
    number = f" (rule {result.number})" if result.number else ""
    reason = f": {result.reason}" if result.reason else ""
    click.echo(f"{outcome} {result.rule:<18} {result.text}{number}{reason}", err=to_stderr)
    if result.outcome == "failed":
        for name in ("sent", "came", "expected"):
            lines = getattr(result, name).replace("\n", "\n" + " " * 19)
            click.echo(f"         {name + ':':<9} {lines}", err=to_stderr)
