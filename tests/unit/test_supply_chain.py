"""The scripts that look for vulnerabilities and pin images, and what is updated automatically."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import yaml

from scripts import audit, pin_images
from tests.serving import serving

ROOT = Path(__file__).parents[2]
AUDIT_PYTHON = ROOT / "var" / "audit-venv" / "bin" / "python"
NEEDS_TOOLS = pytest.mark.skipif(not AUDIT_PYTHON.exists(), reason="needs the tools of make audit")
SOUND = {"name": "flask", "version": "3.1.3", "vulns": []}
VULNERABLE = {"name": "old", "version": "1.0", "vulns": [{"id": "PYSEC-1", "fix_versions": ["1.1"]}]}
UNKNOWN = {"name": "own", "skip_reason": "Dependency not found on PyPI and could not be audited: own (1.0)"}


@pytest.mark.parametrize(
    ("packages", "code", "printed"),
    [
        ([SOUND], 0, "1 of 1 packages audited, 0 vulnerable"),
        ([SOUND, VULNERABLE], 1, "vulnerable: old 1.0\n  PYSEC-1, fixed in 1.1"),
        ([SOUND, UNKNOWN], 0, "not audited: Dependency not found"),
        ([UNKNOWN, VULNERABLE], 1, "1 of 2 packages audited, 1 vulnerable"),
        ([UNKNOWN, UNKNOWN], 0, "SKIPPED, nothing was audited"),
    ],
)
def test_audit_fails_for_vulnerabilities_and_says_what_was_not_audited(
    packages: list[dict[str, object]], code: int, printed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert audit.report("requirements.txt", packages) == code
    assert printed in capsys.readouterr().out


def run_audit(python: str | Path, requirements: Path) -> subprocess.CompletedProcess[str]:
    unreachable = dict.fromkeys(("HTTPS_PROXY", "https_proxy"), "http://127.0.0.1:1")
    return subprocess.run(
        [python, ROOT / "scripts" / "audit.py", requirements],
        env=os.environ | unreachable, cwd=ROOT, capture_output=True, text=True, timeout=60,
    )  # fmt: skip


def test_audit_without_its_tool_is_an_error() -> None:
    done = run_audit(sys.executable, ROOT / "requirements.txt")

    assert done.returncode == 1
    assert "pip_audit" in done.stderr


@NEEDS_TOOLS
def test_audit_is_skipped_with_a_message_while_pypi_is_unreachable(tmp_path: Path) -> None:
    unhashed = tmp_path / "requirements.txt"
    unhashed.write_text("flask==3.1.3\n")

    skipped, refused = run_audit(AUDIT_PYTHON, ROOT / "requirements.txt"), run_audit(AUDIT_PYTHON, unhashed)

    assert (skipped.returncode, refused.returncode) == (0, 1), skipped.stderr + refused.stdout
    assert re.search("^SKIPPED, nothing was audited: .*pypi.org", skipped.stdout)
    assert "hash" in refused.stderr


@NEEDS_TOOLS
def test_bill_of_materials_lists_every_pinned_package_with_its_hashes(tmp_path: Path) -> None:
    subprocess.run(["make", "sbom", f"SBOM={tmp_path}/sbom.json"], cwd=ROOT, check=True, capture_output=True)

    bill = json.loads((tmp_path / "sbom.json").read_text())
    pinned = re.findall(r"^([a-z0-9-]+)(?:\[[a-z]+\])?==(\S+)", (ROOT / "requirements.txt").read_text(), re.MULTILINE)
    assert bill["bomFormat"] == "CycloneDX"
    assert bill["metadata"]["component"]["name"] == "order-service"
    assert {(each["name"], each["version"]) for each in bill["components"]} == set(pinned)
    assert all(each["externalReferences"][0]["hashes"] for each in bill["components"])


#: The image by its repository: its tag, and of what letter its digest consists.
IMAGES = {
    "library/python": ("3.13-slim", "a"),
    "library/rabbitmq": ("4-management", "b"),
    "library/postgres": ("17", "c"),
    "prom/prometheus": ("v3.5.0", "d"),
    "grafana/grafana": ("12.1.0", "e"),
}
DIGESTS = {f"/v2/{name}/manifests/{tag}": f"sha256:{letter * 64}" for name, (tag, letter) in IMAGES.items()}


class Registry(BaseHTTPRequestHandler):
    """Answers like Docker Hub, for the images of this project only."""

    def do_GET(self) -> None:
        scope = self.path.partition("scope=")[2]
        self.answer(200, json.dumps({"token": scope}).encode())

    def do_HEAD(self) -> None:
        repository = self.path.split("/manifests/")[0].removeprefix("/v2/")
        is_allowed = self.headers["Authorization"] == f"Bearer repository%3A{repository}%3Apull"
        digest = DIGESTS.get(self.path) if is_allowed and "index" in self.headers["Accept"] else None
        self.answer(200 if digest else 404, b"", digest)

    def answer(self, status: int, body: bytes, digest: str | None = None) -> None:
        self.send_response(status)
        if digest:
            self.send_header("Docker-Content-Digest", digest)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def registry() -> Iterator[dict[str, str]]:
    with serving(HTTPServer(("127.0.0.1", 0), Registry)) as port:
        address = f"http://127.0.0.1:{port}"
        yield {"hub": address, "tokens": f"{address}/token?service=x"}


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    for name in ("Dockerfile", "docker-compose.yml"):
        shutil.copy(ROOT / name, tmp_path)
    return [tmp_path / "Dockerfile", tmp_path / "docker-compose.yml"]


def images(files: list[Path]) -> set[str]:
    return set(
        re.findall(r"^(?:FROM|\s*image:) ([a-z]\S+)", "\n".join(path.read_text() for path in files), re.MULTILINE)
    )


def test_every_image_of_others_is_pinned_to_the_digest_of_its_tag(registry: dict[str, str], files: list[Path]) -> None:
    for path in files:  # also one that has an older digest
        path.write_text(path.read_text().replace("postgres:17\n", f"postgres:17@sha256:{'0' * 64}\n"))

    for _ in range(2):
        pin_images.pin(files, **registry)

        pinned = {
            f"{name.removeprefix('library/')}:{tag}@sha256:{letter * 64}" for name, (tag, letter) in IMAGES.items()
        }
        assert images(files) == pinned | {"order-service:local"}


def test_nothing_is_changed_if_one_image_has_no_digest(registry: dict[str, str], files: list[Path]) -> None:
    files[1].write_text(files[1].read_text().replace("postgres:17", "postgres:99"))
    before = [path.read_text() for path in files]

    with pytest.raises(OSError, match="404"):
        pin_images.pin(files, **registry)

    assert [path.read_text() for path in files] == before


def test_dependabot_covers_every_directory_with_pinned_packages() -> None:
    updates = yaml.safe_load((ROOT / ".github" / "dependabot.yml").read_text())["updates"]
    covered = {
        (update["package-ecosystem"], directory)
        for update in updates
        for directory in update.get("directories", [update.get("directory")])
    }

    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    kinds = {
        r"requirements[a-z-]*\.txt": "pip", r"package-lock\.json": "npm", "Dockerfile": "docker",
        r"docker-compose\.yml": "docker-compose",
    }  # fmt: skip
    needed = {
        (kind, f"/{Path(file).parent}".removesuffix("/."))
        for file in files
        for name, kind in kinds.items()
        if re.fullmatch(name, Path(file).name)
    }
    assert {(kind, directory or "/") for kind, directory in needed} == covered
