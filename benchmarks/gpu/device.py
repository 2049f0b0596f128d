"""What a device says of itself and of the work on it: memory, kernels, waits, and times of short work."""

from __future__ import annotations

import gc
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from stages.common.machine import reset_peak_memory, resident_bytes
from stages.common.units import GIB as GIB


def synchronise(device: str) -> None:
    """Wait until the device has done all that it was given."""
    if device == "cuda":
        torch.cuda.synchronize()


def emptied(device: str) -> int:
    """Free what nothing holds any more, begin a new measurement of the peak, and return the bytes that are held."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        return int(torch.cuda.memory_allocated())
    reset_peak_memory()
    return resident_bytes("VmRSS") or 0


def peak(device: str) -> int:
    """Return the most bytes held since `emptied`: on a GPU of tensors, else of the process."""
    return int(torch.cuda.max_memory_allocated()) if device == "cuda" else resident_bytes("VmHWM") or 0


def seconds_of(work: Callable[[], object], device: str, *, least: float = 0.2, warm: int = 2) -> float:
    """Return the seconds of one call of `work`, a mean over calls that together take `least` seconds or more."""
    for _ in range(warm):
        work()
    synchronise(device)
    count, begun = 0, time.perf_counter()
    while (passed := time.perf_counter() - begun) < least or count < 3:
        for _ in range(max(count, 1)):  # twice as many each time, so that waiting is no part of the mean
            work()
        synchronise(device)
        count += max(count, 1)
    return passed / count


def once(work: Callable[[], object], device: str) -> float:
    """Return the seconds of one call of `work`."""
    synchronise(device)
    begun = time.perf_counter()
    work()
    synchronise(device)
    return time.perf_counter() - begun


@dataclass(slots=True)
class Kernels:
    """The kernels that a GPU ran, by name, without copies and fills of memory."""

    names: Counter[str] = field(default_factory=Counter)
    busy: float = 0.0
    """Seconds in which kernels ran, added up."""

    @property
    def count(self) -> int:
        """The number of launches."""
        return self.names.total()


@contextmanager
def kernels() -> Iterator[Kernels]:
    """Collect the kernels that CUDA runs within the block."""
    from torch.profiler import ProfilerActivity, profile

    found = Kernels()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        yield found
        torch.cuda.synchronize()
    for event in profiler.events() or ():
        if event.device_type.name == "CUDA" and not event.name.startswith(("Memcpy", "Memset")):
            found.names[event.name] += 1
            found.busy += event.time_range.elapsed_us() / 1e6


@contextmanager
def waits() -> Iterator[list[str]]:
    """Collect the places at which the processor waits for CUDA within the block, one entry each time."""
    found: list[str] = []
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            yield found
    finally:
        torch.cuda.set_sync_debug_mode("default")
    found += [f"{one.filename}:{one.lineno}" for one in said if "synchroniz" in str(one.message)]
