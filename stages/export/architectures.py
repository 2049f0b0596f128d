"""The architecture of llama.cpp that computes a decoder, and the shapes it is written in. No torch here: a plan asks.

Each family's record (`stages.decoders.registry`) names its architecture. llama.cpp's `llama` takes any number of heads,
any head size, and optional biases, as long as all layers are alike. Its `deci` is the same computation with head
counts, key/value head counts and feed-forward lengths for each layer. Whatever computes what a llama does is written as
one of these two. The other families have their own architectures there, which take one shape for all layers.

Two facts from llama.cpp's src/models/*.cpp decide how sub-layers that pruning removed are written:

* `deci` skips an attention that has no heads. But it takes a layer without feed-forward for one without attention too,
  and drops what its attention computed. Such a layer gets a feed-forward of zeros, which computes zero.
* The size of a head is read only where the first layer has heads. A first layer without heads gets one head of zeros.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from stages.common.choices import nearest
from stages.decoders.family import Gguf
from stages.decoders.registry import FAMILIES
from stages.decoders.shapes import DecoderShape, LayerShape
from stages.errors import UserError

ZERO_CHANNELS = 32
"""MLP channels of zeros in place of a removed MLP: one block of the 8-bit format."""


@dataclass(frozen=True, slots=True)
class Target:
    """The form in which a decoder is written: llama.cpp's architecture, and each layer's shape with stand-ins."""

    architecture: str
    layers: tuple[LayerShape, ...]
    rules: Gguf
    """The record of the architecture."""

    @property
    def uniform(self) -> bool:
        """Whether each header field is one number for all layers."""
        return self.architecture != self.rules.differing


def target(shape: DecoderShape) -> Target:
    """Return the form in which a decoder of `shape` is written.

    Raises:
        UserError: llama.cpp has no architecture for the family, or the family's does not take the shape.
    """
    family = FAMILIES.get(shape.family)
    rules = None if family is None else family.gguf
    if rules is None:
        known = [name for name, family in FAMILIES.items() if family.gguf is not None]
        raise UserError(
            f"export=gguf: models of type '{shape.family}' can't be written for llama.cpp"
            f"{nearest(shape.family, known) or '.'} Known: {', '.join(known)}. "
            "Publish the Hugging Face directory instead: export=hf."
        )
    if rules.differing is None:
        _check_alike(shape, rules)
        return Target(rules.architecture, shape.layers, rules)
    layers = tuple(_stand_in(layer, first=index == 0) for index, layer in enumerate(shape.layers))
    alike = len(set(layers)) == 1 and layers[0].heads > 0
    return Target(rules.architecture if alike else rules.differing, layers, rules)


def _check_alike(shape: DecoderShape, rules: Gguf) -> None:
    """Raise unless an architecture with one shape for all layers takes this one."""
    first, name = shape.layers[0], rules.architecture
    otherwise = "or publish the Hugging Face directory: export=hf."
    if not shape.uniform or not first.heads or not first.mlp:
        others = [name for name, family in FAMILIES.items() if family.gguf is not None and family.gguf.differing]
        raise UserError(
            f"export=gguf: llama.cpp's {name} takes one shape for all layers, each with attention and MLP, and these "
            f"differ. Prune all layers alike (prune.layers=all prune.allocation=uniform), {otherwise} "
            f"Layers of differing shape can be written for {', '.join(others)}."
        )
    if not rules.llama_order and (shape.qkv_bias or shape.o_bias or shape.mlp_bias or shape.output_bias):
        raise UserError(
            f"export=gguf: llama.cpp's {name} has no place for biases, and this model has some. Compensate without "
            f"them (prune.compensate=none, least_squares or sequential), {otherwise}"
        )
    if rules.filling_heads and first.heads * shape.head_dim != shape.hidden:
        raise UserError(
            f"export=gguf: llama.cpp's {name} takes only heads that fill the hidden size ({shape.hidden}), and "
            f"{first.heads} of {shape.head_dim} do not. Prune MLP channels or whole layers "
            f"(prune.granularity=[channels]), {otherwise}"
        )


def _stand_in(layer: LayerShape, *, first: bool) -> LayerShape:
    """Return the shape in which a layer is written, with zeros where the architecture needs a removed part."""
    if first and not layer.heads:
        layer = replace(layer, heads=1, kv_heads=1)
    return layer if layer.mlp else replace(layer, mlp=ZERO_CHANNELS)
