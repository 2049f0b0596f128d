"""Frozen linear layers whose weights are held in 8 or 4 bits: a whole weight exists only while it is multiplied by.

NF4 (QLoRA, arXiv 2305.14314): 64 weights share the largest of their absolute values, and each weight is one of 16
numbers, the quantiles of a normal distribution. That is 4.5 bits a weight. 8 bits (arXiv 2110.02861): 256 weights share
the largest of their absolute values, and each is one of 256 numbers. bitsandbytes has the kernels. QLoRA also quantises
the shared numbers, which saves 0.4 bits a weight; this is left out.

A product costs one pass over the weight more than with plain weights, forward and backward.

Shape legend: O outputs, I inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.decoders.holding import BLOCKS, STORED

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Packing(NamedTuple):
    """How a weight is packed and made whole again."""

    pack: Callable[[Tensor], tuple[Tensor, Any]]
    """Returns, for a weight [O, I], what is held of it."""
    whole: Callable[[Tensor, Any], Tensor]
    """Returns the weight again, [O, I] in its dtype, for what `pack` returned."""


def packing(way: str) -> Packing:
    """Return bitsandbytes' packing of a way in `BLOCKS`."""
    from bitsandbytes import functional

    block = BLOCKS[way]
    if way == "8bit":
        return Packing(partial(functional.quantize_blockwise, blocksize=block), functional.dequantize_blockwise)
    quantise = partial(functional.quantize_4bit, blocksize=block, quant_type=way)
    return Packing(quantise, functional.dequantize_4bit)


class QuantisedLinear(nn.Linear):
    """A frozen linear layer that holds its weight packed.

    What is held is no buffer: nothing saves it, and no worker sends it to others.
    """

    def __init__(self, linear: nn.Linear, packing: Packing, device: str) -> None:
        """Pack the weight of `linear` on `device`; the bias is moved there as it is."""
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        # A weight that is a view of more would hold all of it.
        self.held = packing.pack(linear.weight.detach().to(device).contiguous())
        self.make_whole = packing.whole
        self.bias = None if linear.bias is None else nn.Parameter(linear.bias.detach().to(device), requires_grad=False)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The weight [O, I], made whole anew: whoever keeps it keeps what packing saves."""
        return self.make_whole(*self.held)

    def forward(self, input: Tensor) -> Tensor:
        """Return [..., O] for an input of [..., I]."""
        if torch.is_autocast_enabled(input.device.type):
            input = input.to(torch.get_autocast_dtype(input.device.type))
        output: Tensor = _Product.apply(input, self)  # type: ignore[no-untyped-call]
        # Outside, because a bias may be trained beside an adapter.
        return output if self.bias is None else output + self.bias.to(output.dtype)


class _Product(torch.autograd.Function):
    """x Wᵀ, whose backward pass makes the weight whole again instead of keeping it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: QuantisedLinear) -> Tensor:
        ctx.layer = layer
        return F.linear(x, layer.weight.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None]:
        return upstream[0] @ ctx.layer.weight.to(upstream[0].dtype), None


def hold(model: PreTrainedModel, way: str, device: str) -> PreTrainedModel:
    """Return `model` on `device`, with the linear layers of its decoder held in the given way; changed in place.

    Embeddings, norms and the output layer stay as they are. Layers are packed one by one, so the device never holds
    the model as it was.
    """
    if way != STORED:
        quantise(model, packing(way), device)
    return model.to(device)  # type: ignore[no-any-return]


def quantise(model: PreTrainedModel, packing: Packing, device: str) -> None:
    """Put packed layers on `device` in the place of the linear layers of the decoder."""
    # A list, because the modules are exchanged while they are walked.
    for parent in list(model.get_decoder().modules()):
        for name, child in parent.named_children():
            if type(child) is nn.Linear:
                setattr(parent, name, QuantisedLinear(child, packing, device))
