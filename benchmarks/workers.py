"""A tool in a process of its own, which therefore has its own peak memory and can take turns with another.

A fresh interpreter imports the libraries of all tools once, and is forked for every process (`multiprocessing`'s fork
server). All processes thus begin with the same memory. No torch here, because the processes import the tools.
"""

from __future__ import annotations

import logging
import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from stages.common.machine import resident_bytes

if TYPE_CHECKING:
    from benchmarks.tools import Tool


def apart(module: str, function: Callable[..., Any], *arguments: Any, seconds: float | None = None) -> Any:
    """Return the result of `function` in a process of its own, forked from one that has imported `module`.

    If this process is interrupted meanwhile, the other one ends too.

    Raises:
        TimeoutError: it took more than `seconds`. The other process is ended.
    """
    with _process(module) as pool:
        try:
            return pool.submit(function, *arguments).result(seconds)
        except (KeyboardInterrupt, SystemExit, TimeoutError):
            # The pool would wait for what runs in it, which nobody waits for any more.
            for process in multiprocessing.active_children():
                process.kill()
            raise


def _process(module: str) -> ProcessPoolExecutor:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([module])
    return ProcessPoolExecutor(1, mp_context=context)


class Worker:
    """A process that has loaded a model into a tool.

    Attributes:
        load_seconds: seconds until the tool was ready.
        libraries_bytes: memory that the process held before; None where the system does not tell.
        threads: the processor threads that it uses.
    """

    def __init__(self, tool: str, model: Path, *, dtype: str, device: str, threads: int | None) -> None:
        self.pool = _process("benchmarks.tools")
        starting = self.pool.submit(_start, tool, model, dtype, device, threads)
        self.load_seconds, self.libraries_bytes, self.threads = starting.result()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.pool.shutdown()

    def call(self, method: str, *arguments: Any) -> Any:
        """Return what the tool's `method` returns."""
        return self.pool.submit(_call, method, *arguments).result()

    def peak_memory(self) -> int | None:
        """Return the most bytes it has held: on the GPU, or in the process where the system tells it."""
        return self.pool.submit(_peak_memory).result()


_tool: Tool
"""The one tool of a worker's process."""


def _start(name: str, model: Path, dtype: str, device: str, threads: int | None) -> tuple[float, int | None, int]:
    global _tool
    import torch
    from transformers.utils.logging import disable_progress_bar

    from benchmarks.tools import opened

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    disable_progress_bar()
    if threads is not None:
        torch.set_num_threads(threads)
    libraries = resident_bytes("VmRSS")
    started = time.perf_counter()
    _tool = opened(name, model, dtype, device)
    return time.perf_counter() - started, libraries, torch.get_num_threads()


def _call(method: str, *arguments: Any) -> Any:
    return getattr(_tool, method)(*arguments)


def _peak_memory() -> int | None:
    import torch

    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else resident_bytes("VmHWM")
