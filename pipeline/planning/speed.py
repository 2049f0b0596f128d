"""The speed of this machine's processor: measured once, kept in the user's cache, read by every plan.

The speed is the rate of matrix products, because these take most of every long stage. It belongs to a processor, a
number of threads and a precision. Only `measure` loads torch.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from stages.common.files import read_json, write_json
from stages.common.machine import hardware, processor
from stages.errors import UserError

log = logging.getLogger("pipeline")

FILE = "speed.json"
SECONDS = 1.0
"""How long one precision is measured."""
SIZE = 512
"""Rows and columns of the matrices. A product takes milliseconds, so that some are not interrupted by other work."""
Rates = dict[str, float]
"""Operations a second by precision."""


@dataclass(frozen=True, slots=True)
class Speed:
    """The kept speed of one machine.

    Attributes:
        file: where speeds are kept.
        machine: the processor's name and the number of threads.
        rates: what was measured before, operations a second by precision.
    """

    file: Path
    machine: str
    rates: Rates

    def measured(self, dtypes: Iterable[str], threads: int | None) -> Speed:
        """Return this speed with every precision of `dtypes`. What is missing is measured now, and kept."""
        missing = sorted(set(dtypes) - self.rates.keys())
        if not missing:
            return self
        log.info("measuring this machine once, for the time that stages take: %s", self.machine)
        rates = self.rates | {dtype: measure(dtype, threads) for dtype in missing}
        try:
            write_json(self.file, _kept(self.file)[0] | {self.machine: rates})
        except OSError as error:
            log.info("%s can't be written (%s): the next run measures again.", self.file, error.strerror)
        return Speed(self.file, self.machine, rates)


def known(cache: Path, threads: int | None) -> Speed:
    """Return what is kept in the directory `cache` of this machine's speed with so many threads. Nothing is measured.

    A damaged file counts as none, and a line says so.
    """
    file, machine = cache / FILE, machine_name(threads)
    kept, damage = _kept(file)
    rates = kept.get(machine, {})
    if not damage and not _sound(rates):
        rates, damage = {}, f"{file} does not hold rates above 0."
    if damage:
        log.info("%s It is ignored, and the next run measures this machine anew.", damage)
    return Speed(file, machine, rates)


def machine_name(threads: int | None) -> str:
    """Return this machine's name: its processor and the number of threads; null is torch's own number."""
    count = threads or os.environ.get("OMP_NUM_THREADS") or hardware()["cores"]
    return f"{processor()}, {count} threads"


def measure(dtype: str, threads: int | None) -> float:
    """Return this processor's highest rate of matrix products within `SECONDS`, in operations a second.

    The highest and not the mean: other work on the machine will be gone by the next run, and the rate is kept.
    """
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    one, other = (torch.full((SIZE, SIZE), 0.5, dtype=getattr(torch, dtype)) for _ in range(2))
    best, end = math.inf, time.perf_counter() + SECONDS
    while time.perf_counter() < end:
        started = time.perf_counter()
        torch.mm(one, other)
        best = min(best, time.perf_counter() - started)
    return 2 * SIZE**3 / best


def _kept(file: Path) -> tuple[dict[str, Rates], str]:
    """Return the speeds in `file` by machine, and what is wrong with the file; empty where nothing is."""
    if not file.exists():
        return {}, ""
    try:
        kept = read_json(file)
    except UserError as error:
        return {}, str(error)
    return (kept, "") if isinstance(kept, dict) else ({}, f"{file} does not hold speeds by machine.")


def _sound(rates: object) -> bool:
    """Return whether `rates` are numbers above 0."""
    if not isinstance(rates, dict):
        return False
    return all(isinstance(rate, (int, float)) and 0 < rate < math.inf for rate in rates.values())
