"""All compared systems, by name."""

from benchmarks.ours import OURS
from benchmarks.probe import GRANIAN, GTHREAD
from benchmarks.variants import OBSERVED, WATCHED, WITH_ACCESS

try:
    from benchmarks.peers import PEERS

    #: The library that the peers lack, if any: they are installed in the benchmarks' own venv only.
    MISSING: str | None = None
except ModuleNotFoundError as error:
    PEERS, MISSING = (), error.name

SYSTEMS = {system.name: system for system in (OURS, WITH_ACCESS, OBSERVED, WATCHED, GTHREAD, GRANIAN, *PEERS)}
