"""What import-linter cannot check: the single module api.py, and that no package is missing from its configuration."""

import ast
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
LINTER: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
PRODUCT = ("order_service", "consumers", "publishers")
#: Entries of the repository with Python that is not a package of the product.
OTHER_PYTHON = {"api.py", "benchmarks", "deploy", "migrations", "scripts", "tests"}
#: Data and caches; see .gitignore.
GENERATED = {"var", "node_modules", "__pycache__"}
NOT_FOR_API = {"pika", "consumers", "publishers", "sandbox", "order_service.cli"}


def imports(source: str) -> set[str]:
    """Every module that the source imports, with the packages above it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name.rsplit(".", dots)[0] for name in names for dots in range(name.count(".") + 1)}


@pytest.mark.parametrize(
    "source",
    [
        "import pika.spec",
        "from pika import spec",
        "from order_service import cli",
        "from order_service.cli.main import main",
        "def f():\n    import consumers.worker as worker",
    ],
)
def test_every_form_of_an_import_is_seen(source: str) -> None:
    assert imports(source) & NOT_FOR_API


def test_api_imports_neither_the_broker_client_nor_another_entry_point() -> None:
    found = imports((ROOT / "api.py").read_text(encoding="utf-8"))

    assert "order_service" in found
    assert not found & NOT_FOR_API


def test_no_module_of_the_product_or_the_sandbox_imports_api() -> None:
    modules = [module for package in LINTER["root_packages"] for module in (ROOT / package).rglob("*.py")]

    importing = [module for module in modules if "api" in imports(module.read_text(encoding="utf-8"))]

    assert modules
    assert importing == []


def test_every_root_package_and_root_module_is_known() -> None:
    known = {*LINTER["root_packages"], *OTHER_PYTHON, *GENERATED}
    others = [path for path in ROOT.iterdir() if path.name not in known and not path.name.startswith(".")]

    unknown = [path.name for path in others if path.suffix == ".py" or any(path.rglob("*.py"))]

    assert unknown == [], "add it to root_packages in pyproject.toml, or to OTHER_PYTHON"


def test_every_package_of_the_product_has_an_exhaustive_contract() -> None:
    modules = [module for package in PRODUCT for module in (ROOT / package).rglob("*.py")]
    packages = {".".join(module.parent.relative_to(ROOT).parts) for module in modules}

    exhaustive = [contract for contract in LINTER["contracts"] if contract.get("exhaustive")]
    covered = {container for contract in exhaustive for container in contract["containers"]}

    assert packages - covered == set()


def test_the_domain_imports_the_standard_library_only() -> None:
    domain = list((ROOT / "order_service/domain").glob("*.py"))

    found = {name.partition(".")[0] for path in domain for name in imports(path.read_text(encoding="utf-8"))}

    assert len(domain) > 3
    assert found - sys.stdlib_module_names == {"order_service"}
