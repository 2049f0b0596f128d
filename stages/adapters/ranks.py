"""The rank of each adapted layer: one rank for all, and others for the layers that a configuration names.

No torch here: a layer is anything with `in_features` and `out_features`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import NamedTuple, Protocol

from stages.common.choices import nearest
from stages.decoders.shapes import DecoderShape
from stages.errors import UserError

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""A decoder's linear layers."""
JOINED = {"q_proj": "qkv", "k_proj": "qkv", "v_proj": "qkv", "gate_proj": "gate and up", "up_proj": "gate and up"}
"""Projections that read the same input as their siblings in a module, by the name of what they form."""


class Layer(Protocol):
    """A linear layer."""

    @property
    def in_features(self) -> int:
        """Number of inputs."""

    @property
    def out_features(self) -> int:
        """Number of outputs."""


class Sizes(NamedTuple):
    """The sizes of a linear layer, as a shape gives them."""

    in_features: int
    out_features: int


def layers_of(shape: DecoderShape) -> Iterator[tuple[str, Sizes]]:
    """Yield the name and the sizes of each projection that a decoder of this shape has."""
    for index, layer in enumerate(shape.layers):
        queries, keys = layer.heads * shape.head_dim, layer.kv_heads * shape.head_dim
        sizes = [(shape.hidden, queries), (shape.hidden, keys), (shape.hidden, keys), (queries, shape.hidden)]
        sizes += [(shape.hidden, layer.mlp), (shape.hidden, layer.mlp), (layer.mlp, shape.hidden)]
        for place, (name, (inputs, outputs)) in enumerate(zip(PROJECTIONS, sizes, strict=True)):
            if inputs and outputs:
                yield f"model.layers.{index}.{'self_attn' if place < 4 else 'mlp'}.{name}", Sizes(inputs, outputs)


def targeted_in(shape: DecoderShape, targets: Collection[str]) -> list[dict[str, Sizes]]:
    """Return, for each layer of this shape, the projections that `targets` name, by their full names."""
    found: list[dict[str, Sizes]] = [{} for _ in shape.layers]
    for name, sizes in layers_of(shape):
        if _own(name) in targets:
            found[int(name.split(".")[2])][name] = sizes
    return found


def inputs_of(projections: Mapping[str, Sizes]) -> int:
    """Return how many numbers a token has in all inputs of these projections of a layer; siblings read one input."""
    read = {JOINED.get(_own(name), name): sizes.in_features for name, sizes in projections.items()}
    return sum(read.values())


def ranks_of(layers: Mapping[str, Layer], rank: int, named: Mapping[str, int]) -> dict[str, int]:
    """Return the rank of each of `layers` by its full name.

    A name in `named` consists of parts between dots. It fits a layer whose full name has these parts in this order:
    "down_proj", "layers.3", "layers.3.q_proj". Where several names fit a layer, the name of most parts counts.

    Raises:
        UserError: a name fits no layer; two names of equally many parts give a layer different ranks; or a layer can't
            have its rank.
    """
    for name in named:
        if not any(_fits(name, layer) for layer in layers):
            known = sorted({_own(layer) for layer in layers})
            raise UserError(
                f"adapter.ranks: '{name}' is no layer that adapter.targets adapts{nearest(name, known) or '.'} "
                f"One of them: {next(iter(layers))}."
            )
    found = {layer: rank_of(layer, rank, named) for layer in layers}
    for name, layer in layers.items():
        _require_possible(name, layer, found[name])
    return found


def rank_of(layer: str, rank: int, named: Mapping[str, int]) -> int:
    """Return the rank of one layer by its full name, whether it can have that rank or not.

    Raises:
        UserError: two names of equally many parts give it different ranks.
    """
    fitting = [name for name in named if _fits(name, layer)]
    closest = max((_parts(name) for name in fitting), default=0)
    wanted = {name: named[name] for name in fitting if _parts(name) == closest}
    if len(set(wanted.values())) > 1:
        said = " and ".join(f"{name}={value}" for name, value in wanted.items())
        raise UserError(f"adapter.ranks: {said} both name {layer}. Name it in more parts: {layer}=RANK.")
    return next(iter(wanted.values()), rank)


def _require_possible(name: str, layer: Layer, rank: int) -> None:
    largest = min(layer.in_features, layer.out_features)
    if rank > largest:
        raise UserError(
            f"rank {rank} is more than {name} can take: it has {layer.out_features} outputs and {layer.in_features} "
            f"inputs, so its largest rank is {largest}. Lower adapter.rank, or give this layer its own: "
            f"'+adapter.ranks={{{name}: {largest}}}'."
        )


def _fits(name: str, layer: str) -> bool:
    """Return whether `layer` has the parts of `name`, in their order."""
    # `in` uses the iterator up to the part it finds, so later parts are only looked for behind it.
    left: Iterable[str] = iter(layer.split("."))
    return all(part in left for part in name.split("."))


def _parts(name: str) -> int:
    return name.count(".") + 1


def _own(name: str) -> str:
    return name.rpartition(".")[2]
