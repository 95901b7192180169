"""What processes use, read from /proc: CPU time and memory of a process with all its children."""

import math
import os
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")
#: The shell that a process hangs on and its watcher: ours, not the system's.
OF_THE_HARNESS = {"sh", "cat"}


@dataclass(frozen=True)
class Usage:
    """CPU seconds so far, and the sum of each process's memory: now, and at its peak."""

    cpu_seconds: float
    memory_mib: float
    peak_mib: float


def of_tree(*roots: int) -> Usage:
    """The usage of these processes and of their children; what has ended meanwhile counts through its parent."""
    ticks, memory, peak = 0, 0, 0
    for pid in _tree(roots):
        with suppress(OSError):  # it has ended since
            name, fields = _stat(pid)
            if name not in OF_THE_HARNESS:
                ticks += sum(int(field) for field in fields[11:15])  # utime, stime, and those of children waited for
                memory += _status_kib(pid, "VmRSS")
                peak += _status_kib(pid, "VmHWM")
    return Usage(ticks / TICKS, memory / 1024, peak / 1024)


def of_server(name: str, child: int) -> float:
    """CPU seconds of a server of this name, found by the id of one of its children; NaN where no such process is."""
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
    waiting = list(roots)
    while waiting:
        pid = waiting.pop()
        yield pid
        waiting += children[pid]


def _stat(pid: int) -> tuple[str, list[str]]:
    """The name of a process, and the fields of /proc/PID/stat that follow it, the state first."""
    head, _, tail = Path(f"/proc/{pid}/stat").read_text().rpartition(")")
    return head.partition("(")[2], tail.split()


def _status_kib(pid: int, name: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1])
    return 0
