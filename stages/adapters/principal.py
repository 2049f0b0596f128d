"""Low-rank adapters that begin as a part of the weight itself: PiSSA and OLoRA.

    h = (W - s B0 A0) x + s B A x,    B = B0, A = A0 at the start        s = alpha / r

So training starts at the base model. The base's weight changes when the adapter is attached. B0 and A0 are float32;
PEFT rounds its own to the base's precision.

The saved adapter is the same model as a plain LoRA of rank 2r on the unchanged W (PEFT can convert its own in this
way):

    W + s B A - s B0 A0 = W + s [B, -B0] [A; A0]

With a mask M = [W != 0] the weight is W - s (B0 A0) M and the update s (B A) M (`.masked`). Their sum is saved.

Shape legend: O outputs, I inputs, R rank.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.adapters.adapter import ADAPTER, Adapter
from stages.adapters.lora import scaling
from stages.adapters.low_rank import LowRankConfig, attach_lora, lora_layers, low_rank, write_lora
from stages.decoders.masks import with_mask

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module
    from transformers import PreTrainedModel

Start = Callable[["Tensor", int, float, Any], "tuple[Tensor, Tensor]"]
"""Returns B0 [O, R] and A0 [R, I] for (W [O, I] in float32, R, s, options)."""


def principal(start: Start, config: type[LowRankConfig] = LowRankConfig) -> Adapter:
    """Return the adapter that begins as the part of each weight that `start` splits off."""

    def attach(model: PreTrainedModel, settings: LowRankConfig, masked: Collection[str] = ()) -> Module:
        adapted = attach_lora(model, settings, masked)
        for name, layer in lora_layers(model):
            _begin(layer, start, settings, masked=name in masked)
        return adapted

    return replace(low_rank(scaling, config=config), attach=attach, save=save)


def _begin(layer: Any, start: Start, settings: LowRankConfig, *, masked: bool) -> None:
    """Set A and B, and subtract their scaled product from the base's weight."""
    import torch

    weight_OI = layer.base_layer.weight.detach()
    scale = layer.scaling[ADAPTER]
    with torch.no_grad():
        up_OR, down_RI = start(weight_OI.float(), layer.r[ADAPTER], scale, settings)
        rest_OI = (weight_OI.float() - scale * (up_OR @ down_RI)).to(weight_OI.dtype)
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

    Twice the rank and twice alpha leave alpha / r as it was, for each layer with a rank of its own too.
    """
    import torch

    tensors: dict[str, Tensor] = {}
    for name, layer in lora_layers(adapted):
        down_RI, up_OR = (factors[ADAPTER].weight.detach() for factors in (layer.lora_A, layer.lora_B))
        tensors[f"{name}.lora_A.weight"] = torch.cat([down_RI, layer.initial_A])
        tensors[f"{name}.lora_B.weight"] = torch.cat([up_OR, -layer.initial_B], dim=1)
    config: Any = adapted.peft_config[ADAPTER]  # type: ignore[union-attr, index]
    doubled = {name: 2 * rank for name, rank in config.rank_pattern.items()}
    fields = {"r": 2 * config.r, "lora_alpha": 2 * config.lora_alpha, "rank_pattern": doubled}
    write_lora(tensors, config.to_dict() | fields, directory)
