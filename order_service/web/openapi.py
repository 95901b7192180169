"""GET /openapi.json, made from the operations, the models that validate, and the table of problems.

https://spec.openapis.org/oas/v3.1.1.html
"""

from collections.abc import Iterable
from http import HTTPStatus
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaValue, models_json_schema
from pydantic_core import core_schema

from order_service.contract.schemas import UntitledFields
from order_service.web import problems
from order_service.web import responses as schemas
from order_service.web.examples import PROBLEMS
from order_service.web.problems import KINDS, Problem
from order_service.web.routes import HEADER_SCHEMAS, HEADERS, OPERATIONS, PATH, Answer, Operation

Json = dict[str, Any]
_SCHEMA, _EXAMPLE = "#/components/schemas/{model}", "#/components/examples/{code}"


class _Plain(UntitledFields):
    """Without the titles and null defaults that pydantic adds."""

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        made = super().default_schema(schema)
        return {name: value for name, value in made.items() if (name, value) != ("default", None)}


def document() -> Json:
    """The whole document; making it takes some milliseconds."""
    paths: dict[str, Json] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _operation(operation)
    models = {answer.model for operation in OPERATIONS for answer in operation.answers.values()}
    models |= {operation.body for operation in OPERATIONS} | {schemas.Problem}
    wanted = sorted((model for model in models if model), key=lambda model: model.__name__)
    _, made = models_json_schema(
        [(model, "validation") for model in wanted], schema_generator=_Plain, ref_template=_SCHEMA
    )
    codes = sorted({code for operation in OPERATIONS for code in operation.may_fail})
    return {
        "openapi": "3.1.1",
        "info": {
            "title": "Order Service",
            "version": "1.0",
            "description": "Takes a restaurant's orders and follows them until they are paid, failed or cancelled. "
            "Errors are RFC 9457 problems with a stable `code`; another method is answered 405.",
        },
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {"schemas": made["$defs"], "examples": {code: {"value": _problem(code)} for code in codes}},
    }


def _operation(operation: Operation) -> Json:
    described: Json = {
        "operationId": operation.id,
        "summary": operation.summary,
        "tags": ["Orders" if operation.path.startswith("/orders") else "Service"],
        "parameters": [*_in_path(operation.path), *_in_query(operation.query), *_in_headers(operation.headers)],
    }
    if operation.body:
        content = {"schema": _reference(operation.body), "example": operation.example}
        described["requestBody"] = {"required": True, "content": {"application/json": content}}
    answers = {str(status): _success(answer) for status, answer in operation.answers.items()}
    for status in sorted({KINDS[code].status for code in operation.may_fail}):
        answers[str(status)] = _failure(status, [code for code in operation.may_fail if KINDS[code].status == status])
    return described | {"responses": answers}


def _in_path(path: str) -> Iterable[Json]:
    for name, parameter in PATH.items():
        if f"{{{name}}}" in path:
            yield {"name": name, "in": "path", "required": True, **parameter}


def _in_query(model: type[BaseModel] | None) -> Iterable[Json]:
    properties = model.model_json_schema(schema_generator=_Plain)["properties"] if model else {}
    for name, schema in properties.items():
        description = schema.pop("description")
        # A query knows no null: what may be null is left out.
        alternatives = [part for part in schema.pop("anyOf", ()) if part != {"type": "null"}]
        yield {"name": name, "in": "query", "description": description, "schema": schema | dict(*alternatives)}


def _in_headers(names: Iterable[str]) -> Iterable[Json]:
    for name in (*names, "Accept-Language", "X-Request-ID"):
        yield {"name": name, "in": "header", **_header(name)}


def _header(name: str) -> Json:
    return {"description": HEADERS[name], "schema": HEADER_SCHEMAS.get(name, {"type": "string"})}


def _success(answer: Answer) -> Json:
    described: Json = {"description": answer.says, "headers": _given(*answer.headers)}
    described["headers"] |= {name: _header(name) for name in answer.may_have}
    if answer.media_type:
        content: Json = {"schema": _reference(answer.model) if answer.model else answer.schema}
        if answer.example is not None:
            content["example"] = answer.example
        described["content"] = {answer.media_type: content}
    return described


def _failure(status: int, codes: list[str]) -> Json:
    content = {
        "schema": _reference(schemas.Problem),
        "examples": {code: {"$ref": _EXAMPLE.format(code=code)} for code in codes},
    }
    return {
        "description": HTTPStatus(status).phrase,
        "headers": _given(*(["Retry-After"] if status == 503 else [])),
        "content": {"application/problem+json": content},
    }


def _given(*names: str) -> Json:
    return {name: {"required": True, **_header(name)} for name in (*names, "X-Request-ID")}


def _reference(model: type[BaseModel]) -> Json:
    return {"$ref": _SCHEMA.format(model=model.__name__)}


def _problem(code: str) -> Json:
    return problems.body(PROBLEMS.get(code, Problem(code)), english=False)
