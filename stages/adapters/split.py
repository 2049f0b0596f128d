"""A low-rank adapter that begins as a part of the weight itself: the weight without it, and what is saved.

    h = (W - s B0 A0) x + s B A x,    B = B0, A = A0 at the start        s: the scaling

So training starts at the base model. The base's weight changes when the adapter is attached. B0 and A0 are float32;
PEFT rounds its own to the base's precision.

The saved adapter is the same model as a plain LoRA of rank 2r on the unchanged W (PEFT can convert its own in this
way):

    W + s B A - s B0 A0 = W + s [B, -B0] [A; A0]

With a mask M = [W != 0] the weight is W - s (B0 A0) M and the update s (B A) M (`.masked`). Their sum is saved. DoRA's
magnitudes are those of the whole W from the start, and are saved as they are.

Which part is split off is decided in `.principal` and `.corda`.

Shape legend: O outputs, I inputs, R rank.
"""

from __future__ import annotations

from math import sqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.adapters.adapter import ADAPTER
from stages.adapters.low_rank import lora_fields, lora_layers, lora_tensors, write_lora
from stages.decoders.masks import with_mask

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module


def split_off(layer: Any, up_OR: Tensor, down_RI: Tensor, *, masked: bool) -> None:
    """Begin B and A of a LoRA layer with these matrices, and subtract their scaled product from its weight."""
    import torch

    weight_OI = layer.base_layer.weight.detach()
    with torch.no_grad():
        rest_OI = (weight_OI.float() - layer.scaling[ADAPTER] * (up_OR @ down_RI)).to(weight_OI.dtype)
        if masked:
            rest_OI = with_mask(rest_OI, weight_OI != 0)
    layer.base_layer.weight.data = rest_OI
    # `save` subtracts the start from the trained product, so it is kept as it was. No checkpoint has it: a resumed
    # recovery attaches the adapter again, from the same seed.
    for name, factors, value in (("A", layer.lora_A, down_RI), ("B", layer.lora_B, up_OR)):
        factors[ADAPTER].weight.data = value.contiguous()
        layer.register_buffer(f"initial_{name}", value.clone(), persistent=False)


def save(adapted: Module, directory: Path) -> None:
    """Write the plain LoRA of rank 2r in PEFT's format.

    alpha grows with the rank so that the scaling stays, for each layer with a rank of its own too: by 2 where the
    scaling is alpha / r, by the root of 2 where it is alpha / sqrt(r).
    """
    import torch

    tensors = lora_tensors(adapted)
    for name, layer in lora_layers(adapted):
        tensors[f"{name}.lora_A.weight"] = torch.cat([layer.lora_A[ADAPTER].weight.detach(), layer.initial_A])
        tensors[f"{name}.lora_B.weight"] = torch.cat([layer.lora_B[ADAPTER].weight.detach(), -layer.initial_B], dim=1)
    config: Any = adapted.peft_config[ADAPTER]  # type: ignore[union-attr, index]
    doubled = {name: 2 * rank for name, rank in config.rank_pattern.items()}
    alpha = config.lora_alpha * (sqrt(2) if config.use_rslora else 2)
    fields = {"r": 2 * config.r, "lora_alpha": alpha, "rank_pattern": doubled}
    write_lora(tensors, lora_fields(adapted) | fields, directory)
