"""Install a Debian package, as root or with a sudo that asks for no password."""

import os
import shutil
import subprocess
import threading

from sandbox.servers.sources import Say, Unavailable

#: apt allows one install at a time, and the tests start their servers in parallel.
_install_lock = threading.Lock()


def root_prefix() -> list[str] | None:
    """What makes a command run as root: nothing, or sudo; None if neither is possible."""
    if os.geteuid() == 0:
        return []
    sudo = shutil.which("sudo")
    return [sudo, "-n"] if sudo and _succeeds([sudo, "-n", "true"]) else None


def install(package: str, *, say: Say) -> None:
    """Install the package. Raises Unavailable if that is not possible.

    The package may start its service of the same name, and Erlang's name server. Both are stopped: private servers are
    run instead.
    """
    apt = shutil.which("apt-get")
    if not apt:
        raise Unavailable(f"{package} is not installed, and there is no apt-get to install it with")
    prefix = root_prefix()
    if prefix is None:
        raise Unavailable(f"{package} is not installed (`sudo apt-get install {package}` installs it)")
    with _install_lock:
        say(f"Installing Debian's {package} package, which takes a minute or two ...")
        had_epmd = shutil.which("epmd")
        _apt([*prefix, apt, "-qq", "update"])
        command = [*prefix, "env", "DEBIAN_FRONTEND=noninteractive", apt, "install", "-q", "-y"]
        _apt([*command, "--no-install-recommends", package])
        service = shutil.which("service", path=os.environ.get("PATH", "") + os.pathsep + "/usr/sbin")
        if service and _succeeds([*prefix, service, package, "status"]):
            say(f"The package started its own {package} service, which is not needed here: stopping it.")
            _succeeds([*prefix, service, package, "stop"])
        epmd = shutil.which("epmd")
        if epmd and not had_epmd:
            _succeeds([*prefix, epmd, "-kill"])  # refused while it is in use


def _succeeds(command: list[str]) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode == 0  # noqa: S603


def _apt(command: list[str]) -> None:
    if subprocess.run(command, stdin=subprocess.DEVNULL, check=False).returncode:  # noqa: S603
        raise Unavailable(f"`{' '.join(command)}` failed")
