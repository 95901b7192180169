"""Print metrics of the code base: `python scripts/measure.py [--list] [checkout]`. Standard library only."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

PRODUCT = ("api.py", "order_service/", "consumers/", "publishers/", "deploy/", "migrations/")
#: Words that a native-speaking engineer would not write in the documentation of a library.
QUAINT = re.compile(
    r"\b(whatever|whoever|whichever|nobody|somebody|anew|lest|alike|meanwhile|for ever|innocents?|bury|buried"
    r"|let go of|is away|goes away|stands? still|stood still|given back)\b",
    re.IGNORECASE,
)
#: Internals of libraries without a leading underscore.
INTERNALS = re.compile(r"psycopg import generators|\.unreader\b|find_spec\(|pika\.data\.|struct\.error")
#: Documented members of the standard library and of SQLAlchemy that begin with an underscore.
PUBLIC = {"_asdict", "_replace", "_fields", "_mapping", "_make"}


def tracked(root: Path, *prefixes: str) -> list[Path]:
    """The Python files of a checkout below these prefixes."""
    names = subprocess.run(
        ["git", "-C", str(root), "ls-files", "*.py"], capture_output=True, text=True, check=True
    ).stdout.split()
    return [root / name for name in names if name.startswith(prefixes) and (root / name).exists()]


def lines(root: Path, *prefixes: str) -> int:
    return sum(len(path.read_text(encoding="utf-8").splitlines()) for path in tracked(root, *prefixes))


def uncontracted(root: Path) -> list[str]:
    """The product modules that no layers contract of import-linter names; api.py is checked by a test."""
    config = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    named: set[str] = set()
    for contract in config["contracts"]:
        for layer in contract.get("layers", []):
            for name in re.split(r"\s*[|:]\s*", layer):
                containers = contract.get("containers", [])
                named |= {f"{container}.{name}" for container in containers} if containers else {name}
    found = []
    for path in tracked(root, "order_service/", "consumers/", "publishers/"):
        module = ".".join(path.relative_to(root).with_suffix("").parts)
        if not module.endswith("__init__") and not any(f"{module}.".startswith(f"{name}.") for name in named):
            found.append(module)
    return found


def private_uses(root: Path) -> Iterator[str]:
    """Private attributes of libraries, and attributes of libraries that are replaced, outside vendor.py."""
    for path in tracked(root, *PRODUCT):
        if path.name == "vendor.py":
            continue
        text = path.read_text(encoding="utf-8")
        for number, line in enumerate(text.splitlines(), 1):
            if INTERNALS.search(line):
                yield f"{path.relative_to(root)}:{number} {line.strip()}"
        tree = ast.parse(text)
        imported = {
            alias.asname or alias.name.partition(".")[0]
            for node in ast.walk(tree)
            if isinstance(node, ast.Import)
            for alias in node.names
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and _is_private(node.attr) and not _is_own(node.value):
                yield f"{path.relative_to(root)}:{node.lineno} {ast.unparse(node)}"
            if isinstance(node, ast.Assign):
                for target in node.targets:
                    if isinstance(target, ast.Attribute) and _root_name(target) in imported:
                        yield f"{path.relative_to(root)}:{node.lineno} replaces {ast.unparse(target)}"


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name not in PUBLIC


def _is_own(value: ast.expr) -> bool:
    return isinstance(value, ast.Name) and value.id in ("self", "cls")


def _root_name(node: ast.expr) -> str:
    while isinstance(node, ast.Attribute):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""


def retry_loops(root: Path) -> Iterator[str]:
    """`while` loops that catch an error and wait before the next attempt."""
    for path in tracked(root, *PRODUCT):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.While | ast.For) and any(isinstance(each, ast.Try) for each in node.body):
                text = ast.unparse(node)
                if re.search(r"wait\(next\(|sleep\(|wait\(pause|wait\(delay", text):
                    yield f"{path.relative_to(root)}:{node.lineno}"


def backoffs(root: Path) -> Iterator[str]:
    """Places that compute a growing delay."""
    doubling = re.compile(r"\* 2\b.*(LAST|longest|limit|max)|<< min\(|2(\.0)? \*\* min\(|min\(.*(<<|\*\*)")
    for path in tracked(root, *PRODUCT, "sandbox/"):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if doubling.search(line):
                yield f"{path.relative_to(root)}:{number}"


def quaint(root: Path) -> Iterator[str]:
    """Lines of product, sandbox, benchmarks and English prose with a word of QUAINT."""
    here = Path(__file__).name
    prose = [*root.glob("*.md"), *root.glob("docs/*.md"), *root.glob("benchmarks/*.md")]
    for path in [*tracked(root, *PRODUCT, "sandbox/", "benchmarks/", "scripts/"), *prose]:
        if path.name in (here, "README.id.md", "CHANGELOG.md"):
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if QUAINT.search(line):
                yield f"{path.relative_to(root)}:{number} {line.strip()[:100]}"


def main() -> None:
    arguments = [each for each in sys.argv[1:] if each != "--list"]
    root = Path(arguments[0] if arguments else Path(__file__).parent.parent).resolve()
    counted = {
        "product Python (api, order_service, consumers, publishers, deploy, migrations), lines": lines(root, *PRODUCT),
        "sandbox, lines": lines(root, "sandbox/"),
        "benchmarks, lines": lines(root, "benchmarks/"),
        "tests, lines": lines(root, "tests/"),
    }
    listed = {
        "modules outside the import contract": uncontracted(root),
        "private or patched library internals outside vendor.py": list(private_uses(root)),
        "retry loops": list(retry_loops(root)),
        "backoff implementations (sandbox included)": list(backoffs(root)),
        "lines of quaint English": list(quaint(root)),
    }
    for name, number in [*counted.items(), *((name, len(found)) for name, found in listed.items())]:
        print(f"{number:>7,}  {name}")
    if "--list" in sys.argv:
        for name, found in listed.items():
            print(f"\n{name}:", *found, sep="\n  ")


if __name__ == "__main__":
    main()
