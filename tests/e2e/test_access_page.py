"""Runs every command of docs/access.md, with the sandbox's issuer in place of Keycloak."""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

from order_service.web.problems import KINDS
from tests.e2e.deployment import Deployment
from tests.e2e.process import PROJECT_DIR, free_ports

PAGE = (PROJECT_DIR / "docs/access.md").read_text(encoding="utf-8")
#: The start of the issuer, that of the API, and what a caller runs, in one shell.
ISSUER, API, *CALLS = re.findall(r"^```sh\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
#: A request, the status that the page says, and, if it is a problem, the code.
REQUEST = re.compile(r"(curl -i .*?) +# ([0-9]{3})(?: ([a-z_]+))?")


@pytest.mark.field
def test_every_command_of_the_page_works_as_it_says(tmp_path: Path) -> None:
    if missing := [program for program in ("curl", "openssl") if not shutil.which(program)]:
        pytest.skip(f"needs {', '.join(missing)}")
    database_url, [issuer_port] = f"sqlite:///{tmp_path}/orders.db", free_ports(1)
    with Deployment("amqp://127.0.0.1:1", database_url, tmp_path, USER_SERVICE_URL="") as deployment:

        def here(script: str) -> str:
            script = re.sub(" +# .*", "", script)
            script = script.replace("localhost:5003", f"127.0.0.1:{deployment.ports['api']}")
            return script.replace("localhost:5005", f"localhost:{issuer_port}")

        # given
        deployment.ports["issuer"] = issuer_port
        deployment.start_command("issuer", here(ISSUER).strip(), ISSUER_PORT=str(issuer_port))
        *prepare, serve = here(API).splitlines()
        script = "\n".join(["set -eu", *prepare, f"exec {serve}"])
        deployment.start_command("api", f"/bin/sh -c {shlex.quote(script)}")
        deployment.wait_until_healthy("issuer", "api")

        # when: a mark before the response to each request
        lines = "".join(CALLS).splitlines()
        marked = [f"printf '\\n@@@'; {line}" if REQUEST.fullmatch(line) else line for line in lines]
        done = deployment.run("bash", "-euo", "pipefail", "-c", here("\n".join(marked)), seconds=120)

    # then
    assert done.returncode == 0, done.stderr
    requests = [found.groups() for line in lines if (found := REQUEST.fullmatch(line))]
    assert len(requests) == len([line for line in lines if line.startswith("curl")]) > 10
    answers = [text.split(maxsplit=2)[1:] for text in done.stdout.split("\n@@@")[1:]]
    answered = [(status, json.loads(rest.partition("\n\n")[2]).get("code")) for status, rest in answers]
    assert [(command, *answer) for (command, *_), answer in zip(requests, answered, strict=True)] == requests


def test_every_code_of_the_page_is_one_of_the_api_with_its_status() -> None:
    rows = re.findall(r"^\| ([0-9]{3}) (`[^|]*`) \|", PAGE, re.MULTILINE)

    assert len(rows) == 7
    for status, codes in rows:
        for code in re.findall("`([a-z_]+)`", codes):
            assert KINDS[code].status == int(status), code
