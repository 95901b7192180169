"""api.py is one module, which import-linter cannot watch; what it may import is watched here."""

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            found.add((node.module or "").split(".")[0])
    return found


def test_the_api_knows_neither_the_broker_nor_the_other_edges() -> None:
    assert not imported(ROOT / "api.py") & {"pika", "consumers", "publishers", "sandbox"}


def test_nothing_imports_the_api() -> None:
    product = [*ROOT.glob("order_service/**/*.py"), *ROOT.glob("consumers/*.py"), *ROOT.glob("publishers/*.py")]
    assert product
    assert not [path for path in product if "api" in imported(path)]
