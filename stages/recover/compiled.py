"""Decoder layers compiled by inductor: elementwise operations are fused, the rest stays as it was.

Attention stays outside the compiled part (`torch.compiler.disable` where it is defined), because the lengths of
documents change with every batch. So one compilation serves all batches, and layers of one shape share it. The points
of the curve are scored without it (`stages.recover.curve`), because trees of answers have shapes of their own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

VARIANTS = 4
"""Compilations that layers of one shape may need: with and without a gradient of their input, first and later sizes."""


def compile_layers(model: PreTrainedModel) -> None:
    """Let every decoder layer of `model` be compiled at its first pass; `recover.plan` checks for a compiler."""
    layers = model.get_decoder().layers
    dynamo = torch._dynamo.config
    # torch counts compilations by the code that runs, which the layers share, and gives up beyond the limit.
    dynamo.recompile_limit = max(dynamo.recompile_limit, VARIANTS * len(layers))
    for layer in layers:
        layer.compile(dynamic=True)
