"""Which of llama.cpp's architectures computes a decoder, and the shapes it is written in. No torch here: a plan asks.

llama.cpp's `llama` takes any number of heads and any head size, and optional biases, as long as all layers are alike;
its `deci` is the same computation with head counts, key/value head counts and feed-forward lengths of each layer. So
whatever computes what a llama does is written as one of these two: llama and mistral, qwen2 (a llama with biases on q,
k, v) and phi3 (a llama whose projections are stored fused). The other families have their own architecture there, which
takes one shape for all layers.

Read in llama.cpp's src/models/*.cpp; two facts decide how sub-layers that pruning removed are written. `deci` skips an
attention that has no heads, but takes a layer without feed-forward for one without attention too, and drops what its
attention computed: such a layer gets a feed-forward of zeros, which computes zero. And the size of a head is read only
where the first layer has heads: a first layer without gets one head of zeros.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from stages.common.choices import nearest
from stages.decoders.shapes import DecoderShape, LayerShape
from stages.errors import UserError

LLAMA_LIKE = ("llama", "mistral", "qwen2", "phi3")
"""Families that compute what a llama does."""
OWN = {"qwen3": "qwen3", "gemma2": "gemma2", "gemma3_text": "gemma3", "olmo2": "olmo2"}
"""llama.cpp's architecture of the other families."""
ZERO_CHANNELS = 32
"""MLP channels of zeros in place of an MLP that was removed: one block of the 8-bit format."""


@dataclass(frozen=True, slots=True)
class Target:
    """How a decoder is written: llama.cpp's architecture, and each layer's shape with stand-ins for what is not there.

    `llama_order` says that the rows of q and k are stored in the order of the original llama, whose rotary embedding
    turns neighbouring rows; Hugging Face's turns row i with row i + head_dim/2.
    """

    architecture: str
    layers: tuple[LayerShape, ...]

    @property
    def llama_order(self) -> bool:
        """Whether the rows of q and k are interleaved."""
        return self.architecture in ("llama", "deci")

    @property
    def uniform(self) -> bool:
        """Whether one number a field describes all layers."""
        return self.architecture != "deci"


def target(shape: DecoderShape) -> Target:
    """Return how a decoder of `shape` is written.

    Raises:
        UserError: llama.cpp has no architecture for the family, or the family's does not take the shape.
    """
    if shape.family in LLAMA_LIKE:
        layers = tuple(_stand_in(layer, first=index == 0) for index, layer in enumerate(shape.layers))
        alike = len(set(layers)) == 1 and layers[0].heads > 0
        return Target("llama" if alike else "deci", layers)
    known = (*LLAMA_LIKE, *OWN)
    if shape.family not in OWN:
        raise UserError(
            f"export=gguf: models of type '{shape.family}' can't be written for llama.cpp"
            f"{nearest(shape.family, known) or '.'} Known: {', '.join(known)}. "
            "Publish the Hugging Face directory instead: export=hf."
        )
    _check_own(shape)
    return Target(OWN[shape.family], shape.layers)


def _check_own(shape: DecoderShape) -> None:
    """Raise unless the family's own architecture takes the shape."""
    first, name = shape.layers[0], OWN[shape.family]
    otherwise = "or publish the Hugging Face directory: export=hf."
    if not shape.uniform or not first.heads or not first.mlp:
        raise UserError(
            f"export=gguf: llama.cpp's {name} takes one shape for all layers, each with attention and MLP, and these "
            f"differ. Prune all layers alike (prune.layers=all prune.allocation=uniform), {otherwise} "
            f"Layers of differing shape can be written for {', '.join(LLAMA_LIKE)}."
        )
    if name == "olmo2" and first.heads * shape.head_dim != shape.hidden:
        raise UserError(
            f"export=gguf: llama.cpp's olmo2 takes only heads that fill the hidden size ({shape.hidden}), and "
            f"{first.heads} of {shape.head_dim} do not. Prune MLP channels or whole layers "
            f"(prune.granularity=[channels]), {otherwise}"
        )


def _stand_in(layer: LayerShape, *, first: bool) -> LayerShape:
    """Return the shape a layer is written in, with zeros where the architecture can't do without."""
    if first and not layer.heads:
        layer = replace(layer, heads=1, kv_heads=1)
    return layer if layer.mlp else replace(layer, mlp=ZERO_CHANNELS)
