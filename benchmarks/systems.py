"""All compared systems, by name."""

from benchmarks.ours import OURS
from benchmarks.probe import GRANIAN, GTHREAD
from benchmarks.system import System

try:
    from benchmarks.peers import PEERS
except ModuleNotFoundError as error:  # the libraries of the peers are in the benchmarks' own venv only
    MISSING: str | None = error.name
    PEERS: tuple[System, ...] = ()  # type: ignore[no-redef]
else:
    MISSING = None

LIMITS = (GTHREAD, GRANIAN)
SYSTEMS: tuple[System, ...] = (OURS, *LIMITS, *PEERS)


def named(name: str) -> System:
    """The system of this name. Raises LookupError that says which there are."""
    for system in SYSTEMS:
        if system.name == name:
            return system
    missing = f" (without the peers: there is no {MISSING} here)" if MISSING else ""
    raise LookupError(f"no system {name!r}; there are {', '.join(each.name for each in SYSTEMS)}{missing}")
