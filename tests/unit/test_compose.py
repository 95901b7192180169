"""docker-compose.yml has no default password; deploy/make-env creates random ones that only the owner can read."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_compose_file_requires_every_password_and_names_the_command_that_creates_it() -> None:
    used = re.findall(r"\$\{(\w*PASSWORD)([^}]*)\}", (ROOT / "docker-compose.yml").read_text())

    assert {name for name, _ in used} == {"RABBITMQ_PASSWORD", "POSTGRES_PASSWORD"}
    assert {default for _, default in used} == {":?run deploy/make-env once"}


@pytest.mark.parametrize("page", [".gitignore", ".dockerignore"])
def test_passwords_are_neither_committed_nor_copied_into_the_image(page: str) -> None:
    assert ".env" in (ROOT / page).read_text().splitlines()


def make_env(directory: Path) -> dict[str, str]:
    (directory / "deploy").mkdir(exist_ok=True)
    shutil.copy(ROOT / "deploy" / "make-env", directory / "deploy")
    subprocess.run([directory / "deploy" / "make-env"], check=True, cwd="/")
    return dict(line.split("=") for line in (directory / ".env").read_text().splitlines())


def test_passwords_are_random_private_and_kept(tmp_path: Path) -> None:
    # when
    created = make_env(tmp_path)
    again = make_env(tmp_path)

    # then
    assert created == again
    assert created.keys() == {"RABBITMQ_PASSWORD", "POSTGRES_PASSWORD"}
    assert all(re.fullmatch("[0-9a-f]{32}", password) for password in created.values())
    assert len({*created.values()}) == 2
    assert (tmp_path / ".env").stat().st_mode & 0o777 == 0o600


def test_only_missing_passwords_are_added_to_an_existing_file(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("RABBITMQ_PORT=5673\nPOSTGRES_PASSWORD=mine\n")

    completed = make_env(tmp_path)

    assert (completed["RABBITMQ_PORT"], completed["POSTGRES_PASSWORD"]) == ("5673", "mine")
    assert completed["RABBITMQ_PASSWORD"]
