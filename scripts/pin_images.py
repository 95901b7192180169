"""Pin the images of Dockerfile and docker-compose.yml to the digests that their tags have today: `make pin-images`.

`postgres:17` becomes `postgres:17@sha256:...`; an existing digest is replaced. Needs a registry; without one, it
changes nothing and exits with 2. Dependabot updates digests later. Standard library only.
"""

import json
import re
import sys
import urllib.parse
import urllib.request
from http.client import HTTPMessage
from pathlib import Path

HUB, HUB_TOKENS = "https://registry-1.docker.io", "https://auth.docker.io/token?service=registry.docker.io"
#: The most that one request may take, in seconds.
REQUEST_SECONDS = 10
#: The index of all platforms, and not the manifest of one.
_INDEXES = "application/vnd.oci.image.index.v1+json, application/vnd.docker.distribution.manifest.list.v2+json"
#: An image of Docker Hub by its tag, in either file; the image that is built here has the tag `local`.
_IMAGE = re.compile(r"^(?P<key>FROM |\s*image: )(?P<name>[a-z0-9/_-]+):(?P<tag>(?!local\b)[\w.-]+)(?:@\S+)?", re.M)


def digest(name: str, tag: str, *, hub: str = HUB, tokens: str = HUB_TOKENS) -> str:
    """The digest of the image for all platforms. Raises OSError without an answer, ValueError without a digest."""
    repository = name if "/" in name else f"library/{name}"
    scope = urllib.parse.quote(f"repository:{repository}:pull")
    with urllib.request.urlopen(f"{tokens}&scope={scope}", timeout=REQUEST_SECONDS) as answer:
        token = json.load(answer)["token"]
    headers = {"Authorization": f"Bearer {token}", "Accept": _INDEXES}
    request = urllib.request.Request(f"{hub}/v2/{repository}/manifests/{tag}", headers=headers, method="HEAD")
    with urllib.request.urlopen(request, timeout=REQUEST_SECONDS) as answer:
        return _checked(answer.headers, name)


def _checked(headers: HTTPMessage, name: str) -> str:
    found = headers.get("Docker-Content-Digest", "")
    if not re.fullmatch("sha256:[0-9a-f]{64}", found):
        raise ValueError(f"the registry gave no digest of {name}")
    return found


def pin(paths: list[Path], **registry: str) -> list[str]:
    """Rewrite the files, and return the pinned images. Raises as `digest`, and then changes nothing."""
    digests: dict[tuple[str, str], str] = {}
    texts = {path: path.read_text(encoding="utf-8") for path in paths}
    for text in texts.values():
        for found in _IMAGE.finditer(text):
            image = found["name"], found["tag"]
            digests[image] = digests.get(image) or digest(*image, **registry)

    def pinned(found: re.Match[str]) -> str:
        return f"{found['key']}{found['name']}:{found['tag']}@{digests[found['name'], found['tag']]}"

    for path, text in texts.items():
        path.write_text(_IMAGE.sub(pinned, text), encoding="utf-8")
    return [f"{name}:{tag}@{found}" for (name, tag), found in digests.items()]


def main() -> int:
    root = Path(__file__).parents[1]
    try:
        print("\n".join(pin([root / "Dockerfile", root / "docker-compose.yml"])))
    except (OSError, ValueError) as error:
        print(f"Nothing was changed: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
