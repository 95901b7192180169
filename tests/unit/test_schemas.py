"""docs/schemas matches the code, and no change of a schema breaks a sibling that was written against it."""

import copy
import json
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import jsoncompat
import pytest
from click.testing import CliRunner

from order_service.cli.main import main
from order_service.contract.compatibility import breaking_changes
from order_service.contract.events import EVENTS, INCOMING
from order_service.contract.schemas import data_schema

Schema = dict[str, Any]
Edit = Callable[[Schema], object]
COMMITTED = {
    path.stem: json.loads(path.read_text(encoding="utf-8"))
    for path in (Path(__file__).parents[2] / "docs" / "schemas").glob("*.json")
}


def changed(event_type: str, edit: Edit) -> tuple[Schema, Schema]:
    """A schema before and after an edit."""
    old = copy.deepcopy(data_schema(event_type))
    new = copy.deepcopy(old)
    edit(new)
    return old, new


def fields(schema: Schema) -> Schema:
    found: Schema = schema["properties"]
    return found


def drop(name: str) -> Edit:
    return lambda schema: (fields(schema).pop(name), schema["required"].remove(name))


def add(name: str, *, required: bool) -> Edit:
    return lambda schema: (
        fields(schema).update({name: {"type": "string"}}),
        schema["required"].extend([name] * required),
    )


def change(name: str, **more: Any) -> Edit:
    return lambda schema: fields(schema)[name].update(more)


def remove_keyword(name: str, keyword: str) -> Edit:
    return lambda schema: fields(schema)[name].pop(keyword)


def make(name: str, **schema: Any) -> Edit:
    return lambda old: fields(old).update({name: schema})


def inside(edit: Edit) -> Edit:
    """The edit, made in the entries of `items`."""
    return lambda schema: edit(fields(schema)["items"]["items"])


#: Keywords without meaning for validity, and those that hold the others together.
ANNOTATIONS = {"$schema", "$id", "title", "description", "default", "properties"}
#: Breaking edits, each with the path of the field.
BREAKING: dict[str, tuple[str, str, Edit]] = {
    "input: a field is removed": ("PaymentFailed", "data.payment_id", lambda s: fields(s).pop("payment_id")),
    "input: a field in a list is removed": ("MenuReserved", "data.items[].price", inside(drop("price"))),
    "input: a field is required now": ("MenuReserved", "data.x", lambda s: s["required"].append("x")),
    "input: a new field is required": ("MenuRejected", "data.why", add("why", required=True)),
    "input: one in a list": ("MenuReserved", "data.items[].unit", inside(add("unit", required=True))),
    "input: another type": ("StockReleased", "data.order_id", make("order_id", type="string")),
    "input: one type fewer": ("PaymentCompleted", "data.payment_id", change("payment_id", type="string")),
    "input: no longer null": ("PaymentFailed", "data.payment_id", make("payment_id", type=["string", "integer"])),
    "input: only whole numbers": (
        "PaymentCompleted",
        "data.amount",
        make("amount", type="integer", minimum=0, exclusiveMaximum=10**11),
    ),
    "input: a lower limit": ("PaymentFailed", "data.reason", change("reason", maxLength=100)),
    "input: a new limit": ("PaymentFailed", "data.reason", change("reason", minLength=1)),
    "input: fewer entries": ("MenuReserved", "data.items", change("items", maxItems=50)),
    "input: one value fewer": ("MenuRejected", "data.reason", change("reason", enum=["out_of_stock"])),
    "input: only certain values": ("PaymentFailed", "data.reason", change("reason", enum=["card"])),
    "input: a pattern": ("StockReleased", "data.release_id", change("release_id", pattern="^R")),
    "input: a higher minimum": ("StockReleased", "data.order_id", change("order_id", minimum=2)),
    "input: an exclusive minimum": ("StockReleased", "data.order_id", change("order_id", exclusiveMinimum=1)),
    "input: a lower maximum": ("StockReleased", "data.order_id", change("order_id", maximum=100)),
    "input: a lower exclusive maximum": ("PaymentCompleted", "data.amount", change("amount", exclusiveMaximum=10)),
    "input: more entries": ("MenuReserved", "data.items", change("items", minItems=2)),
    "input: entries that differ": ("MenuReserved", "data.items", change("items", uniqueItems=True)),
    "input: only multiples": ("PaymentCompleted", "data.amount", change("amount", multipleOf=0.01)),
    "input: a format": ("PaymentFailed", "data.reason", change("reason", format="date-time")),
    "input: one value only": ("PaymentFailed", "data.reason", change("reason", const="card")),
    "input: no unknown fields": ("PaymentFailed", "data", lambda s: s.update(additionalProperties=False)),
    "input: no unknown fields in a list": (
        "MenuReserved",
        "data.items[]",
        inside(lambda s: s.update(additionalProperties={"type": "string"})),
    ),
    "input: fewer fields": ("PaymentFailed", "data", lambda s: s.update(maxProperties=3)),
    "input: more fields": ("PaymentFailed", "data", lambda s: s.update(minProperties=3)),
    "input: a limit beside alternatives": ("PaymentFailed", "data.payment_id", change("payment_id", maxLength=9)),
    **{
        f"input: the unknown keyword {keyword}": (
            "PaymentFailed",
            "data",
            lambda s, keyword=keyword, value=value: s.update({keyword: value}),
        )
        for keyword, value in {
            "not": {"required": ["x"]},
            "allOf": [{"required": ["x"]}],
            "oneOf": [{"required": ["x"]}],
            "propertyNames": {"maxLength": 9},
            "dependentRequired": {"reason": ["x"]},
            "if": {"required": ["x"]},
            "patternProperties": {"x": False},
            "unevaluatedProperties": False,
            "$ref": "#/x",
        }.items()
    },
    "output: any entries": ("OrderCreated", "data.menu_ids[]", remove_keyword("menu_ids", "items")),
    "output: a field is removed": ("OrderPaid", "data.paid_at", drop("paid_at")),
    "output: one may be absent": ("OrderPaid", "data.payment_id", lambda s: s["required"].remove("payment_id")),
    "output: another type": ("OrderCreated", "data.menu_ids[]", change("menu_ids", items={"type": "string"})),
    "output: null too": ("OrderPaid", "data.total_price", change("total_price", type=["number", "null"])),
    "output: larger values": ("PaymentRequested", "data.amount", change("amount", exclusiveMaximum=10**15)),
    "output: no limit": ("OrderCreated", "data.user_id", remove_keyword("user_id", "maximum")),
    "output: no time": ("OrderCreated", "data.reply_by", remove_keyword("reply_by", "format")),
}

#: Edits that existing siblings do not notice.
HARMLESS: dict[str, tuple[str, Edit]] = {
    "nothing": ("OrderCreated", lambda s: None),
    "other words": ("OrderCreated", lambda s: s.update(description="Otherwise.")),
    "input: a new field that may be absent": ("MenuRejected", add("why", required=False)),
    "input: no longer required": ("MenuReserved", inside(lambda s: s["required"].remove("price"))),
    "input: one type more": ("StockReleased", change("order_id", type=["integer", "string"])),
    "input: fractions too": ("StockReleased", change("order_id", type="number")),
    "input: one value more": ("MenuRejected", change("reason", enum=["menu_not_found", "out_of_stock", "closed"])),
    "input: a higher limit": ("PaymentFailed", change("reason", maxLength=1000)),
    "input: no limit": ("PaymentFailed", remove_keyword("reason", "pattern")),
    "input: any type": ("PaymentFailed", make("reason")),
    "input: unknown fields are allowed by name": ("PaymentFailed", lambda s: s.update(additionalProperties=True)),
    "output: only known fields": ("OrderPaid", lambda s: s.update(additionalProperties=False)),
    "output: a new field": ("OrderPaid", add("tip", required=True)),
    "output: never null": ("OrderPaid", make("payment_id", type="string")),
    "output: smaller values": ("PaymentRequested", change("amount", exclusiveMaximum=10)),
    "another version": (
        "MenuRejected",
        lambda s: s.update({"$id": "urn:restaurant:schema:MenuRejected:2"}, required=[]),
    ),
}


@pytest.mark.parametrize("case", BREAKING)
def test_breaking_change_is_found(case: str) -> None:
    event_type, path, edit = BREAKING[case]
    old, new = changed(event_type, edit)

    found = breaking_changes(old, new, incoming=event_type in INCOMING)

    assert {line.split(":")[0] for line in found} == {path}


@pytest.mark.parametrize("case", HARMLESS)
def test_harmless_change_is_accepted(case: str) -> None:
    event_type, edit = HARMLESS[case]
    old, new = changed(event_type, edit)

    assert breaking_changes(old, new, incoming=event_type in INCOMING) == []


# jsoncompat, an independent implementation of the comparison, has the same opinion.

#: What jsoncompat 0.3, for Python 3.11, or 0.5 accepts. A removed input field is valid as an unknown one, but ignored.
NOT_SEEN = {
    "input: a field is removed",
    "input: a field in a list is removed",
    "input: a pattern",
    "input: a lower exclusive maximum",
    "input: only multiples",
    "input: a format",
    "input: no unknown fields in a list",
    "input: the unknown keyword if",
    "input: the unknown keyword patternProperties",
    "input: the unknown keyword unevaluatedProperties",
    "input: the unknown keyword $ref",
    "output: no time",
}
#: What jsoncompat 0.3 refuses: before the change, any value of the unknown field was valid.
NOT_ACCEPTED = {"input: a new field that may be absent"}
#: Keywords without which jsoncompat sees no difference, or whose loss is not judged by the values alone.
JUDGED_OTHERWISE = {"format", "pattern", "items", "type"}


def is_compatible(old: Schema, new: Schema, *, incoming: bool) -> bool:
    """Whether jsoncompat accepts the change. It takes `$id` for a reference, which it cannot resolve."""
    texts = [json.dumps({name: value for name, value in each.items() if name != "$id"}) for each in (old, new)]
    return jsoncompat.check_compat(*texts, "deserializer" if incoming else "serializer")


@pytest.mark.parametrize("case", [case for case in BREAKING if case not in NOT_SEEN])
def test_jsoncompat_finds_the_breaking_change(case: str) -> None:
    event_type, _, edit = BREAKING[case]

    assert not is_compatible(*changed(event_type, edit), incoming=event_type in INCOMING)


@pytest.mark.parametrize("case", [case for case in HARMLESS if case not in NOT_ACCEPTED | {"another version"}])
def test_jsoncompat_accepts_the_harmless_change(case: str) -> None:
    event_type, edit = HARMLESS[case]

    assert is_compatible(*changed(event_type, edit), incoming=event_type in INCOMING)


def nested(schema: Schema) -> Iterator[Schema]:
    """The schema and all schemas in it."""
    yield schema
    inner = [*schema.get("properties", {}).values(), *schema.get("anyOf", []), schema.get("items")]
    yield from chain.from_iterable(nested(each) for each in inner if each is not None)


def without_one_keyword(event_type: str) -> Iterator[tuple[str, Schema]]:
    """Each keyword that a schema of the event contains, and the whole schema without it."""
    schema = copy.deepcopy(data_schema(event_type))
    for part in nested(schema):
        for keyword in part.keys() - ANNOTATIONS:
            value = part.pop(keyword)
            yield keyword, schema
            part[keyword] = value


@pytest.mark.parametrize("event_type", EVENTS)
def test_jsoncompat_has_the_same_opinion_on_each_keyword_of_a_schema(event_type: str) -> None:
    schema, compared = data_schema(event_type), 0
    for keyword, wider in without_one_keyword(event_type):
        for old, new in ((schema, wider), (wider, schema)):
            for incoming in (True, False):
                found = breaking_changes(old, new, incoming=incoming)
                accepted = is_compatible(old, new, incoming=incoming)

                compared += 1
                assert accepted or found, f"{keyword}: not found"
                assert accepted == (not found) or keyword in JUDGED_OTHERWISE, (keyword, found)
    assert compared > 15


def test_command_writes_every_schema_and_may_be_repeated(tmp_path: Path) -> None:
    for _ in range(2):
        written = CliRunner().invoke(main, ["schemas", str(tmp_path)])

        assert written.exit_code == 0, written.output
    printed = {path.stem: json.loads(path.read_text()) for path in tmp_path.iterdir()}
    assert printed == COMMITTED, "docs/schemas is out of date; run: python -m order_service schemas docs/schemas"


def test_command_does_not_overwrite_a_schema_that_siblings_rely_on(tmp_path: Path) -> None:
    _, promised = changed("OrderPaid", add("tip", required=True))
    (tmp_path / "OrderPaid.json").write_text(json.dumps(promised))

    refused = CliRunner().invoke(main, ["schemas", str(tmp_path)])

    assert refused.exit_code == 1
    assert "OrderPaid data.tip: the field was removed" in refused.output
    assert [path.name for path in tmp_path.iterdir()] == ["OrderPaid.json"]
    assert json.loads((tmp_path / "OrderPaid.json").read_text()) == promised
