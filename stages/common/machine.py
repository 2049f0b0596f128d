"""Facts about this machine and this process's memory, for the stages and the pipeline. No torch at import."""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from stages.common.choices import lookup
from stages.common.cores import usable_cores

PRECISIONS = ("auto", "float32", "bfloat16")
"""The precisions that the command line takes."""


@cache
def processor() -> str:
    """Return the processor's model name."""
    return _processor_field("model name") or platform.processor() or platform.machine()


@cache
def card() -> str:
    """Return the name of the first GPU that this process may use, as its driver's nvidia-smi gives it.

    torch knows the name too. Asking it would mean importing it, and starting CUDA in a process that only plans.
    """
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "").partition(",")[0].strip() or "0"
    command = ["nvidia-smi", f"--id={first}", "--query-gpu=name", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "a GPU without a name"


def hardware() -> dict[str, str | int | float]:
    """Return what a reader needs to judge timings: processor, cores, memory in GiB, system."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "processor": processor(),
        "cores": usable_cores(),
        "memory_gib": round(memory, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def _processor_field(*names: str) -> str:
    """Return what /proc/cpuinfo says of the first processor under one of `names`; empty where there is none."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in text.splitlines() if line.startswith(names)), "")


@cache
def cpu_flags() -> frozenset[str]:
    """Return the processor's feature flags as Linux names them; empty where the system has no /proc/cpuinfo."""
    # x86 names them "flags", ARM "Features".
    return frozenset(_processor_field("flags", "Features").split())


@cache
def cpu_vendor() -> str:
    """Return the maker of an x86 processor as Linux names it; empty elsewhere."""
    return _processor_field("vendor_id")


def multiplies_bfloat16() -> bool:
    """Return whether the processor's matrix products are faster in bfloat16 than in float32.

    That takes instructions for bfloat16. On Intel's processors it takes those for tiles (AMX), which a virtual machine
    may hide: with the others (avx512_bf16) an Emerald Rapids Xeon reaches 0.5 to 0.65 of its rate in float32.
    """
    # The last is ARM's.
    fast = {"amx_bf16", "bf16"} | ({"avx512_bf16"} if cpu_vendor() != "GenuineIntel" else set())
    return bool(fast & cpu_flags())


def precision(where: str, dtype: str, device: str) -> str:
    """Return the precision that `dtype` means on `device`. "auto" is bfloat16 where that is multiplied faster.

    A processor without bfloat16 instructions emulates its matrix products, several times more slowly than float32's.

    Raises:
        UserError: `dtype` is none of auto, float32 and bfloat16. `where` is the option that gives it.
    """
    lookup(where, dtype, dict.fromkeys(PRECISIONS))
    if dtype != "auto":
        return dtype
    return "bfloat16" if device == "cuda" or multiplies_bfloat16() else "float32"


def resident_bytes(field: str) -> int | None:
    """Return the bytes of this process's VmRSS (now) or VmHWM (highest since the last reset); None without /proc.

    `getrusage` can't replace it: its maximum never falls, so one stage would be charged for another's memory.
    """
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), None)


def return_freed_memory() -> None:
    """Give freed memory back to the system, where the C library (glibc) would keep it for later.

    glibc keeps blocks smaller than some tens of MiB and finds no use for many of them. Freed layers would pile up.
    """
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def release_memory() -> None:
    """Give memory back that nothing uses any more: to the system, and to the GPU where torch is at work on one.

    What torch's allocator keeps of a GPU for later would be missing there, for other processes and in `nvidia-smi`.
    """
    # Objects in reference cycles hold their memory until the collector runs.
    gc.collect()
    return_freed_memory()
    if (cuda := _cuda()) is not None:
        cuda.empty_cache()


@dataclass(frozen=True, slots=True)
class Peak:
    """The most memory that one process held at a time."""

    memory_bytes: int | None
    """Its resident memory; None where the system does not tell."""
    device_memory_bytes: Mapping[str, int] = field(default_factory=dict)
    """The tensors on each GPU that had any, by torch's name of the GPU as this process numbers them."""


_workers: dict[int, Peak] = {}


def reset_peak_memory() -> None:
    """Start a new measurement of this process's peak resident memory, where the system can (Linux), and of GPUs'.

    Memory that earlier work freed and the C library still holds is given back first: it is not part of this peak. The
    peaks of earlier workers are forgotten.
    """
    release_memory()
    _workers.clear()
    if (cuda := _cuda()) is not None:
        for number in range(cuda.device_count()):
            cuda.reset_peak_memory_stats(number)
    try:
        # 5 resets VmHWM to the current resident size (proc(5)).
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return


def peak() -> Peak:
    """Return this process's peak since `reset_peak_memory`, or since it began."""
    return Peak(resident_bytes("VmHWM"), _peaks_of_cards())


def note_worker(rank: int, found: Peak) -> None:
    """Keep the peak that a process of this one's reports; the larger numbers where it has reported before."""
    before = _workers.get(rank, Peak(None))
    cards = before.device_memory_bytes.keys() | found.device_memory_bytes.keys()
    most = {card: max(each.device_memory_bytes.get(card, 0) for each in (before, found)) for card in sorted(cards)}
    resident = [each.memory_bytes for each in (before, found) if each.memory_bytes is not None]
    _workers[rank] = Peak(max(resident, default=None), most)


def peaks_of_workers() -> dict[int, Peak]:
    """Return the peaks that workers have reported since `reset_peak_memory`, by rank."""
    return dict(sorted(_workers.items()))


def _peaks_of_cards() -> dict[str, int]:
    cuda = _cuda()
    if cuda is None:
        return {}
    found = {f"cuda:{number}": int(cuda.max_memory_allocated(number)) for number in range(cuda.device_count())}
    return {name: most for name, most in found.items() if most}


def _cuda() -> Any:
    """Return `torch.cuda` if this process has started CUDA, else None. torch is not imported for that."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_initialized() else None


def free_memory_bytes(device: str) -> int:
    """Return the bytes that are still available on `device`: cpu, or a GPU such as cuda:0.

    On a GPU, what torch's allocator has reserved and no tensor uses is available too.
    """
    if device.startswith("cuda"):
        import torch

        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + unused
    import psutil

    return min(psutil.virtual_memory().available, _left_in_container())


def _left_in_container() -> int:
    """Return the bytes left under a container's limit (cgroup v2), file caches counted as free; huge without one."""
    root = Path("/sys/fs/cgroup")
    try:
        limit = (root / "memory.max").read_text(encoding="ascii").strip()
        used = int((root / "memory.current").read_text(encoding="ascii"))
        statistics = dict(line.split() for line in (root / "memory.stat").read_text(encoding="ascii").splitlines())
    except (OSError, ValueError):
        return sys.maxsize
    return sys.maxsize if limit == "max" else int(limit) - used + int(statistics.get("inactive_file", 0))
