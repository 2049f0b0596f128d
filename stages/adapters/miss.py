"""MiSS: Matrix Shard Sharing (arXiv 2409.15371; earlier versions call it Bone).

    h = W x + D (x₁ + x₂ + … + x_k)        D: out x r, zero;  x_i: the i-th r inputs of x, the last filled up with zeros

Every shard of r columns of the weight gets the same update D. So an adapter is one matrix, a step costs one small
product, and the update's rank is at most r. No scaling, as in PEFT. Deviation: rank 32 by default, at which a square
weight has as many trained parameters as LoRA at rank 16; PEFT has 64.

In masked modules the shared update is multiplied by the mask, in training and in merging (`.miss_masked`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from stages.adapters.adapter import Kept
from stages.adapters.through_peft import PeftAdapterConfig, through_peft

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import PreTrainedModel


@dataclass(kw_only=True, slots=True)
class MissConfig(PeftAdapterConfig):
    """An update that all shards of a weight share."""

    rank: int = 32
    """Rank r: the number of columns of a shard; at least 1 and at most the number of inputs."""
    dropout: float = 0.0
    """Probability of dropping an input of the adapter while training."""


def configured(settings: MissConfig, model: PreTrainedModel, shared: Mapping[str, Any]) -> PeftConfig:
    """Return PEFT's configuration."""
    import peft

    return peft.MissConfig(miss_dropout=settings.dropout, **shared)


def keep_masks(model: PreTrainedModel, masked: Collection[str]) -> None:
    """Multiply the update of the named modules by the mask of their weight."""
    if masked:
        from stages.adapters.miss_masked import MaskedMiss

        for name in masked:
            layer = model.get_submodule(name)
            if hasattr(layer, "miss_block"):
                layer.__class__ = MaskedMiss


MISS = replace(
    through_peft(
        configured,
        MissConfig,
        largest=lambda layer: layer.in_features,
        trained=lambda layer, rank: rank * layer.out_features,
        keeps=lambda maps, rank, each: Kept(each * rank * len(maps)),
        keep_masks=keep_masks,
    ),
    leaves_base=lambda settings: True,
)
