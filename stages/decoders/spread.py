"""Models whose layers are spread over several cards, for models larger than one.

Everything but the layers is on the first card. A layer's inputs are moved to its card, and its outputs back to the
first. So whatever runs the model, or one of its layers, meets one card; only what looks into a layer meets that
layer's. The cards work one after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel


def spread(model: PreTrainedModel, cards: Sequence[str]) -> PreTrainedModel:
    """Return `model` with its layers spread over `cards`, torch's names of devices, in the order of the layers."""
    layers = list(model.get_decoder().layers)
    inside = {id(tensor) for layer in layers for tensor in (*layer.parameters(), *layer.buffers())}
    outside = [tensor for tensor in (*model.parameters(), *model.buffers()) if id(tensor) not in inside]
    for tensor in outside:
        tensor.data = tensor.data.to(cards[0])
    sizes = [sum(parameter.nbytes for parameter in layer.parameters()) for layer in layers]
    for layer, place in zip(layers, places(sizes, sum(tensor.nbytes for tensor in outside), len(cards)), strict=True):
        layer.to(cards[place])
        layer.register_forward_pre_hook(_sent(cards[place]), with_kwargs=True, prepend=True)
        layer.register_forward_hook(_returned(cards[0]))
    return model


def places(sizes: Sequence[int], outside: int, cards: int) -> list[int]:
    """Return the card of each layer, so that cards hold about as many bytes each; the first one has `outside` too."""
    share = (outside + sum(sizes)) / cards
    ends = accumulate(sizes, initial=outside)
    return [min(int((start + size / 2) / share), cards - 1) for start, size in zip(ends, sizes, strict=False)]


def _sent(card: str) -> Callable[..., tuple[Any, Any]]:
    from accelerate.utils import send_to_device

    def send(layer: nn.Module, arguments: Any, options: Any) -> tuple[Any, Any]:
        # A cache keeps what it is given where the layer has computed it.
        return send_to_device(arguments, card), send_to_device(options, card, skip_keys=["past_key_values"])

    return send


def _returned(card: str) -> Callable[..., Any]:
    from accelerate.utils import send_to_device

    def send(layer: nn.Module, arguments: Any, output: Any) -> Any:
        return send_to_device(output, card)

    return send
