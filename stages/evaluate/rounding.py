"""A stand-in for a pruned model whose MLP widths are rounded, to time what rounding would buy.

Processors and GPUs multiply some widths faster than others. A cut leaves widths as they come, unless `prune.round_to`
rounds them.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

from stages.decoders.shapes import DecoderShape

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MULTIPLE = 64
"""The multiple to which widths are rounded, to the nearest."""


def rounded(model: PreTrainedModel) -> PreTrainedModel | None:
    """Return a model of random weights in the shape of `model`, with rounded widths; None where they are so already.

    Its precision and device are those of `model`. A layer without an MLP stays without one.
    """
    shape = DecoderShape.from_config(model.config.to_dict())
    widths = [_nearest(layer.mlp) for layer in shape.layers]
    if widths == [layer.mlp for layer in shape.layers]:
        return None
    config = copy.deepcopy(model.config)
    if hasattr(config, "layer_shapes"):
        layers = zip(shape.layers, widths, strict=True)
        config.layer_shapes = [[layer.heads, layer.kv_heads, width] for layer, width in layers]
    else:
        config.intermediate_size = widths[0]
    built: PreTrainedModel = type(model)._from_config(config, dtype=model.dtype).to(model.device).eval()
    return built


def _nearest(width: int) -> int:
    return max(MULTIPLE, (width + MULTIPLE // 2) // MULTIPLE * MULTIPLE) if width else 0
