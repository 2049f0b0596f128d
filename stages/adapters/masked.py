"""Low-rank adapters that keep a mask: zeros of the base's weights stay zeros in training and in merging.

    LoRA, RoRA   h = (W + s (B A) ⊙ M) x
    DoRA         h = m V x / ||V||        V = W + s (B A) ⊙ M, the norm over each output's row held constant

with M = [W ≠ 0]. Rank r is then the rank of B A, not of the update. PEFT alone would load the same adapter as W + s B
A, which is another model. A row that is all zero stays all zero, under DoRA too, where its magnitude decides nothing.

The product B A is formed anew in every forward and backward pass (r multiply-accumulates a weight) and not kept between
them. So it takes the memory of one matrix, not of all. A step multiplies each token by five matrices of the layer's
size (W and the update, forward; both and the update's gradient, backward). An adapter without a mask needs two. On a
processor a step of RoRA takes 2.0 times as long (1,024 tokens, rank 16), a step of DoRA 1.8 times.

Shape legend: O outputs, I inputs, R rank.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.lora.layer import LoraLayer, LoraVariant
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from stages.adapters.adapter import ADAPTER
from stages.decoders.masks import with_mask


def keep_masks(model: nn.Module, modules: Collection[str]) -> None:
    """Make the adapters of the named modules of `model` keep the zeros of their weights; its LoRA layers change."""
    for name, layer in model.named_modules():
        if name in modules and isinstance(layer, LoraLayer):
            layer.lora_variant[ADAPTER] = Masked()


class Masked(LoraVariant):  # type: ignore[misc]
    """PEFT's interface for a layer whose adapter PEFT does not compute itself."""

    @staticmethod
    def forward(module: Any, active_adapter: str, x: Tensor, result: Tensor, **_: Any) -> Tensor:
        """Return the layer's output; `result` is the output of the base alone."""
        weight_OI, bias_O = module.base_layer.weight, module.base_layer.bias
        down_RI, up_OR, scaling, magnitude_O = _parts(module, active_adapter)
        dropout = module.lora_dropout[active_adapter]
        dropped: Tensor = dropout(x)
        # Computed again in the backward pass, so that B A ⊙ M is not kept. Dropout is outside, so no random state is.
        change: Tensor = checkpoint(
            _masked_product, dropped, weight_OI, down_RI, up_OR, scaling, use_reentrant=False, preserve_rng_state=False
        )
        if magnitude_O is None:
            return result + change
        base: Tensor = result if bias_O is None else result - bias_O
        # As PEFT's DoRA does: under dropout the factor changes the product with the dropped inputs.
        if module.training and not isinstance(dropout, nn.Identity):
            base = F.linear(dropped, weight_OI)
        factor_O: Tensor = magnitude_O / _norms(_sum(weight_OI, down_RI, up_OR, scaling))
        return result + (factor_O - 1) * base + factor_O * change

    @staticmethod
    def merge_safe(module: Any, active_adapter: str, orig_weight: Tensor) -> Tensor:
        """Return the merged weight: the sum in float32, rounded once, with exactly the zeros of the base's weight.

        A sum that happens to be zero becomes the smallest normal number instead, because the zeros are the mask.
        """
        down_RI, up_OR, scaling, magnitude_O = _parts(module, active_adapter)
        summed_OI = _sum(orig_weight, down_RI, up_OR, scaling)
        if magnitude_O is not None:
            summed_OI *= (magnitude_O.detach() / _norms(summed_OI)).unsqueeze(1)
        return with_mask(summed_OI.to(orig_weight.dtype), orig_weight != 0)

    @staticmethod
    def merge_unsafe(module: Any, active_adapter: str, orig_weight: Tensor) -> None:
        """Merge in place."""
        orig_weight.data = Masked.merge_safe(module, active_adapter, orig_weight.data)

    @staticmethod
    def unmerge(module: Any, active_adapter: str, orig_weight: Tensor) -> Tensor:
        """Refuse: the merged weight has been rounded."""
        raise NotImplementedError("a masked adapter is merged for good")


def _parts(module: Any, adapter: str) -> tuple[Tensor, Tensor, float, Tensor | None]:
    """Return A, B, the scaling, and DoRA's magnitudes or None."""
    magnitudes = module.lora_magnitude_vector
    magnitude_O = magnitudes[adapter].weight if adapter in magnitudes else None
    return module.lora_A[adapter].weight, module.lora_B[adapter].weight, module.scaling[adapter], magnitude_O


def _update(weight_OI: Tensor, down_RI: Tensor, up_OR: Tensor, scaling: float) -> Tensor:
    """Return s (B A) ⊙ M."""
    return torch.where(weight_OI != 0, up_OR @ down_RI, 0.0) * scaling


def _masked_product(x: Tensor, weight_OI: Tensor, down_RI: Tensor, up_OR: Tensor, scaling: float) -> Tensor:
    return F.linear(x, _update(weight_OI, down_RI, up_OR, scaling))


@torch.no_grad()
def _sum(weight_OI: Tensor, down_RI: Tensor, up_OR: Tensor, scaling: float) -> Tensor:
    """Return V in float32."""
    return weight_OI.float() + _update(weight_OI, down_RI.float(), up_OR.float(), scaling)


def _norms(summed_OI: Tensor) -> Tensor:
    """Return the norm of each row; for a row of zeros the smallest normal number, which can be divided by."""
    norms_O: Tensor = torch.linalg.norm(summed_OI, dim=1)
    return norms_O.clamp_min(torch.finfo(torch.float32).tiny)
