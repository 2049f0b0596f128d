"""Products with bfloat16 weights on a processor that multiplies float32 faster: in float32, block by block.

Without bfloat16 instructions torch emulates them. That takes three to six times as long as float32, and a float32 copy
of the largest matrix. A block of rows that is cast and multiplied at once costs a cast and no copy. The result is also
more exact: sums are in float32, and only the result is rounded.

Shape legend: N tokens, R rows (outputs) and C columns (inputs) of a weight.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from stages.common.machine import multiplies_bfloat16
from stages.prune.memory.sizes import PRODUCT


def slow(tensor: Tensor) -> bool:
    """Return whether products with `tensor` are faster in float32."""
    if tensor.device.type != "cpu" or tensor.dtype not in (torch.bfloat16, torch.float16):
        return False
    return not multiplies_bfloat16()


class FastProducts(TorchFunctionMode):
    """A context within which linear maps with slow, untrained weights are computed in float32 blocks."""

    def __torch_function__(
        self, function: Any, types: Any, arguments: tuple[Any, ...] = (), keywords: dict[str, Any] | None = None
    ) -> Any:
        if function is F.linear and not keywords and slow(arguments[1]) and not _trains(arguments[1]):
            return _Linear.apply(*arguments[:2], arguments[2] if len(arguments) > 2 else None)  # type: ignore[no-untyped-call]
        return function(*arguments, **(keywords or {}))


def _trains(weight: Tensor) -> bool:
    return torch.is_grad_enabled() and weight.requires_grad


class _Linear(torch.autograd.Function):
    """x Wᵀ + b, and the gradient of x."""

    @staticmethod
    def forward(context: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        context.save_for_backward(weight)
        x_NC = x.flatten(0, -2).float()
        y_NR = x.new_empty(len(x_NC), len(weight))
        for rows, block_RC in _blocks(weight):
            product = x_NC @ block_RC.T
            y_NR[:, rows] = product if bias is None else product.add_(bias[rows])
        return y_NR.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        (weight,) = context.saved_tensors
        dy_NR = gradient.flatten(0, -2)
        dx_NC = torch.zeros(len(dy_NR), weight.shape[1])
        for rows, block_RC in _blocks(weight):
            dx_NC.addmm_(dy_NR[:, rows].float(), block_RC)
        return dx_NC.to(gradient.dtype).view(*gradient.shape[:-1], -1), None, None


def _blocks(weight: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yield rows of `weight` and their values in float32."""
    step = max(1, PRODUCT // weight.shape[1])
    for start in range(0, len(weight), step):
        rows = slice(start, start + step)
        yield rows, weight[rows].float()
