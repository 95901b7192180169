"""The files around the code that a checkout, an image and docker-compose.yml depend on."""

import os
import re
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import yaml

from order_service.contract import broker_rights
from sandbox.servers.broker_users import USERS

ROOT = Path(__file__).parents[2]
#: The role of each process in the database.
ROLES = {"migrate": "owner", "api": "api", "consumers": "consumers", "publishers": "publishers"}
PASSWORDS = {
    "POSTGRES_PASSWORD", *(user.password_variable for user in broker_rights.USERS),
    *(f"DATABASE_{role.upper()}_PASSWORD" for role in ROLES.values()),
}  # fmt: skip


def test_compose_file_requires_every_password_and_names_the_command_that_creates_it() -> None:
    used = re.findall(r"\$\{(\w*PASSWORD)([^}]*)\}", (ROOT / "docker-compose.yml").read_text())

    assert {name for name, _ in used} == PASSWORDS
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
    assert created.keys() == PASSWORDS
    assert all(re.fullmatch("[0-9a-f]{32}", password) for password in created.values())
    assert len({*created.values()}) == len(PASSWORDS)
    assert (tmp_path / ".env").stat().st_mode & 0o777 == 0o600


def test_only_missing_passwords_are_added_to_an_existing_file(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("RABBITMQ_PORT=5673\nPOSTGRES_PASSWORD=mine\n")

    completed = make_env(tmp_path)

    assert (completed["RABBITMQ_PORT"], completed["POSTGRES_PASSWORD"]) == ("5673", "mine")
    assert completed["MENU_SERVICE_PASSWORD"]


def test_existing_file_is_narrowed_to_its_owner_and_its_last_line_stays_a_line(tmp_path: Path) -> None:
    path = tmp_path / ".env"
    path.write_text("RABBITMQ_PORT=5673\nPOSTGRES_PASSWORD=mine")  # without a line break at its end
    path.chmod(0o664)

    completed = make_env(tmp_path)

    assert completed.keys() == PASSWORDS | {"RABBITMQ_PORT"}
    assert completed["POSTGRES_PASSWORD"] == "mine"
    assert path.stat().st_mode & 0o777 == 0o600


def test_compose_file_builds_the_image_once_and_limits_every_container() -> None:
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    services = compose["services"]

    assert [name for name, service in services.items() if "build" in service] == ["image"]
    for name, service in services.items():
        assert service.keys() >= {"ulimits", "logging", "stop_grace_period"}, name
        assert (service["cap_drop"], service["security_opt"]) == (["ALL"], ["no-new-privileges:true"]), name
        assert "healthcheck" in service, name
        if service["image"] == services["image"]["image"] and name != "image":
            assert service["read_only"], name
            assert "image" in _dependencies(services, name), name


def test_api_of_the_compose_file_is_published_to_this_machine_only_unless_it_requires_tokens() -> None:
    api = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]["api"]

    assert api["environment"]["ORDER_AUTH"] == "${ORDER_AUTH:-none}"
    assert all(port.startswith("127.0.0.1:") for port in api["ports"])
    assert "DATABASE_URL" in api["environment"]
    # The board asks with it what only the broker knows.
    assert api["environment"]["RABBITMQ_MANAGEMENT_URL"].startswith("http://order-operator:")
    assert "ENV HOST=0.0.0.0" in (ROOT / "Dockerfile").read_text()
    assert "ORDER_AUTH" not in re.sub("^#.*", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)


def test_monitoring_of_the_compose_file_is_optional_read_only_and_published_to_this_machine_only() -> None:
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]

    optional = {name: service for name, service in services.items() if "profiles" in service}
    assert optional.keys() == {"prometheus", "grafana"}
    for name, service in optional.items():
        assert (service["profiles"], service["read_only"]) == (["observability"], True), name
        assert all(port.startswith("127.0.0.1:") for port in service["ports"]), name
        mounted = [each.split(":") for each in service["volumes"] if each.startswith("./")]
        assert all((ROOT / path).exists() and mode == "ro" for path, _, mode in mounted), name
    assert "rabbitmq_prometheus" in (ROOT / "deploy" / "rabbitmq" / "enabled_plugins").read_text()
    assert "./deploy/rabbitmq/enabled_plugins:/etc/rabbitmq/enabled_plugins:ro" in services["rabbitmq"]["volumes"]


def test_prometheus_scrapes_the_port_and_the_services_of_the_compose_file() -> None:
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    jobs = {
        job["job_name"]: job
        for job in yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text())["scrape_configs"]
    }

    [found] = jobs["order-service"]["dns_sd_configs"]
    assert found["names"] == ["api", "consumers", "publishers"]
    assert services.keys() > set(found["names"])
    assert f"ENV ORDER_OPS_PORT={found['port']}\n" in (ROOT / "Dockerfile").read_text()


def test_each_process_of_the_compose_file_has_its_own_user_of_the_broker() -> None:
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]

    urls = {name: (service.get("environment") or {}).get("RABBITMQ_URL", "") for name, service in services.items()}

    users = {name: re.sub(r"amqp://(.*?):\$\{(\w+):.*", r"\1 \2", url) for name, url in urls.items() if url}
    assert users == {name: f"{user} {user.upper().replace('-', '_')}_PASSWORD" for name, user in USERS.items()}


def _dependencies(services: dict[str, Any], name: str) -> set[str]:
    own = set(services[name].get("depends_on", ()))
    return own.union(*(_dependencies(services, each) for each in own))


def run_healthcheck(*arguments: str, **env: str) -> int:
    command = [sys.executable, ROOT / "deploy" / "healthcheck.py", *arguments]
    return subprocess.run(command, env=os.environ | env, capture_output=True, check=False).returncode


def test_each_process_of_the_compose_file_has_its_own_role_in_the_database_and_one_service_the_administrator() -> None:
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]

    having = {name: str(each.get("environment")) for name, each in services.items()}
    logins = {name: re.findall(r"postgresql://(\w+):\$\{(\w+):", text) for name, text in having.items()}

    own = {name: [(f"order_{role}", f"DATABASE_{role.upper()}_PASSWORD")] for name, role in ROLES.items()}
    administrator = [("order_service", "POSTGRES_PASSWORD")]
    assert {name: found for name, found in logins.items() if found} == own | {"roles": administrator}
    assert {name for name, text in having.items() if "POSTGRES_PASSWORD" in text} == {"postgres", "roles"}


def test_the_health_check_of_a_container_needs_an_answer_with_200() -> None:
    with socket.create_server(("localhost", 0)) as server:
        answers = iter([b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.1 503 Service Unavailable\r\n\r\n"])

        def answer() -> None:
            for each in answers:
                connection, _ = server.accept()
                with connection:
                    connection.recv(4096)
                    connection.sendall(each)

        threading.Thread(target=answer, daemon=True).start()
        port = server.getsockname()[1]
        assert run_healthcheck(str(port), "/readyz", http_proxy="http://127.0.0.1:1") == 0
        assert run_healthcheck(str(port), "/readyz") == 1
    assert run_healthcheck(str(port), "/readyz") == 1


def test_a_container_is_healthy_if_it_is_alive_and_ready() -> None:
    paths: list[bytes] = []
    statuses = {b"/healthz": [b"200", b"200", b"503"], b"/readyz": [b"200", b"503"]}
    with socket.create_server(("localhost", 0)) as server:

        def answer() -> None:
            while True:
                connection, _ = server.accept()
                with connection:
                    paths.append(connection.recv(4096).split()[1])
                    connection.sendall(b"HTTP/1.1 %b Some\r\n\r\n" % statuses[paths[-1]].pop(0))

        threading.Thread(target=answer, daemon=True).start()
        port = str(server.getsockname()[1])
        results = [run_healthcheck(ORDER_OPS_PORT=port) for _ in range(3)]

    assert results == [0, 1, 1]
    assert paths == [b"/healthz", b"/readyz", b"/healthz", b"/readyz", b"/healthz"]


def test_scripts_have_no_crlf_in_a_checkout_of_windows(tmp_path: Path) -> None:
    # given
    source, checkout = tmp_path / "source", tmp_path / "checkout"
    source.mkdir()
    for name in (".gitattributes", "Makefile"):
        shutil.copy(ROOT / name, source)

    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
        subprocess.run(["git", *identity, *arguments], cwd=source, check=True, capture_output=True)

    # when
    for arguments in (["init"], ["add", "."], ["commit", "--message", "a"]):
        git(*arguments)
    git("clone", "--config", "core.autocrlf=true", ".", str(checkout))

    # then
    assert b"\r" not in (checkout / "Makefile").read_bytes()


def test_a_python_that_is_only_called_by_its_version_is_found(tmp_path: Path) -> None:
    # given
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("dirname", "grep", "rm", "sh"):
        (programs / name).symlink_to(shutil.which(name) or name)
    python = programs / "python3.14"
    python.write_text('#!/bin/sh\necho "$@" >>"$LOG"\n')
    python.chmod(0o755)

    # when
    environment = {"PATH": str(programs), "LOG": str(tmp_path / "log")}
    subprocess.run([ROOT / "deploy" / "make-venv", "none.txt"], cwd=tmp_path, env=environment, capture_output=True)

    # then
    assert "-m venv .venv" in (tmp_path / "log").read_text().splitlines()
