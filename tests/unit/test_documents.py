"""README.md, README.id.md and the other pages that are not generated are complete and agree with the code."""

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from order_service.config import Settings
from order_service.contract.events import EVENTS
from order_service.web.problems import KINDS
from order_service.web.routes import ROUTES
from sandbox.run import READY
from sandbox.siblings import menu, payment
from sandbox.siblings.faults import Faults

ROOT = Path(__file__).parents[2]
TWINS = ("README.md", "README.id.md")


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def outline(page: str) -> list[str]:
    """Line by line what a translation keeps: headings, table rows, entries of lists, fences."""
    marks = (re.match(r"#+ |\||- |```", line) for line in text(page).splitlines())
    return [mark[0] for mark in marks if mark]


def code(page: str) -> list[str]:
    """The code in fences, without its comments."""
    blocks = re.findall(r"^```[a-z]+\n(.*?)^```", text(page), re.MULTILINE | re.DOTALL)
    return [re.sub(r" +# .*", "", block) for block in blocks]


def prose(page: str) -> str:
    """The page without its code blocks."""
    return re.sub(r"^```.*?^```", "", text(page), flags=re.MULTILINE | re.DOTALL)


def named(page: str) -> set[str]:
    """The texts in backticks and the linked pages, except the other README."""
    quoted = re.findall(r"`([^`\n]+)`", prose(page))
    return {*quoted, *re.findall(r"\]\(([^)]+)\)", prose(page))} - set(TWINS)


@pytest.mark.parametrize("part", [outline, code, named])
def test_the_readmes_have_the_same_outline_and_code_and_name_the_same_values(part: Callable[[str], object]) -> None:
    assert part(TWINS[0]) == part(TWINS[1])


def cells(page: str) -> str:
    """All table rows."""
    return "\n".join(line for line in text(page).splitlines() if line.startswith("|"))


@pytest.mark.parametrize("page", [*TWINS, "docs/rest.md"])
def test_every_endpoint_is_in_the_table(page: str) -> None:
    listed = re.sub(r"\?[a-z_=&]+", "", cells(page))

    missing = [
        route.path
        for route in ROUTES
        if route.summary
        and f"`{route.method} {route.path.replace('{event}', '{Event}')}`" not in listed
        and f"`{route.path.replace('{event}', '{Event}')}`" not in listed
    ]

    assert missing == []


@pytest.mark.parametrize("page", TWINS)
def test_every_event_and_its_routing_key_are_in_the_table(page: str) -> None:
    listed = set(re.findall("`([^`]+)`", cells(page)))

    assert EVENTS.keys() <= listed
    assert {event.routing_key for event in EVENTS.values()} <= listed


def test_every_problem_is_documented_with_its_status() -> None:
    rows = re.findall(r"^\| ((?:`[a-z_]+` )+)\| (\d+) \|", text("docs/rest.md"), re.MULTILINE)

    documented = {code: int(status) for codes, status in rows for code in re.findall("`([a-z_]+)`", codes)}

    assert documented == {code: kind.status for code, kind in KINDS.items()}


def test_every_fault_of_the_sandbox_is_documented() -> None:
    documented = set(re.findall(r"^\| `([a-z_]+)` \| (\w+) \|", text("docs/siblings.md"), re.MULTILINE))

    known = {"Menu": Faults(menu.DECIDING).known, "Payment": Faults(payment.DECIDING).known}
    both = set(known["Menu"]) & set(known["Payment"]) - {"reject"}

    own = {(fault, who) for who, faults in known.items() for fault in faults if fault not in both}
    assert documented == {(fault, "both") for fault in both} | own


def test_make_help_lists_every_command() -> None:
    [line] = re.findall(r"^\.PHONY: (help .*)$", text("Makefile"), re.MULTILINE)

    done = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)

    assert re.findall(r"^  make ([a-z-]+) +\S", done.stdout, re.MULTILINE) == line.split()


def test_make_run_names_the_pages() -> None:
    assert {"/docs", "/asyncapi"} <= set(re.findall(r"http://localhost:{api}(/[a-z]+)\n", READY))


def anchors(page: Path) -> set[str]:
    """What GitHub lets links name: the headings, in lower case, without punctuation and with dashes for spaces."""
    headings = re.findall("^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_internal_link_has_a_target() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]

    lost = [
        f"{page.name}: {link}#{anchor}"
        for page in pages
        for link, anchor in re.findall(r"\]\(([^)#:]*)(?:#([^)]*))?\)", prose(str(page.relative_to(ROOT))))
        for target in [page.parent / link if link else page]
        if not target.exists() or (anchor and anchor not in anchors(target))
    ]

    assert lost == []


def test_every_file_and_setting_that_security_names_exists() -> None:
    quoted = set(re.findall("`([^`]+)`", text("SECURITY.md")))
    files = {each for each in quoted if re.fullmatch(r"[\w/]+\.py", each)}
    settings = {each.partition("=")[0] for each in quoted if re.fullmatch("(ORDER_)?[A-Z_]{4,}(=.*)?", each)}

    assert len(files) > 5
    assert [each for each in files if not (ROOT / each).exists() and not (ROOT / "order_service" / each).exists()] == []
    assert settings - {str(field.validation_alias) for field in Settings.model_fields.values()} == set()


def test_pictures_are_small_and_shown() -> None:
    pages = text("docs/console.md") + text("docs/board.md")
    shown = re.findall(r"!\[[^\]]+\]\(images/([^)]+)\)", pages)
    sizes = {path.name: path.stat().st_size for path in (ROOT / "docs" / "images").iterdir()}

    assert sorted(shown) == sorted(sizes)
    assert max(sizes.values()) < 150_000
