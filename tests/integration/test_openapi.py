"""The OpenAPI document is valid and complete, and its page loads nothing from other servers."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import jsonschema
import pytest
from flask import Flask
from flask.testing import FlaskClient
from openapi_spec_validator import OpenAPIV31SpecValidator

from order_service.web import openapi
from order_service.web.problems import KINDS
from tests.http_service import application

DOCUMENT = openapi.document(needs_tokens=True)
#: The settings with which requests need tokens.
TOKENS = {"auth": "jwt", "jwt_issuer": "https://login.example", "jwt_jwks_url": "https://login.example/jwks"}
#: Answered outside of all operations, so no operation documents them.
UNDOCUMENTED = {
    "method_not_allowed", "host_not_accepted", "unsupported_transfer_encoding", "uri_too_long",
    "header_fields_too_large", "expectation_failed",
}  # fmt: skip
OPERATIONS = [
    (f"{method.upper()} {path}", operation)
    for path, methods in DOCUMENT["paths"].items()
    for method, operation in methods.items()
]


@pytest.fixture
def app(tmp_path: Path) -> Iterator[Flask]:
    with application(f"sqlite:///{tmp_path}/none.db", **TOKENS) as app:
        yield app


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    return app.test_client()


def test_document_is_valid_openapi_3_1(client: FlaskClient) -> None:
    document = client.get("/openapi.json").json

    assert document == DOCUMENT
    assert document["openapi"] == "3.1.1"
    OpenAPIV31SpecValidator(document).validate()


def test_document_of_a_service_without_tokens_is_the_same_without_what_concerns_them(tmp_path: Path) -> None:
    with application(f"sqlite:///{tmp_path}/none.db") as app:
        document = app.test_client().get("/openapi.json").json

    OpenAPIV31SpecValidator(document).validate()
    assert document["paths"].keys() == DOCUMENT["paths"].keys()
    assert document["components"].keys() == DOCUMENT["components"].keys() - {"securitySchemes"}
    operations = [operation for methods in document["paths"].values() for operation in methods.values()]
    assert not any("security" in operation for operation in operations)
    assert not {"401", "403"} & {status for operation in operations for status in operation["responses"]}


def test_operations_name_the_scopes_of_which_one_suffices() -> None:
    needed = {
        name: re.findall("`([a-z:]+)`", operation["description"].partition(" Needs the scope ")[2])
        for name, operation in OPERATIONS
    }

    customers = ["orders", "orders:all"]
    assert {name: scopes for name, scopes in needed.items() if scopes} == {
        "POST /orders": customers,
        "GET /orders": customers,
        "GET /orders/{id}": customers,
        "DELETE /orders/{id}": customers,
        "PUT /orders/{id}/payment": ["payments"],
        "GET /orders/{id}/history": customers,
        "GET /orders/{id}/explain": customers,
        "GET /orders/{id}/events": customers,
        "GET /metrics": ["orders:all"],
    }
    assert {name: operation.get("security") for name, operation in OPERATIONS} == {
        name: [{"accessToken": []}] if scopes else None for name, scopes in needed.items()
    }
    scheme = DOCUMENT["components"]["securitySchemes"]["accessToken"]
    assert (scheme["type"], scheme["scheme"]) == ("http", "bearer")


def test_every_route_is_documented_and_nothing_else(app: Flask) -> None:
    def without_names(route: str) -> str:
        return re.sub("<[^>]+>|{[^}]+}", "{}", route)

    routes = {
        without_names(f"{method} {rule.rule}")
        for rule in app.url_map.iter_rules()
        for method in rule.methods or ()
        if method not in ("HEAD", "OPTIONS")
    }
    pages = {"GET /", "GET /docs/", "GET /docs/{}", "GET /asyncapi/", "GET /board/", "GET /board/{}"}
    of_the_board = {"GET /board/events", "GET /board/orders", "GET /board/orders/{}", "GET /board/dishes"}
    assert routes - pages - of_the_board == {without_names(name) for name, _ in OPERATIONS}


def test_every_problem_is_documented_under_its_own_status() -> None:
    shown = {
        (code, int(status))
        for _, operation in OPERATIONS
        for status, answer in operation["responses"].items()
        for code in answer.get("content", {}).get("application/problem+json", {}).get("examples", ())
    }

    assert shown == {(code, kind.status) for code, kind in KINDS.items() if code not in UNDOCUMENTED}


def test_message_of_a_problem_names_the_same_values_in_both_languages() -> None:
    def names(message: str) -> set[str]:
        return set(re.findall(r"{(\w+)}", message))

    assert {code: names(kind.english) for code, kind in KINDS.items()} == {
        code: names(kind.indonesian) for code, kind in KINDS.items()
    }


def test_requests_are_strict_and_answers_may_get_more_members_in_a_later_version() -> None:
    schemas = DOCUMENT["components"]["schemas"]

    strict = {name for name, schema in schemas.items() if "additionalProperties" in schema}

    assert strict == {"OrderRequest", "PaymentUpdate"}
    assert not any(schemas[name]["additionalProperties"] for name in strict)


def test_answers_have_the_members_of_the_original_specification() -> None:
    schemas = DOCUMENT["components"]["schemas"]

    members = ["id", "user_id", "items", "total_price", "status", "created_at"]
    assert schemas["Order"]["required"] == members
    assert list(schemas["Order"]["properties"]) == [*members, "reason", "message"]
    assert schemas["HistoryEntry"]["required"] == ["at", "type", "from", "to", "message_id"]
    assert list(schemas["HistoryEntry"]["properties"])[5:] == ["reason"]
    assert schemas["Item"]["required"] == ["id", "name", "price", "stock"]


@pytest.mark.parametrize("total", [0, 0.3, 19.99, 18000.1, 99_999_999_999.9999, None])
def test_every_total_of_four_decimals_is_valid_in_validators_that_compute_in_doubles(total: float | None) -> None:
    schema = DOCUMENT["components"]["schemas"]["OrderRequest"]

    jsonschema.Draft202012Validator(schema).validate({"user_id": 1, "menu_ids": [1], "expected_total": total})


def test_only_the_clients_own_values_are_enums_in_answers() -> None:
    """A generated client must be able to read a value that is newer than itself."""
    schemas = DOCUMENT["components"]["schemas"]

    enums = {
        f"{model}.{name}"
        for model in schemas.keys() - {"OrderRequest", "PaymentUpdate"}
        for name, schema in schemas[model].get("properties", {}).items()
        if re.search(r"'(enum|const)':", str(schema))
        or "enum" in schemas.get(schema.get("$ref", "").split("/")[-1], {})
    }

    assert enums == {"Order.status"}
    assert "order_not_found" in schemas["ProblemDetails"]["properties"]["code"]["description"]


@pytest.mark.parametrize(("name", "operation"), OPERATIONS, ids=[name for name, _ in OPERATIONS])
def test_examples_are_valid_by_their_own_schemas(name: str, operation: dict[str, Any]) -> None:
    described = [operation.get("requestBody", {}), *operation["responses"].values()]
    for content in (content for each in described for content in each.get("content", {}).values()):
        shown = [DOCUMENT["components"]["examples"][code]["value"] for code in content.get("examples", ())]
        shown += [content["example"]] if "example" in content else []
        schema = content["schema"] | {"components": DOCUMENT["components"]}
        for example in shown:
            checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
            jsonschema.validate(example, schema, jsonschema.Draft202012Validator, format_checker=checker)


@pytest.mark.parametrize("path", ["/docs", "/openapi.json", "/asyncapi", "/asyncapi.json", "/schemas/OrderPaid.json"])
def test_documents_and_pages_are_answered_as_documented(client: FlaskClient, path: str) -> None:
    answer = client.get(path)

    described = DOCUMENT["paths"][re.sub("OrderPaid", "{event}", path)]["get"]["responses"]["200"]
    assert (answer.status_code, [answer.mimetype]) == (200, list(described["content"]))


@pytest.mark.parametrize(("path", "page"), [("/", "/docs"), ("/docs/", "/docs"), ("/asyncapi/", "/asyncapi")])
@pytest.mark.parametrize("prefix", ["", "/shop"])
def test_other_addresses_of_the_pages_redirect_to_them(client: FlaskClient, path: str, page: str, prefix: str) -> None:
    answer = client.get(path)

    assert answer.status_code == 302
    # A browser resolves it against the address that it requested, with a proxy's prefix.
    assert urljoin(f"http://localhost{prefix}{path}", answer.headers["Location"]) == f"http://localhost{prefix}{page}"
    assert client.get(page).status_code == 200


@pytest.mark.parametrize("path", ["/docs", "/asyncapi"])
def test_policy_of_a_page_allows_what_it_loads_and_no_script_in_it(client: FlaskClient, path: str) -> None:
    page = client.get(path)

    loaded = re.findall(r'<(?:script|link)[^>]+(?:src|href)="([^"]+)"', page.text)
    assert loaded
    # Relative addresses are relative to /, where both pages are.
    statuses = {each: client.get(f"/{each.lstrip('/')}").status_code for each in loaded if each != "data:,"}
    assert statuses == dict.fromkeys(statuses, 200)
    assert not re.search(r"<style|<script>| style=| on\w+=", page.text)
    directives = dict(part.strip().split(" ", 1) for part in page.headers["Content-Security-Policy"].split(";"))
    assert directives["default-src"] == directives["frame-ancestors"] == "'none'"
    assert directives.get("script-src", "'self'") == "'self'"
    assert "'self'" in directives["style-src"]


def test_page_loads_nothing_from_other_servers(client: FlaskClient) -> None:
    # given
    page = client.get("/docs")

    # when
    loaded = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    start = client.get("/docs/start.js").text
    style = client.get("/docs/swagger-ui.css").text

    # then
    assert {
        "docs/start.js",
        "docs/swagger-ui.css",
        "docs/docs.css",
        "docs/swagger-ui-bundle.js",
        "openapi.json",
    } <= set(loaded)
    assert [path for path in loaded if ":" in path or path.startswith("/")] == []
    assert {path: client.get(f"/{path}").status_code for path in loaded} == dict.fromkeys(loaded, 200)
    assert 'url: "openapi.json"' in start
    assert "validatorUrl: null" in start
    # A token that is pasted into the page is forgotten when it is closed.
    assert "persistAuthorization" not in start
    assert not re.search(r"@import|url\(\s*['\"]?(?!['\"]?data:)", style)
    assert "<script>" not in page.text
    policy = page.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "http" not in policy


@pytest.mark.parametrize(
    ("path", "style", "scrolled"),
    [("/docs", "/docs/docs.css", ".opblock-body"), ("/asyncapi", "/docs/asyncapi.css", ".scroll")],
)
def test_wide_tables_of_a_page_scroll_inside_a_phone(client: FlaskClient, path: str, style: str, scrolled: str) -> None:
    page = client.get(path).text

    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in page
    assert style.lstrip("/") in page
    assert re.search(re.escape(scrolled) + r"[^{}]*{[^}]*overflow-x: auto", client.get(style).text)


@pytest.mark.parametrize("name", ["nothing.js", "..", "%2e%2e%2fopenapi.py", "swagger-ui.css.map"])
def test_no_other_file_is_served(client: FlaskClient, name: str) -> None:
    assert client.get(f"/docs/{name}").status_code == 404
