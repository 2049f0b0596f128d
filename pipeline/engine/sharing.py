"""Threads for a long stage on a processor that other work may share.

Threads that share a core wait for each other at the end of every operation, and burn their time in waiting. One thread
fewer, on cores of its own, does more: beside one busy process, two threads on two cores kept a twelfth of a training's
speed, and one thread a half (docs/speed.md).
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

from stages.common.cores import processor_ticks, usable_cores

SAMPLE = 0.25
"""Seconds over which the other work is looked at. The system counts in hundredths."""
IDLE = 0.5
"""Cores that may be busy without a thread being given up."""


@dataclass(frozen=True, slots=True)
class Share:
    """Cores that this process may use, and how many of them other work keeps busy."""

    cores: int
    others: float

    def threads(self, most: int) -> int:
        """Return how many threads do best, of `most`: as many as there are cores that nothing else keeps busy."""
        most = min(most, self.cores)
        return most if self.others < IDLE else max(1, min(most, round(self.cores - self.others)))


def measured() -> Share:
    """Return this process's share of the machine, measured over a quarter of a second."""
    cores = usable_cores()
    began, own = time.monotonic(), _own_seconds()
    busy = processor_ticks()
    time.sleep(SAMPLE)
    passed, own = time.monotonic() - began, _own_seconds() - own
    busy = processor_ticks() - busy
    return Share(cores, max(0.0, busy / os.sysconf("SC_CLK_TCK") / passed - own / passed))


def left_to_us() -> bool:
    """Return whether the number of threads is ours to choose: no variable of the environment sets it."""
    return not ({"OMP_NUM_THREADS", "MKL_NUM_THREADS"} & os.environ.keys())


def _own_seconds() -> float:
    taken = os.times()
    return taken.user + taken.system
