"""Devices and number of processes that a run gets on this machine, found without importing torch."""

from __future__ import annotations

import os
from pathlib import Path

from pipeline.planning.graph import Graph
from pipeline.schema.config import RuntimeConfig
from stages.common.checks import require
from stages.common.choices import lookup
from stages.errors import UserError
from stages.stage import ENGINES


def check_runtime(runtime: RuntimeConfig) -> None:
    """Raise a `UserError` for an option of the runtime group that is outside its range."""
    device, threads, seconds = runtime.device, runtime.threads, runtime.checkpoint_seconds
    require(device in ("auto", "cpu", "cuda"), "runtime.device", "auto, cpu or cuda", device)
    require(threads is None or threads >= 1, "runtime.threads", "at least 1", threads)
    require(runtime.device_map in (None, "auto"), "runtime.device_map", "null or auto", runtime.device_map)
    require(seconds >= 0, "runtime.checkpoint_seconds", "at least 0", seconds)


def unread(runtime: RuntimeConfig, graph: Graph) -> dict[str, str]:
    """Return the options of the runtime and the tracker that change nothing for `graph`, each with the reason."""
    found = {}
    if graph.device == "cpu":
        found["runtime.deterministic"] = "a processor adds in a fixed order anyway"
    if not resolve_cards("auto", graph.device):
        found["runtime.device_map"] = f"there are not several GPUs to spread a model over (device: {graph.device})"
    if not {"prune", "recover"} & graph.roles.keys():
        found["tracker"] = "nothing is pruned or recovered, so there is nothing to track"
    if "recover" not in graph.roles:
        found["runtime.checkpoint_seconds"] = "nothing is recovered, and only recoveries keep checkpoints"
    return found


def resolve_device(device: str) -> str:
    """Return the device's name. "auto" is "cuda" where a CUDA driver is loaded and not hidden, else "cpu"."""
    if device != "auto":
        return device
    return "cuda" if driver_found() else "cpu"


def driver_found() -> bool:
    """Return whether a CUDA driver is loaded and not hidden, as far as that is seen without torch."""
    # The driver's device file is there once the driver is loaded. Asking torch would mean importing it.
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "0") in ("", "-1")
    return Path("/dev/nvidiactl").exists() and not hidden


def no_gpu(device: str) -> str:
    """Return the line of a plan whose GPU is not seen on this machine; empty where there is one, or none is needed."""
    if device == "cpu" or driver_found():
        return ""
    return "this plan can't run here: runtime=cuda, and no CUDA driver was found (runtime=cpu runs on the processor)"


def check_gpu(device: str) -> None:
    """Raise a `UserError` where stages would run on a GPU and torch finds none."""
    if not no_gpu(device):
        return
    import torch  # some systems have GPUs without the device file that `driver_found` looks for

    if not torch.cuda.is_available():
        raise UserError(
            "runtime=cuda: torch finds no CUDA GPU on this machine. Run on the processor with runtime=cpu, or see that "
            "nvidia-smi lists a GPU, that CUDA_VISIBLE_DEVICES does not hide it, and that torch is a CUDA build."
        )


def resolve_workers(engine: str, workers: int | None, device: str) -> int:
    """Return the number of processes that share a recovery, and an evaluation.

    Raises:
        UserError: the engine is unknown, or does not go with that number.
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


def resolve_cards(device_map: str | None, device: str) -> tuple[str, ...]:
    """Return the GPUs over which a model's layers are spread; none where it is not asked for, or there is one GPU."""
    count = visible_gpus() if device_map == "auto" and device == "cuda" else 1
    return tuple(f"cuda:{index}" for index in range(count)) if count > 1 else ()


def visible_gpus() -> int:
    """Return how many GPUs a process may use, at least 1."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return max(len([name for name in named.split(",") if name.strip()]), 1)
    return max(len(list(Path("/dev").glob("nvidia[0-9]*"))), 1)
