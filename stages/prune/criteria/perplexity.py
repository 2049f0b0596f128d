"""Perplexity (Shortened LLaMA, Kim et al. 2024, arXiv 2402.02834): a layer scores by the loss of the model without it.

Each layer is left out by itself, and the perplexity of the calibration text is measured. The layers whose absence costs
least are removed whole, all at once. The criterion only runs forward. The score is the rise of the loss in nats a
token,

    log PPL(without the layer) − log PPL(dense).

It ranks as the paper's perplexity does, adds up over layers better, and can be negative. Attention and MLP are left out
in the same way, each with its norms, where `prune.granularity` asks for them.

The state before a layer is computed once, so scoring all of n layers runs about n²/2 layers instead of n². The paper's
code takes 10 calibration sequences of 128 tokens (`prune.calibration.length=128`) of BookCorpus.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from stages.prune.config import PruneConfig
from stages.prune.memory.resident import Resident, always

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from stages.decoders.anatomy import LayerAnatomy
    from stages.prune.groups import Scores
    from stages.prune.statistics.layerwise import Layerwise


@dataclass(kw_only=True, slots=True)
class PerplexityConfig(PruneConfig):
    """The perplexity criterion has no options of its own; it scores layers, attention and mlp."""

    method: str = "perplexity"
    granularity: list[str] = field(default_factory=lambda: ["layers"])


def tried(config: PerplexityConfig, layers: int) -> float:
    """Return the tokens that pass through the whole model: without each part, half of the layers run again."""
    tokens = config.calibration.sequences * config.calibration.length
    return tokens * layers * len(config.granularity) / 2


def score(
    model: PreTrainedModel,
    layers: Sequence[LayerAnatomy],
    ids_BT: Tensor | None,
    config: PerplexityConfig,
    resident: Resident = always,
) -> Scores:
    """Return the rise of the calibration loss, in nats a token, without each layer or sub-layer of `layers`."""
    from stages.common.progress import progress
    from stages.prune.groups import Scores
    from stages.prune.statistics.activations import calibrated

    decoder = calibrated(model, ids_BT, resident)
    before_BTH = decoder.embedded()
    dense = _mean_loss(decoder, 0, before_BTH)
    scores, reached = {}, 0
    with progress("perplexity without each layer", total=len(layers), unit="layer") as bar:
        for layer in sorted(layers, key=lambda layer: layer.index):
            for index in range(reached, layer.index):
                before_BTH = decoder.run(index, before_BTH)
            reached = layer.index
            scores[layer.index] = {
                kind: _mean_loss(decoder, layer.index + 1, behind_BTH) - dense
                for kind, behind_BTH in _without(decoder, layer, before_BTH, config.granularity)
            }
            bar.update()
    return Scores(scores)


def _without(
    decoder: Layerwise, layer: LayerAnatomy, before_BTH: Tensor, kinds: Sequence[str]
) -> Iterator[tuple[str, Tensor]]:
    """Yield each kind that is asked for and that the layer has, with the state behind the layer without that part."""
    from stages.prune.statistics.activations import silenced

    if "layers" in kinds:
        yield "layers", before_BTH
    for kind, projections in (("attention", layer.attention), ("mlp", layer.mlp)):
        if kind in kinds and projections:
            with silenced(projections):
                behind_BTH = decoder.run(layer.index, before_BTH)
            yield kind, behind_BTH


def _mean_loss(decoder: Layerwise, index: int, hidden_BTH: Tensor) -> Tensor:
    """Return the mean loss [1], float64, of the state `hidden` before layer `index`."""
    return decoder.losses(decoder.run_from(index, hidden_BTH)).double().mean().view(1).cpu()
