"""Shapes of decoder-only transformers and their cost, from the fields of a `config.json` alone.

This module owns the exact count of parameters and multiply-accumulates. No torch here, because a plan counts before
anything is downloaded. Differences between families are in `stages.decoders.registry`; the places of the weights in a
live model are in `.anatomy`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from stages.common.checks import short
from stages.decoders.registry import FAMILIES, family_name, family_of
from stages.errors import UserError

MOST = 2**31 - 1
"""The largest size that a config.json may give: what a kernel's 32-bit indices reach."""
MOST_LAYERS = 10_000
"""The largest number of layers. The deepest published models have less than 1,000."""


@dataclass(frozen=True, slots=True)
class LayerShape:
    """The part of a layer's shape that pruning changes. A sub-layer of size 0 is removed, together with its norms."""

    heads: int
    """Query heads."""
    kv_heads: int
    """Key/value heads. Each serves `heads / kv_heads` adjacent query heads."""
    mlp: int
    """Channels between gate/up and down."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderShape:
    """Everything about a decoder that decides how many parameters it has."""

    family: str
    hidden: int
    head_dim: int
    vocabulary: int
    tied: bool
    """Whether the output projection is the embedding matrix."""
    layers: tuple[LayerShape, ...]
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    output_bias: bool = False
    """Whether compensation gave o and down a bias, in any family."""

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> DecoderShape:
        """Return the shape that the fields of a `config.json` describe.

        Raises:
            UserError: the family is not known (the message names the known ones), or a field is missing or impossible.
        """
        family = family_of(config)
        fields = {**family.defaults, **config}
        hidden, heads = _size(fields, "hidden_size"), _size(fields, "num_attention_heads")
        kv_heads = heads if fields.get("num_key_value_heads") is None else _size(fields, "num_key_value_heads")
        dense = LayerShape(heads, kv_heads, _size(fields, "intermediate_size"))
        count = _size(fields, "num_hidden_layers", MOST_LAYERS)
        layers = _layers(fields, count) or (dense,) * count
        for layer in layers:
            if layer.heads and layer.heads % layer.kv_heads:
                raise UserError(
                    f"config.json: {layer.heads} query heads can't share {layer.kv_heads} key/value heads evenly."
                )
        return cls(
            family=family_name(config),
            hidden=hidden,
            head_dim=_size(fields, "head_dim") if fields.get("head_dim") else _head_dim(hidden, heads),
            vocabulary=_size(fields, "vocab_size"),
            tied=bool(fields.get("tie_word_embeddings", False)),
            layers=layers,
            qkv_bias=_flag(family.qkv_bias, fields),
            o_bias=_flag(family.o_bias, fields),
            mlp_bias=_flag(family.mlp_bias, fields),
            output_bias=bool(fields.get("output_bias", False)),
        )

    @property
    def uniform(self) -> bool:
        """Whether every layer has the same shape."""
        return len(set(self.layers)) == 1

    @property
    def beyond_stock(self) -> str:
        """What the shape has that no stock architecture has; empty where there is nothing."""
        if not self.uniform:
            return "layers differ in shape"
        if not (self.layers[0].heads and self.layers[0].mlp):
            return "layers lack a sub-layer"
        if self.output_bias and not (self.o_bias and self.mlp_bias):
            return "the output projections have got a bias"
        return ""

    def with_layers(self, layers: Sequence[LayerShape]) -> DecoderShape:
        """Return this decoder with other layer shapes."""
        return replace(self, layers=tuple(layers))

    def with_hidden(self, hidden: int) -> DecoderShape:
        """Return this decoder with another number of hidden channels."""
        return replace(self, hidden=hidden)

    def with_output_bias(self) -> DecoderShape:
        """Return this decoder with a bias on every o and down."""
        return replace(self, output_bias=True)

    def parameters(self) -> int:
        """Return the number of parameters. Tied embeddings count once."""
        # The hidden size by itself is the final norm.
        return self.embedding_parameters() + self.hidden + sum(self.layer_parameters(layer) for layer in self.layers)

    def embedding_parameters(self) -> int:
        """Return the parameters of the embedding and, unless tied, of the output projection."""
        return self.vocabulary * self.hidden * (1 if self.tied else 2)

    def layer_parameters(self, layer: LayerShape) -> int:
        """Return the parameters of one layer."""
        return self.attention_parameters(layer) + self.mlp_parameters(layer)

    def attention_parameters(self, layer: LayerShape) -> int:
        """Return the parameters of one layer's attention: its projections and norms."""
        if not layer.heads:
            return 0
        family = FAMILIES[self.family]
        queries, keys = layer.heads * self.head_dim, layer.kv_heads * self.head_dim
        # q and o have a row or column for each query channel, k and v for each key channel.
        weights = 2 * (queries + keys) * self.hidden
        biases = self.qkv_bias * (queries + 2 * keys) + (self.o_bias or self.output_bias) * self.hidden
        head_norms = {"": 0, "each": 2 * self.head_dim, "all": queries + keys}[family.head_norms]
        return weights + biases + head_norms + len(family.attention_norms) * self.hidden

    def mlp_parameters(self, layer: LayerShape) -> int:
        """Return the parameters of one layer's MLP: its gate, up and down projections and norms."""
        if not layer.mlp:
            return 0
        biases = self.mlp_bias * 2 * layer.mlp + (self.mlp_bias or self.output_bias) * self.hidden
        return 3 * layer.mlp * self.hidden + biases + len(FAMILIES[self.family].mlp_norms) * self.hidden

    def multiply_accumulates(self, tokens: int) -> int:
        """Return the multiply-accumulates of a forward pass for each token of a sequence of `tokens` tokens.

        Counted are the projections, the output projection onto the vocabulary, and attention over all `tokens` keys
        (as a dense kernel works, and as published counts have it). Not counted: norms, rotations, activations, softmax.
        """
        layers = sum(self.layer_multiply_accumulates(layer, tokens) for layer in self.layers)
        return layers + self.vocabulary * self.hidden

    def layer_multiply_accumulates(self, layer: LayerShape, tokens: int) -> int:
        """Return the same count for one layer alone."""
        projections = 2 * (layer.heads + layer.kv_heads) * self.head_dim + 3 * layer.mlp
        # Attention: each query times all keys, and each weight times a value.
        return projections * self.hidden + 2 * layer.heads * self.head_dim * tokens


def shape_in(config: Mapping[str, Any]) -> DecoderShape | None:
    """Return the shape that the fields of a `config.json` describe; None for an architecture that is not known."""
    try:
        return DecoderShape.from_config(config)
    except UserError:
        return None


def _size(config: Mapping[str, Any], name: str, most: int = MOST) -> int:
    value = config.get(name)
    if type(value) is not int or not 1 <= value <= most:
        raise UserError(f"config.json: {name} is {short(repr(value))} and must be a whole number from 1 to {most:,}.")
    return value


def _head_dim(hidden: int, heads: int) -> int:
    if hidden < heads:
        raise UserError(f"config.json: {heads} heads can't share a hidden size of {hidden}.")
    return hidden // heads


def _layers(config: Mapping[str, Any], count: int) -> tuple[LayerShape, ...]:
    """Return the shapes of layers that differ, as a pruned model's config.json has them; none where it has none."""
    shapes = config.get("layer_shapes")
    if shapes is None:
        return ()
    sound = isinstance(shapes, (list, tuple)) and len(shapes) == count
    if not sound or not all(_is_layer(shape) for shape in shapes):
        raise UserError(
            "config.json: layer_shapes must hold [query heads, key/value heads, MLP channels] for each of the "
            f"{count} layers, as whole numbers, and is {short(repr(shapes))}."
        )
    return tuple(LayerShape(*shape) for shape in shapes)


def _is_layer(shape: Any) -> bool:
    if (
        not isinstance(shape, (list, tuple))
        or len(shape) != 3
        or not all(type(n) is int and 0 <= n <= MOST for n in shape)
    ):
        return False
    heads, kv_heads, _ = shape
    # Heads need keys to read, and keys heads that read them.
    return bool(heads) == bool(kv_heads)


def _flag(rule: bool | str, config: Mapping[str, Any]) -> bool:
    return bool(config.get(rule, False)) if isinstance(rule, str) else rule
