"""Threads for a long stage on a processor that other work may share.

Threads that share a core wait for each other at the end of every operation, and burn their time in waiting. One thread
fewer, on cores of its own, does more: beside one busy process, two threads on two cores kept a twelfth of a training's
speed, and one thread a half (docs/speed.md).
"""

from __future__ import annotations

import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path

from pipeline.engine.unfinished import threads_of
from stages.common.cores import processor_ticks, usable_cores

log = logging.getLogger("pipeline")

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


class Threads:
    """torch's threads in the stages of one run.

    Where nobody set their number, a long stage takes no more than there are cores that no other work keeps busy.
    """

    def __init__(self, asked: int | None) -> None:
        """`asked` is the number of threads of every stage; None leaves it to this class."""
        self.asked = asked
        self.most = 0
        """Threads that torch takes by itself; 0 before it is asked."""

    def take(self, *, long: bool, begun: Path | None) -> int | None:
        """Set torch's threads for a stage, and return how many; None where they are torch's own choice.

        A build that goes on, in the directory `begun`, takes as many as it was begun with.
        """
        if self.asked is not None:
            set_threads(self.asked)
            return self.asked
        # A variable of the environment is somebody's choice too. A short stage only undoes what a long one changed.
        if {"OMP_NUM_THREADS", "MKL_NUM_THREADS"} & os.environ.keys() or not (long or self.most):
            return None
        import torch  # late: a plan, and a run of hits alone, load none

        self.most = self.most or torch.get_num_threads()
        chosen = threads_of(begun) if begun else self._free() if long else None
        torch.set_num_threads(chosen or self.most)
        return chosen

    def _free(self) -> int | None:
        """Return the threads of a long stage beside other work; None where it takes all."""
        share = measured()
        chosen = share.threads(self.most)
        if chosen == self.most:
            return None
        said = "other work keeps %.1f of %d cores busy, so this stage takes %d of %d threads (runtime.threads)"
        log.info(said, share.others, share.cores, chosen, self.most)
        return chosen


def set_threads(threads: int) -> None:
    """Let torch take so many threads from now on."""
    import torch  # late: a plan, and a run of hits alone, load none

    torch.set_num_threads(threads)


def _own_seconds() -> float:
    taken = os.times()
    return taken.user + taken.system
