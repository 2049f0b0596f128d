"""What a run gets from this machine, found without importing torch: device, precision, processes."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

from stages.common.choices import lookup
from stages.errors import UserError
from stages.stage import ENGINES


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


def resolve_device(device: str) -> str:
    """Return "cuda" or "cpu" for "auto" (a CUDA driver is loaded and not hidden), or the name itself."""
    if device != "auto":
        return device
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "0") in ("", "-1")
    return "cuda" if Path("/dev/nvidiactl").exists() and not hidden else "cpu"


def resolve_workers(engine: str, workers: int | None, device: str) -> int:
    """Return the number of processes that share a recovery.

    Raises:
        UserError: the engine is unknown, or the number makes no sense with it.
    """
    lookup("engine (runtime.engine)", engine, dict.fromkeys(ENGINES, engine))
    if workers is not None and workers < 1:
        raise UserError(f"runtime.workers must be at least 1 process, and is {workers}.")
    if engine == "single":
        if workers is not None and workers > 1:
            raise UserError(
                f"runtime.workers={workers} processes share nothing by themselves. Set runtime=ddp or fsdp."
            )
        return 1
    if workers is None and device == "cpu":
        raise UserError(f"runtime={engine} on a processor needs a number of processes, such as runtime.workers=2.")
    return workers or visible_gpus()


def visible_gpus() -> int:
    """Return how many GPUs a process may use; at least 1."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return max(len([name for name in named.split(",") if name.strip()]), 1)
    return max(len(list(Path("/dev").glob("nvidia[0-9]*"))), 1)


def resolve_dtype(dtype: str, device: str) -> str:
    """Return the precision that "auto" stands for: bfloat16 where the device multiplies it natively, else float32.

    On processors without bfloat16 instructions its matrix products are emulated and several times slower than float32.
    """
    if dtype != "auto":
        return dtype
    native = {"avx512_bf16", "amx_bf16", "bf16"}
    return "bfloat16" if device == "cuda" or native & cpu_flags() else "float32"
