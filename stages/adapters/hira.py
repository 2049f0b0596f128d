"""HiRA: Parameter-Efficient Hadamard High-Rank Adaptation (ICLR 2025, openreview TwJrTz9cRS).

    h = (W + W ⊙ (B A)) x        A: r x in, Kaiming-uniform;  B: out x r, zero;  ⊙: element by element

The update is the weight times a matrix of rank r, element by element, so its own rank can be as high as the weight's.
A weight of zero gets no update: masks stay by themselves. PEFT's layers form B A and its product with W in every pass
and keep both for the backward pass, which takes two matrices of the weight's size a layer;
`recover.gradient_checkpointing=true` bounds that to one layer at a time.

No scaling, as in PEFT and in the paper. Weights are small (some hundredths), so an update of the same size as LoRA's
asks for a larger B A and a higher rate. Deviations: all seven projections and rank 16, as the other adapters have here;
the paper has rank 32.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stages.adapters.adapter import Kept
from stages.adapters.ranks import Sizes, inputs_of
from stages.adapters.through_peft import PeftAdapterConfig, through_peft

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import PreTrainedModel


@dataclass(kw_only=True, slots=True)
class HiraConfig(PeftAdapterConfig):
    """A factor of low rank on each weight."""

    dropout: float = 0.0
    """Probability of dropping an input of the adapter while training."""


def configured(settings: HiraConfig, model: PreTrainedModel, shared: Mapping[str, Any]) -> PeftConfig:
    """Return PEFT's configuration."""
    import peft

    return peft.HiraConfig(hira_dropout=settings.dropout, **shared)


def keeps(maps: Mapping[str, Sizes], rank: int, each: int) -> Kept:
    """Return what backward needs: the inputs of the maps, and for each weight B A and the changed weight."""
    weights = sum(sizes.in_features * sizes.out_features for sizes in maps.values())
    return Kept(each * inputs_of(maps), 2 * each * weights)


HIRA = through_peft(
    configured,
    HiraConfig,
    largest=lambda layer: min(layer.in_features, layer.out_features),
    trained=lambda layer, rank: rank * (layer.in_features + layer.out_features),
    keeps=keeps,
)
