"""The start of a worker's process.

Workers are forked from a process that has imported everything and computed nothing (multiprocessing's fork server). So
a run imports torch once, not once a worker and stage. Forking from this process itself would copy its threads' locks;
spawning would import torch again for each worker.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.context import ForkServerProcess
from types import ModuleType
from typing import Any

import torch

from stages.errors import UserError

_processes = get_context("forkserver")
_processes.set_forkserver_preload(["stages.decoders.checkpoint", "torch.distributed.fsdp", "peft", "lm_eval.api.task"])


def started(target: Callable[..., None], *arguments: Any) -> ForkServerProcess:
    """Return a started process that calls `target`; both are pickled. It ends with this process, if that ends well."""
    process = _processes.Process(target=target, args=arguments, daemon=True)
    with _nameless_main():
        process.start()
    return process


@contextmanager
def _nameless_main() -> Iterator[None]:
    """Hide the script that runs, which multiprocessing would run again in each worker; no worker needs it."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def threads_each(workers: int) -> int:
    """Return the processor threads of each worker: with all of them each, workers would wait for each other."""
    return max(torch.get_num_threads() // workers, 1)


def check_devices(workers: int, device: str) -> None:
    """Raise a `UserError` where there are fewer GPUs than workers on GPUs."""
    if device != "cpu" and workers > torch.cuda.device_count():
        raise UserError(
            f"runtime.workers={workers}, but {torch.cuda.device_count()} GPUs are visible: each worker needs one. "
            "Lower it, or leave it out."
        )
