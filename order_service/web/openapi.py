"""The OpenAPI document, generated from the routes, the models of requests and responses, and the kinds of problems.

https://spec.openapis.org/oas/v3.1.1.html
"""

from collections.abc import Iterable
from http import HTTPStatus

from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaValue, models_json_schema
from pydantic_core import core_schema

from order_service.contract.schemas import UntitledFields
from order_service.web.examples import PROBLEMS
from order_service.web.problems import KINDS, Problem, ProblemDetails
from order_service.web.routes import HEADER_SCHEMAS, HEADERS, PATH_PARAMETERS, ROUTES, Answer, Json, Route

_SCHEMA = "#/components/schemas/{model}"
_RATE_LIMIT = ("RateLimit", "RateLimit-Policy")
_TAGS = {"Orders": "Orders, from placing to paying or cancelling.", "Service": "Probes, metrics and documentation."}
_HEADERS_BY_STATUS = {401: ["WWW-Authenticate"], 429: [*_RATE_LIMIT, "Retry-After"], 503: ["Retry-After"]}
_SCHEME_NAME = "accessToken"
_TOKEN: Json = {
    "type": "http",
    "scheme": "bearer",
    "bearerFormat": "JWT",
    "description": "An access token (RFC 9068). Its scope `orders` allows to place orders for the user who is its "
    "subject, and to read, follow, list and cancel them; `orders:all` the same for every user; `payments` to report "
    "payments.",
}


class _Plain(UntitledFields):
    """A generator that leaves out the titles and null defaults that pydantic adds."""

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        made = super().default_schema(schema)
        return {name: value for name, value in made.items() if (name, value) != ("default", None)}


def document(*, needs_tokens: bool) -> Json:
    """Build the document, which takes a few milliseconds. `needs_tokens`: describe who may send which request."""
    documented = [route if needs_tokens else route.without_tokens() for route in ROUTES if route.summary]
    paths: dict[str, Json] = {}
    for route in documented:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    models = {answer.model for route in documented for answer in route.answers.values()}
    models |= {route.body for route in documented} | {ProblemDetails}
    _, schemas = models_json_schema(
        [(model, "validation") for model in models if model], schema_generator=_Plain, ref_template=_SCHEMA
    )
    components: Json = {"securitySchemes": {_SCHEME_NAME: _TOKEN}} if needs_tokens else {}
    codes = sorted({code for route in documented for code in route.all_problems})
    examples = {code: {"value": PROBLEMS.get(code, Problem(code)).details(english=False)} for code in codes}
    return {
        "openapi": "3.1.1",
        "info": {
            "title": "Order Service",
            "version": "1.0",
            "description": "Processes the orders of a restaurant until they are paid, failed or cancelled. "
            "Errors are RFC 9457 problems with a stable `code`; an unsupported method is answered 405.",
            "license": {"name": "MIT", "identifier": "MIT"},
            "contact": {"name": "The maintainers of the Order Service"},
        },
        # Relative to the document, also behind a proxy that puts a prefix before all paths.
        "servers": [{"url": "."}],
        "tags": [{"name": name, "description": description} for name, description in _TAGS.items()],
        # Required by linters to say that an operation without its own list needs no credentials.
        "security": [],
        "paths": paths,
        "components": {"schemas": schemas["$defs"], "examples": examples, **components},
    }


def _operation(route: Route) -> Json:
    described: Json = {
        "operationId": route.operation_id,
        "summary": route.summary,
        "description": route.description,
        "tags": ["Orders" if route.path.startswith("/orders") else "Service"],
        "parameters": [*_in_path(route.path), *_in_query(route.query), *_in_headers(route.headers)],
    }
    if route.scopes:
        # OpenAPI 3.1 may name them in `security` too, but linters accept that for other types of schemes only.
        described["description"] += f" Needs the scope {' or '.join(f'`{scope}`' for scope in route.scopes)}."
        described["security"] = [{_SCHEME_NAME: []}]
    if route.body:
        content = {"schema": _reference(route.body), "example": route.example}
        described["requestBody"] = {"required": True, "content": {"application/json": content}}
    answers: dict[str, Json] = {str(status): _success(answer) for status, answer in route.answers.items()}
    for status in sorted({KINDS[code].status for code in route.all_problems}):
        answers[str(status)] = _failure(status, [code for code in route.all_problems if KINDS[code].status == status])
    if route.is_rate_limited:
        for answer in answers.values():
            answer["headers"] = {name: _header(name) for name in _RATE_LIMIT} | answer["headers"]
    return described | {"responses": answers}


def _in_path(path: str) -> Iterable[Json]:
    for name, parameter in PATH_PARAMETERS.items():
        if f"{{{name}}}" in path:
            yield {"name": name, "in": "path", "required": True, **parameter}


def _in_query(model: type[BaseModel] | None) -> Iterable[Json]:
    properties = model.model_json_schema(schema_generator=_Plain)["properties"] if model else {}
    for name, schema in properties.items():
        description = schema.pop("description")
        # A query has no null; the parameter is absent instead.
        alternatives = [part for part in schema.pop("anyOf", ()) if part != {"type": "null"}]
        yield {"name": name, "in": "query", "description": description, "schema": schema | dict(*alternatives)}


def _in_headers(names: Iterable[str]) -> Iterable[Json]:
    for name in (*names, "Accept-Language", "X-Request-ID"):
        yield {"name": name, "in": "header", **_header(name)}


def _header(name: str) -> Json:
    return {"description": HEADERS[name], "schema": HEADER_SCHEMAS.get(name, {"type": "string"})}


def _success(answer: Answer) -> Json:
    described: Json = {"description": answer.description, "headers": _required(*answer.headers)}
    described["headers"] |= {name: _header(name) for name in answer.optional_headers}
    if answer.media_type:
        content: Json = {"schema": _reference(answer.model) if answer.model else answer.schema}
        if answer.example is not None:
            content["example"] = answer.example
        described["content"] = {answer.media_type: content}
    return described


def _failure(status: int, codes: list[str]) -> Json:
    examples = {code: {"$ref": f"#/components/examples/{code}"} for code in codes}
    content = {"application/problem+json": {"schema": _reference(ProblemDetails), "examples": examples}}
    headers = _required(*_HEADERS_BY_STATUS.get(status, ()))
    return {"description": HTTPStatus(status).phrase, "headers": headers, "content": content}


def _required(*names: str) -> Json:
    return {name: {"required": True, **_header(name)} for name in (*names, "X-Request-ID")}


def _reference(model: type[BaseModel]) -> Json:
    return {"$ref": _SCHEMA.format(model=model.__name__)}
