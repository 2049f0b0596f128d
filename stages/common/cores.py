"""The cores that this process may use, and how busy they are. No torch here."""

from __future__ import annotations

import math
import os
from contextlib import suppress
from pathlib import Path


def usable_cores() -> int:
    """Return the cores that this process may use: those that it may run on, or fewer where its group has a quota."""
    cores = len(_own_cores())
    quota = cpu_quota(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))
    return cores if quota is None else max(1, min(cores, math.ceil(quota)))


def cpu_quota(membership: Path, root: Path) -> float | None:
    """Return the cores' worth of time that a control group's quota allows; None without one.

    Containers are limited so. `membership` is /proc/self/cgroup, and `root` is where control groups of version 2 are.
    The tightest of the group and the groups around it counts.
    """
    try:
        named = [line[3:] for line in membership.read_text(encoding="utf-8").splitlines() if line.startswith("0::")]
    except OSError:
        return None
    found = []
    for group in [Path(name.lstrip("/")) for name in named]:
        for folder in (group, *group.parents):
            with suppress(OSError, ValueError):  # no quota there: the file is missing, or says "max"
                allowed, period = (root / folder / "cpu.max").read_text(encoding="ascii").split()
                found.append(int(allowed) / int(period))
    return min(found, default=None)


def processor_ticks() -> int:
    """Return the clock ticks for which this process's cores have been busy, by work of its priority; 0 without /proc.

    Work of a lower priority (`nice`) makes way, so it is left out, unless this process has a lower one itself.
    """
    try:
        lines = Path("/proc/stat").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    own = {f"cpu{core}" for core in _own_cores()}
    # Of each core: user, nice, system, idle, waiting for a disk, two kinds of interrupts, and what other machines took.
    counted = ([int(ticks) for ticks in fields[1:9]] for fields in map(str.split, lines) if fields[0] in own)
    low = os.nice(0) <= 0
    return sum(sum(ticks) - ticks[3] - ticks[4] - (ticks[1] if low else 0) for ticks in counted)


def time_on_cores() -> tuple[int, int] | None:
    """Return for how long this process's first thread ran and waited for a core, in nanoseconds; None without /proc."""
    try:
        ran, waited, _ = Path("/proc/self/schedstat").read_text(encoding="ascii").split()
    except (OSError, ValueError):  # not Linux, or a kernel without these statistics
        return None
    return int(ran), int(waited)


def _own_cores() -> set[int]:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
