"""The places in a live decoder of the weights that pruning removes.

This module owns the way from a model to its layers' linear maps, to the norms that belong to them and to every
parameter along the hidden channels. What they cost is in `stages.decoders.shapes`; how a family names them is in
`.registry`. Scoring and cutting reach weights only through here, so no criterion and no surgery names an architecture.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stages.decoders.family import Family, Names
from stages.decoders.registry import family_of
from stages.decoders.shapes import LayerShape

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class Projection:
    """A linear map whose rows (outputs) or columns (inputs) belong to the groups that pruning keeps or removes.

    Where a family fuses maps into one (phi3's qkv_proj), a projection is the `size` rows of it from `start` on.
    """

    name: str
    linear: nn.Linear
    axis: int
    """Axis of `linear.weight` along which groups lie: 0 for rows, 1 for columns."""
    per_query_head: bool = False
    """Whether the axis runs over query heads (q, o) and not over key/value heads (k, v)."""
    start: int = 0
    size: int | None = None
    """Number of rows of a fused map that are this projection's; None for the whole map."""

    @property
    def weight(self) -> Tensor:
        """This projection's own part of the weight, as a view."""
        return self.part(self.linear.weight)

    def part(self, whole: Tensor) -> Tensor:
        """Return this projection's own rows of `whole`, which has the shape of `linear.weight` or of its bias."""
        return whole if self.size is None else whole.narrow(0, self.start, self.size)


@dataclass(frozen=True, slots=True)
class HiddenAxis:
    """A parameter with one axis along the hidden channels: a matrix, or the vector of a norm or of a bias."""

    name: str
    """The module's dotted name from the model, and the parameter's."""
    module: nn.Module
    parameter: str
    """The parameter's name in `module`: weight or bias."""
    axis: int

    @property
    def weight(self) -> nn.Parameter:
        """The whole parameter."""
        return getattr(self.module, self.parameter)  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True)
class HeadNorm:
    """A norm of q or k over all heads at once. Its weight is cut together with the rows of q or k."""

    module: nn.Module
    per_query_head: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerAnatomy:
    """One layer. The first projection of each tuple is the root: the map that a group is named after.

    A sub-layer that has been removed has no projections and no norms.
    """

    index: int
    module: nn.Module
    shape: LayerShape
    head_dim: int
    attention: tuple[Projection, ...]
    mlp: tuple[Projection, ...]
    head_norms: tuple[HeadNorm, ...] = ()

    @property
    def projections(self) -> tuple[Projection, ...]:
        """All projections, attention's first."""
        return self.attention + self.mlp


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderAnatomy:
    """A decoder: its layers, and every parameter with an axis along the hidden channels. Tied embeddings count once."""

    layers: list[LayerAnatomy]
    hidden: list[HiddenAxis]
    norm_offset: float
    """The number that norms add to their weights before they multiply by them."""
    scaled_embedding: bool
    """Whether embeddings are multiplied by the square root of the hidden size."""

    @property
    def norms(self) -> list[HiddenAxis]:
        """The norms of the residual stream and of what is added to it. The final norm is the last."""
        return [place for place in self.hidden if place.parameter == "weight" and place.weight.ndim == 1]


def decoder_anatomy(model: PreTrainedModel) -> DecoderAnatomy:
    """Return the anatomy of `model`, with shapes read from its weights.

    Raises:
        UserError: the model's family is not known.
    """
    family = family_of(model.config.to_dict())
    head_dim = _head_dim(model)
    decoder: Any = model.get_decoder()
    layers = [_layer(index, layer, family, head_dim) for index, layer in enumerate(decoder.layers)]
    embedding, output = model.get_input_embeddings(), model.get_output_embeddings()
    hidden = [(embedding, "weight", 1), *(place for layer in layers for place in _hidden_places(layer, family))]
    hidden += [(decoder.norm, "weight", 0)]
    hidden += [] if output.weight is embedding.weight else [(output, "weight", 1)]
    dotted = {module: name for name, module in model.named_modules()}
    return DecoderAnatomy(
        layers=layers,
        hidden=[HiddenAxis(f"{dotted[module]}.{name}", module, name, axis) for module, name, axis in hidden],
        norm_offset=family.norm_offset,
        scaled_embedding=family.scaled_embedding,
    )


def decoder_layers(model: PreTrainedModel) -> list[LayerAnatomy]:
    """Return the anatomy of every layer of `model`, with shapes read from the weights.

    Raises:
        UserError: the model's family is not known.
    """
    return decoder_anatomy(model).layers


def layer_anatomy(index: int, module: nn.Module, model: PreTrainedModel) -> LayerAnatomy:
    """Return the anatomy of `module`, which is layer `index` of `model` or a copy of it."""
    return _layer(index, module, family_of(model.config.to_dict()), _head_dim(model))


def _head_dim(model: PreTrainedModel) -> int:
    config: Any = model.config
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _layer(index: int, layer: Any, family: Family, head_dim: int) -> LayerAnatomy:
    names = family.names
    heads = kv_heads = mlp = 0
    attention: tuple[Projection, ...] = ()
    feed_forward: tuple[Projection, ...] = ()
    # A sub-layer that pruning removed has no maps.
    if hasattr(layer.self_attn, names.output):
        attention = _attention(layer.self_attn, names)
        # The rows of q and k say how many heads this layer has, whatever the config says.
        heads, kv_heads = (len(attention[map_].weight) // head_dim for map_ in (0, 1))
    if hasattr(layer.mlp, names.down):
        feed_forward = _mlp(layer.mlp, names)
        mlp = len(feed_forward[0].weight)
    over_all_heads = (("q_norm", True), ("k_norm", False)) if attention and family.head_norms == "all" else ()
    return LayerAnatomy(
        index=index,
        module=layer,
        shape=LayerShape(heads, kv_heads, mlp),
        head_dim=head_dim,
        attention=attention,
        mlp=feed_forward,
        head_norms=tuple(HeadNorm(getattr(layer.self_attn, name), queries) for name, queries in over_all_heads),
    )


def _attention(module: Any, names: Names) -> tuple[Projection, ...]:
    query, key, value, output = (getattr(module, name) for name in (names.query, names.key, names.value, names.output))
    out = Projection("o_proj", output, 1, per_query_head=True)
    if query is not key:
        return (
            Projection("q_proj", query, 0, per_query_head=True),
            Projection("k_proj", key, 0),
            Projection("v_proj", value, 0),
            out,
        )
    # One map under all three names: the queries' rows, then the keys', then as many of the values.
    queries = output.in_features
    keys = (query.out_features - queries) // 2
    return (
        Projection("q_proj", query, 0, per_query_head=True, start=0, size=queries),
        Projection("k_proj", query, 0, start=queries, size=keys),
        Projection("v_proj", query, 0, start=queries + keys, size=keys),
        out,
    )


def _mlp(module: Any, names: Names) -> tuple[Projection, ...]:
    gate, up, down = (getattr(module, name) for name in (names.gate, names.up, names.down))
    # Where one map has both names, gate's rows come first and up's after them.
    size = None if gate is not up else down.in_features
    return (
        Projection("gate_proj", gate, 0, start=0, size=size),
        Projection("up_proj", up, 0, start=size or 0, size=size),
        Projection("down_proj", down, 1),
    )


def _hidden_places(layer: LayerAnatomy, family: Family) -> Iterator[tuple[nn.Module, str, int]]:
    """Yield (module, parameter, axis) of a layer's hidden channels: its norms, and its projections' other side."""
    norms = family.attention_norms if layer.attention else ()
    norms += family.mlp_norms if layer.mlp else ()
    for name in norms:
        yield layer.module.get_submodule(name), "weight", 0
    # Projections of a fused map have one `linear`, which is yielded once.
    for projection in {projection.linear: projection for projection in layer.projections}.values():
        yield projection.linear, "weight", 1 - projection.axis
        # Only a map that writes to the residual stream has a bias along the hidden channels.
        if projection.axis == 1 and projection.linear.bias is not None:
            yield projection.linear, "bias", 0
