"""A linear layer with its low-rank adapter as one operation: PEFT's result with a fraction of its passes over memory.

PEFT computes W x, then adds s B A x by separate operations. Each of them passes over all outputs of the layer and
leaves tensors behind for the backward pass. Here the adapter's product is accumulated onto W x inside the matrix
product (beta = 1), forward and backward. Only x and A x are kept, and for DoRA the output before f:

    LoRA, RoRA   y = W x + s B (A x)
    DoRA         y = f ⊙ (W x + s B (A x)),   f = m / ||V||,  V = W + s B A,  ||V|| held constant in the backward pass

V is never formed: ||V||² = ||W||² + 2 s rowsum(W Aᵀ ⊙ B) + s² rowsum(B (A Aᵀ) ⊙ B). The first term does not change
while W is frozen.

Shape legend: T tokens, O outputs, I inputs, R rank.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.lora.layer import Linear as LoraLinear
from peft.tuners.lora.variants import DoraLinearVariant
from torch import Tensor, nn

from stages.adapters.adapter import ADAPTER
from stages.decoders.quantised import QuantisedLinear


class FusedLora(LoraLinear):  # type: ignore[misc]
    """PEFT's LoRA layer, with a fused forward pass for a plain adapter and for DoRA's; PEFT's own for any other.

    Attributes:
        maps: the group that the layer computes with in a step of a training (`.cast.Maps`); None elsewhere.
    """

    maps: Any = None

    def forward(self, x: Tensor, *arguments: Any, **options: Any) -> Tensor:
        """Return the adapted layer's output [..., O] for x [..., I]."""
        if arguments or options or not self.plain():
            return super().forward(x, *arguments, **options)  # type: ignore[no-any-return]
        if self.maps is not None:
            return self.maps.output(self, x)  # type: ignore[no-any-return]
        base, down_RI, up_OR = self.base_layer, self.lora_A[ADAPTER].weight, self.lora_B[ADAPTER].weight
        factor_O = None
        if ADAPTER in self.lora_variant:
            factor_O = self.lora_magnitude_vector[ADAPTER].weight / self.norms()
        dropped = self.lora_dropout[ADAPTER](x) if self.drops() else None
        operands = [x, dropped, base.weight, base.bias, down_RI, up_OR, factor_O]
        # Cast here as autocast would: it leaves in-place products alone, and the backward pass runs outside it.
        # Autograd sees these casts and takes the gradients back to float32.
        if torch.is_autocast_enabled(x.device.type):
            dtype = torch.get_autocast_dtype(x.device.type)
            operands = [operand if operand is None else operand.to(dtype) for operand in operands]
        with torch.autocast(x.device.type, enabled=False):
            packed = base if isinstance(base, QuantisedLinear) else None
            output: Tensor = _AdaptedLinear.apply(*operands, self.scaling[ADAPTER], packed)  # type: ignore[no-untyped-call]
        return output

    def plain(self) -> bool:
        """Return whether this is one unmerged adapter on a frozen linear layer, of a kind that is computed here."""
        variant = self.lora_variant.get(ADAPTER)
        return (
            self.active_adapters == [ADAPTER]
            and not self.disable_adapters
            and not self.merged
            # Not a subclass, which could compute something else; and it gets no gradient from the backward pass below.
            and type(self.base_layer) in (nn.Linear, QuantisedLinear)
            and not any(parameter.requires_grad for parameter in self.base_layer.parameters())
            and self.lora_A[ADAPTER].weight.dtype == torch.float32
            # Under dropout PEFT's DoRA drops the base's inputs too, but only in what the factor changes.
            and (variant is None or (isinstance(variant, DoraLinearVariant) and not self.drops()))
        )

    def drops(self) -> bool:
        """Return whether the adapter's inputs are dropped."""
        return self.training and not isinstance(self.lora_dropout[ADAPTER], nn.Identity)

    @torch.no_grad()
    def norms(self) -> Tensor:
        """Return the norm of each row of V, in float32."""
        weight_OI, scaling = self.base_layer.weight, self.scaling[ADAPTER]
        down_RI, up_OR = self.lora_A[ADAPTER].weight, self.lora_B[ADAPTER].weight
        # ||W||², once for the whole training.
        if (own_O := getattr(self, "_own_norms_O", None)) is None:
            own_O = self._own_norms_O = torch.linalg.vecdot(weight_OI.float(), weight_OI.float())
        with torch.autocast(weight_OI.device.type, enabled=False):
            met_OR = (weight_OI @ down_RI.T.to(weight_OI.dtype)).float()
            # Both other terms have a factor B: 2 s W Aᵀ + s² B (A Aᵀ) is multiplied by it once, below.
            mixed_OR = 2 * scaling * met_OR + scaling**2 * (up_OR @ (down_RI @ down_RI.T))
        squared_O: Tensor = own_O + torch.linalg.vecdot(mixed_OR, up_OR)
        # Rounding can take a small sum below zero, and a row of zeros could not be divided by.
        return squared_O.clamp_min(torch.finfo(torch.float32).tiny).sqrt()


class _AdaptedLinear(torch.autograd.Function):
    """y = f ⊙ (x Wᵀ + s d Aᵀ Bᵀ) + bias, where W, bias and ||V|| are constants.

    d is x after dropout; `dropped` is None where d is x itself. Where W is held `packed`, the backward pass makes it
    whole again.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        dropped: Tensor | None,
        weight_OI: Tensor,
        bias_O: Tensor | None,
        down_RI: Tensor,
        up_OR: Tensor,
        factor_O: Tensor | None,
        scaling: float,
        packed: QuantisedLinear | None,
    ) -> Tensor:
        x_TI = x.reshape(-1, x.shape[-1])
        dropped_TI = x_TI if dropped is None else dropped.reshape(x_TI.shape)
        inner_TR = dropped_TI @ down_RI.T
        # DoRA scales the product and not the bias, which is then added last.
        output_TO = F.linear(x_TI, weight_OI, bias_O if factor_O is None else None)
        output_TO.addmm_(inner_TR, up_OR.T, alpha=scaling)
        unscaled_TO = None
        if factor_O is not None:
            # Kept for the gradient of f; without f no output of the layer is kept.
            unscaled_TO, output_TO = output_TO, output_TO * factor_O
            if bias_O is not None:
                output_TO += bias_O
        kept_OI = weight_OI if packed is None else None
        ctx.save_for_backward(dropped_TI, kept_OI, down_RI, up_OR, inner_TR, factor_O, unscaled_TO)
        ctx.scaling, ctx.dropout, ctx.packed = scaling, dropped is not None, packed
        return output_TO.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        dropped_TI, weight_OI, down_RI, up_OR, inner_TR, factor_O, unscaled_TO = ctx.saved_tensors
        slope_TO = upstream[0].reshape(-1, upstream[0].shape[-1])
        slope_O = None
        if factor_O is not None:
            slope_O = torch.linalg.vecdot(slope_TO, unscaled_TO, dim=0)
            slope_TO = slope_TO * factor_O
        # From outputs to rank first: the gradients of A and of x then cost R a token and input, not O.
        slope_TR = slope_TO @ up_OR
        slope_OR = (slope_TO.T @ inner_TR).mul_(ctx.scaling)
        slope_RI = (slope_TR.T @ dropped_TI).mul_(ctx.scaling)
        slope_x = slope_dropped = None
        if ctx.needs_input_grad[0]:
            slope_x = slope_TO @ (weight_OI if ctx.packed is None else ctx.packed.weight.to(slope_TO.dtype))
            # With dropout the two paths meet different inputs: autograd adds them up behind the dropout's own backward.
            if ctx.dropout:
                slope_dropped = (slope_TR @ down_RI).mul_(ctx.scaling).view(*upstream[0].shape[:-1], -1)
            else:
                slope_x.addmm_(slope_TR, down_RI, alpha=ctx.scaling)
            slope_x = slope_x.view(*upstream[0].shape[:-1], -1)
        return slope_x, slope_dropped, None, None, slope_RI, slope_OR, slope_O, None, None
