"""How much memory a piece of work takes."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from stages.common.machine import resident_bytes, return_freed_memory

MARK = Path("/proc/self/clear_refs")
has_mark = pytest.mark.skipif(not MARK.exists(), reason="the system has no high-water mark to reset")


def peak_bytes(work: Callable[[], object]) -> int:
    """Return the most bytes the process holds during `work` above what it held before."""
    gc.collect()
    return_freed_memory()
    before = resident_bytes("VmRSS") or 0
    MARK.write_text("5", encoding="ascii")
    work()
    return (resident_bytes("VmHWM") or 0) - before


class _Held(TorchDispatchMode):
    """Counts the bytes of the tensors that are alive, at every operation."""

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()
        self.alive = {tensor.untyped_storage()._cdata: 0 for tensor in known}
        self.now = self.most = 0

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        output = function(*arguments, **(keywords or {}))
        for tensor in tree_leaves(output):
            if isinstance(tensor, Tensor) and (key := tensor.untyped_storage()._cdata) not in self.alive:
                self.alive[key] = tensor.untyped_storage().nbytes()
                self.now += self.alive[key]
                weakref.finalize(tensor.untyped_storage(), self._freed, key)
        self.most = max(self.most, self.now)
        return output

    def _freed(self, key: int) -> None:
        self.now -= self.alive.pop(key)


def held_bytes(work: Callable[[], object], model: nn.Module) -> int:
    """Return the most bytes of tensors that are alive at once during `work`, beside the weights of `model`.

    So much an allocator needs that keeps nothing for later, on any device.
    """
    held = _Held(model.parameters())
    with held:
        work()
    return held.most
