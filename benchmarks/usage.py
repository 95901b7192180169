"""CPU time and memory of processes with all their children, read from /proc."""

import math
import os
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
#: The shell that starts a process, and the `cat` that watches for the end of the harness; not part of the system.
HARNESS_PROGRAMS = {"sh", "cat"}


@dataclass(frozen=True)
class Usage:
    """CPU seconds so far, and the sum of the peak resident memory of each process."""

    cpu_seconds: float
    peak_mib: float


def of_tree(*roots: int) -> Usage:
    """The usage of these processes and their children. A child that has ended counts through its parent."""
    ticks, peak_kib = 0, 0
    for pid in _tree(roots):
        with suppress(OSError, IndexError):  # the process has ended; a zombie has no memory
            name, fields = _stat(pid)
            if name not in HARNESS_PROGRAMS:
                ticks += sum(int(field) for field in fields[11:15])  # utime, stime, and those of children waited for
                peak_kib += int(Path(f"/proc/{pid}/status").read_text().partition("VmHWM:")[2].split()[0])
    return Usage(ticks / TICKS_PER_SECOND, peak_kib / 1024)


def cpu_of_server(name: str, child: int) -> float:
    """CPU seconds of the server of this name that is the parent of `child`; NaN if there is no such process."""
    with suppress(OSError):
        found, fields = _stat(child)
        if found == name:
            return of_tree(int(fields[1])).cpu_seconds
    return math.nan


def _tree(roots: tuple[int, ...]) -> Iterator[int]:
    children = defaultdict(list)
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                children[int(_stat(int(entry.name))[1][1])].append(int(entry.name))
    remaining = list(roots)
    while remaining:
        pid = remaining.pop()
        yield pid
        remaining += children[pid]


def _stat(pid: int) -> tuple[str, list[str]]:
    """The name of a process, and the fields of /proc/PID/stat that follow it, starting with the state."""
    head, _, tail = Path(f"/proc/{pid}/stat").read_text().rpartition(")")
    return head.partition("(")[2], tail.split()
