"""The generated documents are complete, self-contained and consistent with the golden samples."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner
from flask.testing import FlaskClient

from order_service.cli.main import main
from order_service.contract import asyncapi, samples, topology
from order_service.contract.events import EVENTS, OUTGOING, EventData, IncomingData, OrderEventData
from order_service.contract.schemas import data_schema, event_schema
from order_service.storage.outbox import is_mandatory
from tests.http_service import application, problem

ROOT = Path(__file__).parents[2]
GOLDEN = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in (ROOT / "tests/contracts").glob("*.json")}


@pytest.fixture
def client(tmp_path: Path) -> Iterator[FlaskClient]:
    with application(f"sqlite:///{tmp_path}/none.db") as app:
        yield app.test_client()


def objects(node: Any) -> Iterator[dict[str, Any]]:
    """Every JSON object in a document."""
    if isinstance(node, dict):
        yield node
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from objects(child)


def resolve(document: dict[str, Any], reference: str) -> Any:
    found: Any = document
    for part in reference.removeprefix("#/").split("/"):
        found = found[part]
    return found


def shape(value: Any) -> Any:
    """The names in a document in their order, without the values."""
    if isinstance(value, dict):
        return {name: shape(inner) for name, inner in value.items()}
    return [shape(each) for each in value[:1]] if isinstance(value, list) else None


def test_every_event_model_is_registered_under_its_name() -> None:
    models = {*EventData.__subclasses__(), *OrderEventData.__subclasses__(), *IncomingData.__subclasses__()}

    assert set(EVENTS.values()) == models - {OrderEventData, IncomingData}
    assert [model.__name__ for model in EVENTS.values()] == list(EVENTS)


@pytest.mark.parametrize("event_type", EVENTS)
def test_every_event_has_its_channel_its_operation_and_its_message(event_type: str) -> None:
    document = asyncapi.document()
    sent = event_type in OUTGOING

    operation = document["operations"][f"{'send' if sent else 'receive'}{event_type}"]
    channel = resolve(document, operation["channel"]["$ref"])
    message = document["components"]["messages"][event_type]

    assert operation["action"] == ("send" if sent else "receive")
    assert channel["address"] == EVENTS[event_type].routing_key
    assert channel["bindings"]["amqp"]["exchange"]["name"] == topology.published_on(event_type)
    assert message["payload"]["properties"]["type"]["const"] == event_type


@pytest.mark.parametrize("event_type", OUTGOING)
def test_an_event_is_mandatory_in_the_document_exactly_if_the_relay_publishes_it_so(event_type: str) -> None:
    row = SimpleNamespace(exchange=topology.EXCHANGE, type=event_type)

    operation = asyncapi.document()["operations"][f"send{event_type}"]

    assert operation["bindings"]["amqp"]["mandatory"] == is_mandatory(row)  # type: ignore[arg-type]


def test_each_queue_is_a_channel_with_the_messages_of_its_routing_keys() -> None:
    channels = asyncapi.document()["channels"]

    for queue in topology.BY_NAME.values():
        assert {EVENTS[name].routing_key for name in channels[queue.name]["messages"]} == set(queue.routing_keys)


def test_every_reference_can_be_resolved() -> None:
    document = asyncapi.document()

    references = [each["$ref"] for each in objects(document) if "$ref" in each]

    assert references
    assert all(resolve(document, reference) for reference in references)


@pytest.mark.parametrize("event_type", EVENTS)
def test_a_schema_needs_no_other_document(event_type: str) -> None:
    schema = data_schema(event_type)

    assert not [each for each in objects(schema) if {"$ref", "$defs", "discriminator"} & each.keys()]


@pytest.mark.parametrize("event_type", EVENTS)
def test_every_field_of_an_event_is_described(event_type: str) -> None:
    for schema in (event_schema(event_type), data_schema(event_type)):
        fields = [field for each in objects(schema) for field in dict(each.get("properties", {})).items()]

        assert fields
        assert [name for name, field in fields if not field.get("description")] == []


def test_every_type_that_a_generator_makes_has_a_title_of_its_own() -> None:
    schemas = [
        schema
        for name in EVENTS
        for schema in objects(event_schema(name))
        if isinstance(schema.get("properties"), dict)
    ]
    typed = [schema for name in EVENTS for schema in objects(event_schema(name)) if {"enum", "const"} & schema.keys()]

    titles: dict[str, Any] = {}
    for schema in (*schemas, *typed):
        assert titles.setdefault(schema["title"], schema) == schema


@pytest.mark.parametrize("event_type", EVENTS)
def test_an_example_is_exactly_what_the_model_serializes(event_type: str) -> None:
    data = samples.DATA[event_type]

    written = EVENTS[event_type].model_validate(data).model_dump(mode="json")

    assert written == data
    assert list(written) == list(data)


@pytest.mark.parametrize("event_type", EVENTS)
def test_an_example_has_the_shape_of_the_golden_sample(event_type: str) -> None:
    example = samples.event(event_type, id="1")

    expected = shape(GOLDEN[event_type])

    assert shape(example) == expected
    assert list(example) == list(expected)


@pytest.mark.parametrize("event_type", EVENTS)
def test_the_schema_requires_only_fields_of_the_golden_sample(event_type: str) -> None:
    payload = event_schema(event_type)

    golden = GOLDEN[event_type]

    assert set(payload["required"]) <= golden.keys() <= payload["properties"].keys()


def test_the_api_serves_the_document_and_every_schema(client: FlaskClient) -> None:
    served = client.get("/asyncapi.json")
    schemas = {name: client.get(f"/schemas/{name}.json") for name in EVENTS}

    assert served.get_json() == asyncapi.document()
    assert {name: answer.get_json(force=True) for name, answer in schemas.items()} == {
        name: data_schema(name) for name in EVENTS
    }
    assert {answer.mimetype for answer in schemas.values()} == {"application/schema+json"}


@pytest.mark.parametrize("name", ["Unknown", "ordercreated", "..%2Fevents", "OrderCreated.json"])
def test_an_unknown_schema_is_a_problem(client: FlaskClient, name: str) -> None:
    problem(client.get(f"/schemas/{name}.json"), 404, "not_found")


def test_the_page_shows_every_event_and_queue_and_loads_nothing(client: FlaskClient) -> None:
    page = client.get("/asyncapi").get_data(as_text=True)

    for model in EVENTS.values():
        assert f'id="{model.__name__}"' in page
        assert model.routing_key in page
    for queue in topology.BY_NAME.values():
        assert queue.dead_letters in page
    assert not [word for word in ("<script", "http://", "https://", "src=", "@import") if word in page]


@pytest.mark.parametrize("event_type", EVENTS)
def test_the_sample_command_prints_an_event_that_the_validate_command_accepts(event_type: str) -> None:
    sample = CliRunner().invoke(main, ["events", "sample", event_type.lower(), "--order", "12"])
    result = CliRunner().invoke(main, ["events", "validate", "-"], input=sample.output)

    assert json.loads(sample.output)["correlationid"] == "12"
    assert (result.exit_code, result.output) == (0, f"OK: {event_type}\n")


@pytest.mark.parametrize("option", [["--type", "OrderPaid"], ["--routing-key", "order.paid"]])
def test_bare_data_is_validated_as_the_given_type(option: list[str]) -> None:
    body = json.dumps(samples.DATA["OrderPaid"])

    result = CliRunner().invoke(main, ["events", "validate", "-", *option], input=body)

    assert (result.exit_code, result.output) == (0, "OK: OrderPaid\n")


WRONG = {
    "two fields": ('{"order_id": true, "reason": "x", "menu_id": 2}', "MenuRejected", ["data.order_id", "data.reason"]),
    "an outgoing event": (json.dumps(samples.event("OrderPaid", id="1") | {"data": {"order_id": 7}}), None,
                          ["OrderPaid", "data.total_price", "data.paid_at"]),
    "no type": ('{"order_id": 7}', None, ["type: ", "--type"]),
    "no JSON": ("{", None, ["body: is not JSON"]),
    "no object": ("[]", "OrderPaid", ["body: must be a JSON object"]),
    "NaN": ('{"order_id": 7, "payment_id": 1, "amount": NaN}', "PaymentCompleted", ["body: is not JSON"]),
    "data that is no object": ('{"specversion": "1.0", "id": "1", "type": "OrderPaid", "data": 1}', None, ["data"]),
    "a newer version": (json.dumps(samples.event("MenuRejected", id="1") | {"dataschema": "urn:x:2"}), None,
                        ["dataschema: names version 2"]),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_the_validate_command_reports_each_wrong_field(case: str) -> None:
    body, event_type, expected = WRONG[case]
    options = ["--type", event_type] if event_type else []

    result = CliRunner().invoke(main, ["events", "validate", "-", *options], input=body)

    assert result.exit_code == 1
    assert all(part in result.output for part in expected), result.output
