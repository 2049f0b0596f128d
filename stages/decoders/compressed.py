"""Models in the format of compressed-tensors, made ordinary again: what vLLM computes, in plain modules.

A compressed linear layer holds its weight in few bits with scales. It is loaded by transformers and made whole once.
A scheme may also round what goes into a layer, each token by a scale of its own. `RoundedLinear` does so at each pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.common.progress import barless

if TYPE_CHECKING:
    from transformers import PreTrainedModel

QUANTISED = "quantization_config"
"""The field of config.json that a compressed model has."""
INTEGERS = 127
"""The largest of the whole numbers that an input is rounded to. They are -128 to 127."""
FLOATS = torch.float8_e4m3fn
"""The format of 8-bit floats that an input is rounded to."""


class RoundedLinear(nn.Linear):
    """A linear layer whose inputs are rounded to 8 bits, each token by a scale of its own."""

    def __init__(self, weight_OI: nn.Parameter, bias_O: nn.Parameter | None, *, floats: bool) -> None:
        nn.Module.__init__(self)
        self.out_features, self.in_features = weight_OI.shape
        self.weight, self.floats, self.rounds = weight_OI, floats, True
        self.register_parameter("bias", bias_O)

    def forward(self, input: Tensor) -> Tensor:
        """Return [..., O] for an input of [..., I]."""
        given = rounded(input, floats=self.floats) if self.rounds else input
        return F.linear(given, self.weight, self.bias)


@contextmanager
def unrounded(model: nn.Module) -> Iterator[None]:
    """Let the inputs of `model` be as they are for a while.

    Two ways of computing one thing differ in their last bits. Rounding makes steps of these, now and then.
    """
    layers = [module for module in model.modules() if isinstance(module, RoundedLinear)]
    for layer in layers:
        layer.rounds = False
    try:
        yield
    finally:
        for layer in layers:
            layer.rounds = True


def rounded(values: Tensor, *, floats: bool) -> Tensor:
    """Return `values` [..., I] as 8 bits hold them, with one scale for each run of I: floats (e4m3), or whole numbers.

    The scale maps the largest absolute value to the format's largest. Of whole numbers, that is half the range.
    """
    largest = values.abs().amax(-1, keepdim=True)
    most = torch.finfo(FLOATS).max if floats else INTEGERS + 0.5
    scale = largest / most
    scale = torch.where(scale == 0, torch.finfo(values.dtype).eps, scale)
    if floats:
        return (values / scale).clamp(-most, most).to(FLOATS).to(values.dtype) * scale
    return (values / scale).clamp(-INTEGERS - 1, INTEGERS).round() * scale


@contextmanager
def unbarred() -> Iterator[None]:
    """Let compressed-tensors show no bars for a while."""
    from compressed_tensors.compressors.model_compressors import model_compressor
    from compressed_tensors.offload import dispatch
    from compressed_tensors.quantization.lifecycle import apply

    with barless(model_compressor, dispatch, apply):
        yield


def made_ordinary(model: PreTrainedModel) -> PreTrainedModel:
    """Return `model`, loaded from compressed weights, with ordinary linear layers; changed in place."""
    compressor: Any = model.hf_quantizer.compressor
    with unbarred():
        compressor.decompress_model(model)
    # A list, because the modules are exchanged while they are walked.
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            scheme = getattr(child, "quantization_scheme", None)
            if scheme is not None:
                setattr(parent, name, _ordinary(child, scheme))
    model.hf_quantizer = None
    return model


def _ordinary(layer: Any, scheme: Any) -> nn.Linear:
    weight = nn.Parameter(layer.weight.detach(), requires_grad=False)
    inputs = scheme.input_activations
    if inputs is not None:
        return RoundedLinear(weight, layer.bias, floats=inputs.type == "float")
    plain = nn.Linear(1, 1, bias=False, device="meta")
    plain.out_features, plain.in_features = weight.shape
    plain.weight, plain.bias = weight, layer.bias
    return plain
