"""Install a Debian package, as root or with passwordless sudo."""

import os
import shutil
import threading

from sandbox.servers.process_group import succeeds
from sandbox.servers.sources import Say, Unavailable

#: Seconds for apt to download and install, on a slow line.
INSTALL_SECONDS = 1800
#: apt allows one install at a time, and the tests start their servers in parallel.
_install_lock = threading.Lock()


def _root_prefix() -> list[str] | None:
    """The start of a command to run as root: nothing, or sudo; None if neither is possible."""
    if os.geteuid() == 0:
        return []
    sudo = shutil.which("sudo")
    return [sudo, "-n"] if sudo and succeeds([sudo, "-n", "true"]) else None


def install(package: str, *, say: Say) -> None:
    """Install the package. Raises Unavailable if that is not possible.

    The package may start its service of the same name, and Erlang's name server. Both are stopped, because the sandbox
    runs private servers.
    """
    apt = shutil.which("apt-get")
    if not apt:
        raise Unavailable(f"{package} is not installed, and there is no apt-get to install it with")
    prefix = _root_prefix()
    if prefix is None:
        raise Unavailable(f"{package} is not installed (`sudo apt-get install {package}` installs it)")
    with _install_lock:
        say(f"Installing Debian's {package} package, which takes a minute or two ...")
        had_epmd = shutil.which("epmd")
        for arguments in (["-qq", "update"], ["-q", "-y", "--no-install-recommends", "install", package]):
            command = [*prefix, "env", "DEBIAN_FRONTEND=noninteractive", apt, *arguments]
            if not succeeds(command, seconds=INSTALL_SECONDS, quiet=False):
                raise Unavailable(f"`{' '.join(command)}` failed")
        service = shutil.which("service", path=os.environ.get("PATH", "") + os.pathsep + "/usr/sbin")
        if service and succeeds([*prefix, service, package, "status"]):
            say(f"The package started its own {package} service, which is not needed here: stopping it.")
            succeeds([*prefix, service, package, "stop"], seconds=60)
        epmd = shutil.which("epmd")
        if epmd and not had_epmd:
            succeeds([*prefix, epmd, "-kill"])  # refused while it is in use
