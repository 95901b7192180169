"""Clients generated from the OpenAPI document work against the running service, and linters find no fault in it.

Models generated from the AsyncAPI document read the samples of all events.
"""

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from order_service.contract import asyncapi, samples
from order_service.contract.events import EVENTS
from order_service.domain.order import State
from order_service.web import openapi
from tests.http_service import ServiceWith, served

ROOT = Path(__file__).parents[2]
CLIENTS = ROOT / "tests" / "clients"
NODE_MODULES, PYTHON_BIN = CLIENTS / "node_modules", ROOT / "var" / "clients-venv" / "bin"

pytestmark = [
    pytest.mark.contract,
    pytest.mark.skipif(
        not (NODE_MODULES.is_dir() and PYTHON_BIN.is_dir()), reason="needs Node.js and packages: make test-contract"
    ),
]
on_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A directory with both documents and the packages of Node.js."""
    write_document(tmp_path, needs_tokens=False)
    (tmp_path / "asyncapi.json").write_text(json.dumps(asyncapi.document()), encoding="utf-8")
    (tmp_path / "node_modules").symlink_to(NODE_MODULES)
    return tmp_path


def write_document(directory: Path, *, needs_tokens: bool) -> None:
    document = openapi.document(needs_tokens=needs_tokens)
    (directory / "openapi.json").write_text(json.dumps(document), encoding="utf-8")


def run(directory: Path, *command: Any) -> str:
    """The output of a command, which must succeed."""
    # The linters would otherwise ask for newer versions of themselves and report their use.
    quiet = {"REDOCLY_TELEMETRY": "off", "REDOCLY_SUPPRESS_UPDATE_NOTICE": "true"}
    path = f"{NODE_MODULES / '.bin'}:{PYTHON_BIN}:{os.environ['PATH']}"
    done = subprocess.run(
        list(map(str, command)),
        cwd=directory, env=os.environ | quiet | {"PATH": path}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("needs_tokens", [True, False])
def test_redocly_finds_no_error_and_no_warning(directory: Path, needs_tokens: bool) -> None:
    write_document(directory, needs_tokens=needs_tokens)

    found = json.loads(run(directory, "redocly", "lint", "openapi.json", "--extends=recommended", "--format=json"))

    assert found["totals"]["errors"] == found["totals"]["warnings"] == 0, found["problems"]


@pytest.mark.parametrize("needs_tokens", [True, False])
def test_spectral_finds_no_error_and_no_warning(directory: Path, needs_tokens: bool) -> None:
    write_document(directory, needs_tokens=needs_tokens)
    (directory / "rules.yaml").write_text('extends: ["spectral:oas"]')

    run(directory, "spectral", "lint", "openapi.json", "--ruleset=rules.yaml", "--fail-severity=hint")


@on_sqlite
def test_generated_python_client_places_follows_cancels_and_handles_a_problem(
    directory: Path, service_with: ServiceWith
) -> None:
    service = service_with()
    paid_id = service.order_in(State.PAID)
    generator = ("openapi-python-client", "generate", "--path=openapi.json", "--output-path=generated", "--meta=none")
    run(directory, *generator, "--fail-on-warning")
    (directory / "use.py").write_bytes((CLIENTS / "use.py").read_bytes())

    with served(service.app) as (host, port):
        run(directory, PYTHON_BIN / "python", "use.py", f"http://{host}:{port}", paid_id)


@on_sqlite
def test_generated_typescript_client_places_follows_cancels_and_handles_a_problem(
    directory: Path, service_with: ServiceWith
) -> None:
    service = service_with()
    paid_id = service.order_in(State.PAID)
    run(directory, "openapi-typescript", "openapi.json", "--output=generated.d.ts")
    (directory / "use.mts").write_bytes((CLIENTS / "use.mts").read_bytes())
    run(directory, "tsc", "--strict", "--target", "es2022", "--module", "nodenext", "use.mts")

    with served(service.app) as (host, port):
        run(directory, "node", "use.mjs", f"http://{host}:{port}", paid_id)


#: Names that a generator makes up for a schema without a name of its own.
MADE_UP = re.compile(r"(anonymous\w*|(data|item|model|payload|root|schema)s?)\d*", re.IGNORECASE)
NAMES = {name + part for name in EVENTS for part in ("", "Data")}
#: Those of docs/siblings.md. Without the last two, its models of lists with a title cannot be used.
DATAMODEL_OPTIONS = (
    "--input-file-type=asyncapi", "--use-title-as-name", "--collapse-root-models", "--use-annotated",
)  # fmt: skip


def test_generated_python_models_have_the_names_of_the_events_and_read_every_sample(directory: Path) -> None:
    generator = ("datamodel-codegen", "--input=asyncapi.json", "--output=models.py", "--formatters=builtin")
    run(directory, *generator, "--output-model-type=pydantic_v2.BaseModel", *DATAMODEL_OPTIONS)
    (directory / "use_models.py").write_bytes((CLIENTS / "use_models.py").read_bytes())
    (directory / "samples.json").write_text(json.dumps([samples.event(name) for name in EVENTS]), encoding="utf-8")

    run(directory, PYTHON_BIN / "python", "use_models.py", "samples.json")

    generated = set(re.findall(r"^class (\w+)", (directory / "models.py").read_text(encoding="utf-8"), re.MULTILINE))
    assert generated >= NAMES
    assert not [name for name in generated if MADE_UP.fullmatch(name)]


def typescript(name: str) -> str:
    """The sample of an event as a constant of the generated type, and one without data, which is an error."""
    sample = samples.event(name)
    return f"""import type {{ {name} }} from './models/{name}';
export const a{name}: {name} = {json.dumps(sample)};
// @ts-expect-error: data is required
export const an{name}: {name} = {json.dumps(sample | {"data": {}})};
"""


def test_generated_typescript_models_have_the_names_of_the_events_and_read_every_sample(directory: Path) -> None:
    (directory / "models.mjs").write_bytes((CLIENTS / "models.mjs").read_bytes())
    run(directory, "node", "models.mjs", "asyncapi.json", "models")
    (directory / "samples.ts").write_text("\n".join(map(typescript, EVENTS)), encoding="utf-8")

    run(directory, "tsc", "--strict", "--noEmit", "--target", "es2022", "--module", "nodenext", "samples.ts")

    generated = {path.stem for path in (directory / "models").iterdir()}
    assert generated >= NAMES
    assert not [name for name in generated if MADE_UP.fullmatch(name)]
