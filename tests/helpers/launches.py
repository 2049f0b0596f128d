"""Counting the calls into ATen that a GPU would launch as kernels, on a processor."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

FREE = ("empty", "new_empty", "_unsafe_view", "lift_fresh", "profiler::")
"""Beginnings of the names of calls that only allocate, rename memory or tell a profiler; views say so themselves."""


class Launches(TorchDispatchMode):
    """Counts calls by name while it is active, and stand-ins for fused kernels as one call each."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: tuple[Any, ...] = (), options: Mapping[str, Any] | None = None
    ) -> Any:
        name = function._schema.name.removeprefix("aten::")
        if not function.is_view and not name.startswith(FREE):
            self.calls[name] += 1
        return function(*arguments, **(options or {}))

    def kernel(self, name: str, outputs: Callable[..., list[Tensor]]) -> Callable[..., tuple[Tensor, ...]]:
        """Return a stand-in for a fused kernel: one call forward, one backward, and no arithmetic.

        Its outputs have the shapes and strides of what `outputs` returns for its inputs, and its gradients those of its
        inputs.
        """
        launches = self

        class Kernel(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, *tensors: Tensor) -> tuple[Tensor, ...]:
                launches.calls[name] += 1
                ctx.given = [torch.empty_like(tensor) for tensor in tensors]
                return tuple(torch.empty_like(tensor) for tensor in outputs(*tensors))

            @staticmethod
            def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, ...]:
                launches.calls[f"{name} backward"] += 1
                return tuple(ctx.given)

        return Kernel.apply  # type: ignore[no-any-return]
