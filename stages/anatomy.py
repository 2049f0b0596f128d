"""Where the prunable projections of a live decoder are: one small entry a family.

Owns the way from a model to its layers' linear maps. What they cost is `stages.shapes`; scoring and cutting reach
weights only through here, so that no criterion and no surgery names an architecture.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from stages.methods import lookup
from stages.shapes import LayerShape, family_name

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class Projection:
    """A linear map whose rows (outputs) or columns (inputs) belong to the groups that pruning keeps or removes.

    Where a family fuses maps into one (phi3's qkv_proj), a projection is `size` rows of it from `start` on.
    """

    name: str
    linear: nn.Linear
    axis: int
    """Axis of `linear.weight` along which groups lie: 0 for rows, 1 for columns."""
    per_query_head: bool = False
    """Whether the axis runs over query heads (q, o) and not over key/value heads (k, v)."""
    start: int = 0
    size: int | None = None
    """Rows of a fused map; None for all."""

    @property
    def weight(self) -> Tensor:
        """This projection's own part of the weight, a view."""
        return self.part(self.linear.weight)

    def part(self, whole: Tensor) -> Tensor:
        """Return this projection's own rows of `whole`, which is shaped as `linear.weight` (or its bias)."""
        return whole if self.size is None else whole.narrow(0, self.start, self.size)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerAnatomy:
    """The projections of one layer. The first of each tuple is the root, the map that a group is named after."""

    index: int
    shape: LayerShape
    head_dim: int
    attention: tuple[Projection, ...]
    mlp: tuple[Projection, ...]

    @property
    def projections(self) -> tuple[Projection, ...]:
        """All of them, attention first."""
        return self.attention + self.mlp


@dataclass(frozen=True, slots=True, kw_only=True)
class Names:
    """A family's names of modules, dotted, from the model or from a layer."""

    layers: str = "model.layers"
    query: str = "self_attn.q_proj"
    key: str = "self_attn.k_proj"
    value: str = "self_attn.v_proj"
    output: str = "self_attn.o_proj"
    gate: str = "mlp.gate_proj"
    up: str = "mlp.up_proj"
    down: str = "mlp.down_proj"


NAMES: dict[str, Names] = {"llama": Names(), "mistral": Names()}


def decoder_layers(model: PreTrainedModel) -> list[LayerAnatomy]:
    """Return the anatomy of every layer of `model`, shapes read off its weights.

    Raises:
        UserError: its family is not known.
    """
    names = lookup("model family (model_type in config.json)", family_name(model.config.to_dict()), NAMES)
    head_dim = getattr(model.config, "head_dim", None) or model.config.hidden_size // model.config.num_attention_heads
    return [
        _anatomy(index, layer, names, head_dim)
        for index, layer in enumerate(model.get_submodule(names.layers).children())
    ]


def _anatomy(index: int, layer: nn.Module, names: Names, head_dim: int) -> LayerAnatomy:
    def linear(name: str) -> nn.Linear:
        return cast("nn.Linear", layer.get_submodule(name))

    query, key, value, output = map(linear, (names.query, names.key, names.value, names.output))
    gate, up, down = map(linear, (names.gate, names.up, names.down))
    return LayerAnatomy(
        index=index,
        shape=LayerShape(query.out_features // head_dim, key.out_features // head_dim, gate.out_features),
        head_dim=head_dim,
        attention=(
            Projection("q_proj", query, 0, per_query_head=True),
            Projection("k_proj", key, 0),
            Projection("v_proj", value, 0),
            Projection("o_proj", output, 1, per_query_head=True),
        ),
        mlp=(Projection("gate_proj", gate, 0), Projection("up_proj", up, 0), Projection("down_proj", down, 1)),
    )
