"""Installs a package of Debian (or a relative of it) when we may: as root, or with a sudo that asks no password."""

import os
import shutil
import subprocess
import threading

from sandbox.servers.sources import Say, Unavailable

#: apt takes one install at a time, and the tests start their servers side by side.
_one_at_a_time = threading.Lock()


def as_root() -> list[str] | None:
    """The prefix that makes a command run as root: nothing, or sudo; None when we may not."""
    if os.geteuid() == 0:
        return []
    sudo = shutil.which("sudo")
    if sudo and subprocess.run([sudo, "-n", "true"], capture_output=True, check=False).returncode == 0:  # noqa: S603
        return [sudo, "-n"]
    return None


def install(package: str, *, service: str, say: Say) -> None:
    """Install the package, its progress shown. Raises Unavailable when that is not possible.

    Depending on the machine, Debian's package starts its own server as a system service, or does not. Nobody asked for
    one, so a server that appears with the install goes again: we run a private one, and stop it at the end.
    """
    apt = shutil.which("apt-get")
    if not apt:
        raise Unavailable(f"no {package} is installed, and this is no Debian to install it from")
    prefix = as_root()
    if prefix is None:
        raise Unavailable(f"{package} is not installed (`sudo apt-get install {package}` installs it)")
    with _one_at_a_time:
        say(f"Installing Debian's {package} package, which takes a minute or two ...")
        had_epmd = shutil.which("epmd")
        _apt([*prefix, apt, "-qq", "update"])
        command = [*prefix, "env", "DEBIAN_FRONTEND=noninteractive", apt, "install", "-q", "-y"]
        _apt([*command, "--no-install-recommends", package])
        _stop_service(prefix, service, say)
        epmd = shutil.which("epmd")
        if epmd and not had_epmd:  # Erlang's name server, which the install left running; refuses if it is in use
            subprocess.run([*prefix, epmd, "-kill"], capture_output=True, check=False)  # noqa: S603


def _apt(command: list[str]) -> None:
    if subprocess.run(command, stdin=subprocess.DEVNULL, check=False).returncode:  # noqa: S603
        raise Unavailable(f"`{' '.join(command)}` failed")


def _stop_service(prefix: list[str], service: str, say: Say) -> None:
    control = shutil.which("service", path=os.environ.get("PATH", "") + os.pathsep + "/usr/sbin")
    if control is None:
        return
    status = subprocess.run([*prefix, control, service, "status"], capture_output=True, check=False)  # noqa: S603
    if status.returncode == 0:
        say(f"The package started its own {service} service, which is not needed here: stopping it.")
        subprocess.run([*prefix, control, service, "stop"], capture_output=True, check=False)  # noqa: S603
