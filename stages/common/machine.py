"""What this machine is and what this process takes of it; shared by the stages and the pipeline. No torch here."""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path

from stages.common.choices import lookup

PRECISIONS = ("auto", "float32", "bfloat16")
"""What a precision may be on the command line."""


@cache
def processor() -> str:
    """Return the processor's model name."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        return platform.processor() or platform.machine()
    return platform.processor() or platform.machine()


def hardware() -> dict[str, str | int | float]:
    """Return what a reader needs to judge timings: processor, cores, memory in GiB, system."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {
        "processor": processor(),
        "cores": cores,
        "memory_gib": round(memory, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


@cache
def cpu_flags() -> frozenset[str]:
    """Return the processor's feature flags as Linux names them; empty where the system has no /proc/cpuinfo."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return frozenset()
    for line in text.splitlines():
        if line.startswith(("flags", "Features")):
            return frozenset(line.partition(":")[2].split())
    return frozenset()


def precision(where: str, dtype: str, device: str) -> str:
    """Return the precision that `dtype` stands for on `device`: of "auto" bfloat16 where it is multiplied natively.

    On processors without bfloat16 instructions its matrix products are emulated and several times slower than float32.

    Raises:
        UserError: `dtype` is none of auto, float32 and bfloat16; `where` is the option that says it.
    """
    lookup(where, dtype, dict.fromkeys(PRECISIONS))
    if dtype != "auto":
        return dtype
    native = {"avx512_bf16", "amx_bf16", "bf16"}
    return "bfloat16" if device == "cuda" or native & cpu_flags() else "float32"


def resident_bytes(field: str) -> int | None:
    """Return this process's VmRSS (now) or VmHWM (highest since the last reset), or None where no /proc tells.

    `getrusage` is no stand-in: its maximum never falls, so it would charge one stage for another's memory.
    """
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), None)


def return_freed_memory() -> None:
    """Give memory that was freed back to the system, where the C library (glibc) would keep it for later.

    It keeps what is smaller than some tens of MiB, and finds no use for much of it: freed layers would pile up.
    """
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def reset_peak_memory() -> None:
    """Start a new measurement of this process's peak resident memory, where the system can (Linux).

    Memory that earlier work freed and the C library still holds goes back to the system first: it is not this work's.
    """
    gc.collect()
    return_freed_memory()
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return


def free_memory_bytes(device: str) -> int:
    """Return the bytes that can still be had on `device`: cpu, or a GPU such as cuda:0."""
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.mem_get_info(device)[0])
    import psutil

    return min(psutil.virtual_memory().available, _left_in_container())


def _left_in_container() -> int:
    """Return the bytes that a container's limit (cgroup v2) leaves, caches of files counted as free; a lot if none."""
    root = Path("/sys/fs/cgroup")
    try:
        limit = (root / "memory.max").read_text(encoding="ascii").strip()
        used = int((root / "memory.current").read_text(encoding="ascii"))
        statistics = dict(line.split() for line in (root / "memory.stat").read_text(encoding="ascii").splitlines())
    except (OSError, ValueError):
        return sys.maxsize
    return sys.maxsize if limit == "max" else int(limit) - used + int(statistics.get("inactive_file", 0))
