"""What this machine has, found without importing torch: device, precision, memory."""

from __future__ import annotations

import ctypes
import gc
import os
import platform
from contextlib import suppress
from functools import cache
from pathlib import Path


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


def resolve_device(device: str) -> str:
    """Return "cuda" or "cpu" for "auto" (a CUDA driver is loaded and not hidden), or the name itself."""
    if device != "auto":
        return device
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "0") in ("", "-1")
    return "cuda" if Path("/dev/nvidiactl").exists() and not hidden else "cpu"


def resolve_dtype(dtype: str, device: str) -> str:
    """Return the precision that "auto" stands for: bfloat16 where the device multiplies it natively, else float32.

    On processors without bfloat16 instructions its matrix products are emulated and several times slower than float32.
    """
    if dtype != "auto":
        return dtype
    native = {"avx512_bf16", "amx_bf16", "bf16"}
    return "bfloat16" if device == "cuda" or native & cpu_flags() else "float32"


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


def reset_peak_memory() -> None:
    """Start a new measurement of this process's peak resident memory, where the system can (Linux).

    Memory that earlier work freed and the C library still holds goes back to the system first: it is not this work's.
    """
    gc.collect()
    with suppress(AttributeError, OSError):  # not glibc: the measurement starts from whatever the process holds
        ctypes.CDLL(None).malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return


def peak_memory_bytes() -> int | None:
    """Return the peak resident memory since the last reset, or None where the system does not tell.

    `getrusage` is no stand-in: its maximum never falls, so it would charge one stage for another's memory.
    """
    try:
        for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        return None
    return None
