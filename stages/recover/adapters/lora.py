"""LoRA: Low-Rank Adaptation of Large Language Models (arXiv 2106.09685).

    h = W x + (alpha / r) B A x        A: r x in, Kaiming-uniform;  B: out x r, zero

No deviations. It is attached to all seven projections by default, where the paper adapts queries and values.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from stages.recover.adapters.adapter import Adapter
from stages.recover.adapters.low_rank import attach_lora, merge_lora, save_lora
from stages.recover.config import AdapterConfig

if TYPE_CHECKING:
    from torch.nn import Module
    from transformers import PreTrainedModel


def scaling(config: AdapterConfig) -> float:
    """Return alpha / r."""
    return config.alpha / config.rank


def attach(model: PreTrainedModel, config: AdapterConfig, masked: Collection[str] = ()) -> Module:
    """Attach LoRA to `model` in place."""
    return attach_lora(model, config, masked)


LORA = Adapter(scaling=scaling, attach=attach, save=save_lora, merge=merge_lora)
