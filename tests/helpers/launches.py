"""Counting the calls into ATen that a GPU would launch as kernels, on a processor."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

FREE = ("empty", "new_empty", "new_zeros", "_unsafe_view", "lift_fresh")
"""Beginnings of the names of calls that only allocate or rename memory; views say so themselves."""


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

    def kernel(self, shapes: Callable[..., list[torch.Size]], name: str) -> Callable[..., tuple[Tensor, ...]]:
        """Return a stand-in for a fused kernel of these outputs: one call forward, one backward, and no arithmetic."""
        launches = self

        class Kernel(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, *tensors: Tensor) -> tuple[Tensor, ...]:
                launches.calls[name] += 1
                ctx.given = [(tensor.shape, tensor.dtype) for tensor in tensors]
                return tuple(tensors[0].new_zeros(shape) for shape in shapes(*tensors))

            @staticmethod
            def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, ...]:
                launches.calls[f"{name} backward"] += 1
                return tuple(slopes[0].new_zeros(shape, dtype=dtype) for shape, dtype in ctx.given)

        return Kernel.apply  # type: ignore[no-any-return]
