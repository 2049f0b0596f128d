"""Counting the places where the processor would wait for a GPU. The meta device stands in for the GPU."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from stages.rows.bounds import sent

READS = ("_local_scalar_dense", "_to_copy", "copy_")
"""Operations by which numbers get from a device to the host."""


class Waits(TorchDispatchMode):
    """Counts by name the operations that make the host wait, while it is active.

    These are all that read numbers of the device on the host, which finds `number` everywhere, and all that take
    numbers of the host to the device. `sent` alone takes them without waiting, from pinned memory. A single number of
    the host may go with a launch as its argument.
    """

    def __init__(self, *, number: int = 0) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self._number = number
        self._made = _Made(self.calls)

    def __enter__(self) -> Any:
        self._made.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._made.__exit__(*error)

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: tuple[Any, ...] = (), options: Mapping[str, Any] | None = None
    ) -> Any:
        name = function._schema.name.removeprefix("aten::")
        given = [each for each in tree_leaves((arguments, options)) if isinstance(each, Tensor)]
        on_device = any(each.is_meta for each in given)
        if on_device and name in READS and (read := self._read(name, arguments, options or {})) is not None:
            self.calls[name] += 1
            return read
        found = function(*arguments, **(options or {}))
        made = [each for each in tree_leaves(found) if isinstance(each, Tensor)]
        taken = any(not each.is_meta and (each.dim() > 0 or name in READS) for each in given)
        if taken and (on_device or any(each.is_meta for each in made)) and sent.__code__ not in _running():
            self.calls[f"{name} to the device"] += 1
        return found

    def _read(self, name: str, arguments: tuple[Any, ...], options: Mapping[str, Any]) -> Any:
        """Return what the host reads; None where the operation leaves it to the device."""
        if name == "_local_scalar_dense":
            return torch.full((), self._number, dtype=arguments[0].dtype).item()
        if name == "_to_copy" and arguments[0].is_meta and torch.device(options.get("device") or "meta").type == "cpu":
            return torch.full(arguments[0].shape, self._number, dtype=options.get("dtype") or arguments[0].dtype)
        if name == "copy_" and arguments[1].is_meta and not arguments[0].is_meta:
            return arguments[0].fill_(self._number)
        return None


class _Made(TorchFunctionMode):
    """Counts tensors that are made of the host's numbers on the device, which dispatch does not tell."""

    def __init__(self, calls: Counter[str]) -> None:
        super().__init__()
        self.calls = calls

    def __torch_function__(
        self, function: Any, types: Any, arguments: tuple[Any, ...] = (), options: Mapping[str, Any] | None = None
    ) -> Any:
        found = function(*arguments, **(options or {}))
        if function in (Tensor.new_tensor, torch.tensor, torch.as_tensor) and found.is_meta:
            self.calls[f"{function.__name__} to the device"] += 1
        return found


def _running() -> Iterator[Any]:
    """Yield the code of the functions that are running."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        yield frame.f_code
        frame = frame.f_back
