"""Low-rank adapters that begin as a part of the weight itself, which the weight alone decides: PiSSA and OLoRA.

    h = (W - s B0 A0) x + s B A x,    B = B0, A = A0 at the start        s = alpha / r

How the weight without that part is kept, and what is saved: `.split`.

Shape legend: O outputs, I inputs, R rank.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from stages.adapters.adapter import ADAPTER, Adapter
from stages.adapters.lora import scaling
from stages.adapters.low_rank import LowRankConfig, attach_lora, lora_layers, low_rank
from stages.adapters.split import save, split_off

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
            weight_OI = layer.base_layer.weight.detach().float()
            up_OR, down_RI = start(weight_OI, layer.r[ADAPTER], layer.scaling[ADAPTER], settings)
            split_off(layer, up_OR, down_RI, masked=name in masked)
        return adapted

    return replace(low_rank(scaling, config=config), attach=attach, save=save, leaves_base=lambda settings: False)
