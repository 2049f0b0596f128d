"""Decoder layers compiled by inductor: elementwise operations fused, the rest as it was.

Attention stays outside the compiled part (`torch.compiler.disable` where it is defined), because documents' lengths
change with every batch; so one compilation serves all batches, and layers of one shape share it. The curve's points are
scored without it (`stages.recover.curve`): trees of answers have shapes of their own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

VARIANTS = 4
"""Compilations that layers of one shape may need: with and without a gradient of their input, first and later sizes."""


def compile_layers(model: PreTrainedModel) -> None:
    """Compile every decoder layer of `model` at its first pass; `recover.plan` has seen that there is a compiler."""
    layers = model.get_decoder().layers
    dynamo = torch._dynamo.config
    dynamo.recompile_limit = max(dynamo.recompile_limit, VARIANTS * len(layers))
    for layer in layers:
        layer.compile(dynamic=True)
