"""The layer of `bottleneck`, which takes the place of a linear layer and holds it.

Shape legend: I inputs of the linear layer, O its outputs, B bottleneck.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {"tanh": torch.tanh, "relu": F.relu, "gelu": F.gelu, "silu": F.silu}


class Options(Protocol):
    """The options of the adapter that a layer reads (`.bottleneck` describes them)."""

    bottleneck: int
    activation: str
    scaling: float
    dropout: float
    targets: list[str]


class Bottleneck(nn.Module):
    """y + s U f(D z), where y is the linear layer's output, and z is y itself or the layer's input.

    Attributes:
        multiply_accumulates: multiply-accumulates a token that the adapter adds to those of the layer.
    """

    def __init__(self, base_layer: nn.Linear, options: Options, *, series: bool) -> None:
        super().__init__()
        self.base_layer, self.options, self.series = base_layer, options, series
        inputs = base_layer.out_features if series else base_layer.in_features
        device = base_layer.weight.device
        # Drawn on the processor, so that a GPU starts from the same numbers.
        drawn = torch.empty(options.bottleneck, inputs, dtype=torch.float32)
        self.down = nn.Parameter(nn.init.kaiming_uniform_(drawn, a=math.sqrt(5)).to(device))
        self.up = nn.Parameter(torch.zeros(base_layer.out_features, options.bottleneck, device=device))
        self.activation = FUNCTIONS[options.activation]
        self.multiply_accumulates = self.down.numel() + self.up.numel()

    def forward(self, x: Tensor) -> Tensor:
        """Return [..., O] for x of [..., I], in the precision of the linear layer."""
        y: Tensor = self.base_layer(x)
        # The matrices are float32 while they are trained, whatever the precision of the base.
        read = F.dropout(y if self.series else x, self.options.dropout, self.training).to(self.down.dtype)
        change = F.linear(self.activation(F.linear(read, self.down)), self.up)
        return y + (self.options.scaling * change).to(y.dtype)


def wrap(model: PreTrainedModel, options: Options, *, series: bool) -> PreTrainedModel:
    """Give the target layers of `model`'s decoder an adapter, in place; nothing else is trained. Returns `model`."""
    model.requires_grad_(False)
    # A list, because the modules are exchanged while they are walked.
    for parent in list(model.get_decoder().modules()):
        for name, child in parent.named_children():
            if name in options.targets and isinstance(child, nn.Linear):
                setattr(parent, name, Bottleneck(child, options, series=series))
    return model


def matrices(adapted: nn.Module) -> dict[str, nn.Parameter]:
    """Return the trained matrices, by the names under which they are saved."""
    layers = {name: layer for name, layer in adapted.named_modules() if isinstance(layer, Bottleneck)}
    return {f"{name}.{part}": getattr(layer, part) for name, layer in layers.items() for part in ("down", "up")}


def options(adapted: nn.Module) -> Any:
    """Return the options that `adapted` was wrapped with."""
    return next(layer.options for layer in adapted.modules() if isinstance(layer, Bottleneck))
