"""Look for known vulnerabilities in pinned requirements: `make audit`. Needs pip-audit.

Exits with 1 for a vulnerability or invalid requirements. If the data of PyPI cannot be reached, it says so and exits
with 0, because the result then depends on the network and not on the code.
"""

import json
import re
import subprocess
import sys

#: The most that the audit may take, in seconds; it usually takes 5.
MOST_SECONDS = 20
#: The most that one request may take, in seconds.
REQUEST_SECONDS = 5
_UNREACHABLE = re.compile(r"^.*(?:ConnectionError|ConnectTimeout|ReadTimeout|ProxyError|SSLError|HTTPError).*$", re.M)


def main(requirements: str) -> int:
    command = (
        sys.executable, "-m", "pip_audit", "--requirement", requirements, "--require-hashes", "--disable-pip",
        "--progress-spinner", "off", "--format", "json", "--timeout", str(REQUEST_SECONDS),
    )  # fmt: skip
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=MOST_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return _skip(f"PyPI did not answer within {MOST_SECONDS} s")
    if not done.stdout.startswith("{"):
        if failures := _UNREACHABLE.findall(done.stderr):
            return _skip(failures[-1][:200])
        print(done.stderr, file=sys.stderr)
        return 1
    return report(requirements, json.loads(done.stdout)["dependencies"])


def report(requirements: str, packages: list[dict[str, object]]) -> int:
    """Print what pip-audit found for each package; return the exit code."""
    # pip-audit reports success for a package of which it found no data.
    skipped = [package for package in packages if "skip_reason" in package]
    if len(skipped) == len(packages):
        return _skip("the index knows none of these packages")
    for package in skipped:
        print(f"not audited: {package['skip_reason']}")
    vulnerable = [package for package in packages if package.get("vulns")]
    for package in vulnerable:
        print(f"vulnerable: {package['name']} {package['version']}")
        for found in package["vulns"]:  # type: ignore[attr-defined]
            print(f"  {found['id']}, fixed in {', '.join(found['fix_versions']) or 'no version yet'}")
    audited = len(packages) - len(skipped)
    print(f"{requirements}: {audited} of {len(packages)} packages audited, {len(vulnerable)} vulnerable")
    return bool(vulnerable)


def _skip(reason: str) -> int:
    print(f"SKIPPED, nothing was audited: {reason}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1]))
