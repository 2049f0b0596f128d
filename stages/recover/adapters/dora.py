"""DoRA: Weight-Decomposed Low-Rank Adaptation (arXiv 2402.09353).

    h = m (W + (alpha / r) B A) x / ||W + (alpha / r) B A||        m: one magnitude an output, from ||W||

The norm is taken over each output's row and held constant in the backward pass (the paper's section 4.3). No
deviations beyond the targets: all seven projections, where the paper leaves out the output and gate projections.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from stages.recover.adapters.adapter import Adapter
from stages.recover.adapters.lora import scaling
from stages.recover.adapters.low_rank import attach_lora, merge_lora, save_lora
from stages.recover.config import AdapterConfig

if TYPE_CHECKING:
    from torch.nn import Module
    from transformers import PreTrainedModel


def attach(model: PreTrainedModel, config: AdapterConfig, masked: Collection[str] = ()) -> Module:
    """Attach DoRA to `model` in place."""
    return attach_lora(model, config, masked, use_dora=True)


DORA = Adapter(scaling=scaling, attach=attach, save=save_lora, merge=merge_lora)
