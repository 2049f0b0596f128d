"""Groups of weights that are removed together, their scores, and the selection of groups that stays.

The kinds of group (`prune.granularity`), and the weights that a group of each kind has:

    heads      a key/value head with the adjacent query heads it serves: rows of q, k, v and columns of o
    queries    a single query head: rows of q, columns of o. Every key/value head of a layer loses as many.
    channels   an MLP channel: a row of gate and of up, a column of down
    hidden     a channel of the residual stream, in all layers at once: norms, embeddings and a side of every matrix
    attention  a layer's whole attention, with its norms
    mlp        a layer's whole MLP, with its norms
    layers     a whole layer

Removing a group changes no other group of its kind. This file names no criterion and no architecture.

Shape legend: D rows of one head (head_dim), K key/value heads, Q query heads, C MLP channels, H hidden channels.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from stages.decoders.shapes import LayerShape
from stages.errors import UserError

if TYPE_CHECKING:
    from stages.decoders.anatomy import LayerAnatomy, Projection
    from stages.decoders.shapes import DecoderShape


@dataclass(frozen=True, slots=True)
class Scores:
    """The score of each group; a group with a lower score is removed first. float64, on the CPU.

    Attributes:
        layers: by layer index, by kind of group, one score a group: "heads" [K], "queries" [Q], "channels" [C],
            "attention", "mlp" and "layers" [1].
        hidden_H: the scores of the hidden channels; None unless they were asked for.
    """

    layers: Mapping[int, Mapping[str, Tensor]]
    hidden_H: Tensor | None = None

    def numbers(self) -> dict[int, dict[str, list[float]]]:
        """Return the scores of the layers as plain lists."""
        return {index: {kind: found.tolist() for kind, found in kinds.items()} for index, kinds in self.layers.items()}


@dataclass(frozen=True, slots=True)
class Kept:
    """The kept indices of one layer of the uncut model, ascending; empty lists where a sub-layer is removed."""

    heads: list[int]
    """Query heads."""
    kv_heads: list[int]
    mlp: list[int]


@dataclass(frozen=True, slots=True)
class Selection:
    """The groups of a model that stay.

    Attributes:
        layers: one entry a layer of the uncut model; None where the whole layer is removed.
        hidden: the kept hidden channels, ascending; None where all stay.
    """

    layers: Sequence[Kept | None]
    hidden: list[int] | None = None


def slice_sums(projection: Projection, values: Tensor) -> Tensor:
    """Return the sum of `values` (shaped as the weight) over each row or column that belongs to a group, in float64.

    The slices of a vector are its single numbers.
    """
    return (values[:, None] if values.dim() == 1 else values).sum(1 - projection.axis, dtype=torch.float64).cpu()


def fold_queries(projection: Projection, layer: LayerAnatomy, scores: Tensor) -> Tensor:
    """Return `scores` of a projection's slices, summed over the query heads of each key/value head: [Q·D] → [K·D].

    Query heads of one group are adjacent, so they are the middle axis of [K, Q/K, D]. (LLM-Pruner's own code sums the
    first axis of [Q/K, K·D]. That adds up heads of different groups. Both agree where Q = K.)
    """
    if not projection.per_query_head:
        return scores
    return scores.view(layer.shape.kv_heads, -1, layer.head_dim).sum(1).flatten()


def sum_heads(scores_KD: Tensor, layer: LayerAnatomy) -> Tensor:
    """Return the score of each head from the scores of its rows: [K·D] → [K], or [Q·D] → [Q]."""
    return scores_KD.view(-1, layer.head_dim).sum(1)


def with_sublayers(scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return one layer's scores, completed by those of its sub-layers and of the layer: the sums over their groups."""
    parts = {"attention": "heads", "mlp": "channels"}
    sums = {name: scores[kind].sum().view(1) for name, kind in parts.items() if kind in scores}
    whole = sum(sums.values(), torch.zeros(1, dtype=torch.float64))
    # `scores` comes last, so that a criterion's own score of a sub-layer or layer has precedence over the sum.
    return {**sums, "layers": whole, **scores}


def check_finite(scores: Scores, method: str) -> None:
    """Raise a `UserError` that names the first layer concerned, where a score is infinite or not a number."""
    broken = [f"layer {index}" for index, kinds in sorted(scores.layers.items()) if not _finite(kinds.values())]
    broken += ["the hidden channels"] if scores.hidden_H is not None and not _finite([scores.hidden_H]) else []
    if broken:
        raise UserError(
            f"prune={method}: the scores of {broken[0]} are not finite ({len(broken)} such in all). Score in another "
            "precision with prune.dtype=float32, or on other calibration text."
        )


def _finite(tensors: Iterable[Tensor]) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in tensors)


def select(scores: Mapping[str, Tensor], target: LayerShape, dense: LayerShape) -> Kept:
    """Return one layer's groups with the highest scores, as many as `target` has; of equals the later one stays."""
    each = dense.heads // dense.kv_heads if dense.kv_heads else 0
    kv_heads = _highest(scores.get("heads"), target.kv_heads, dense.kv_heads)
    stay = target.heads // target.kv_heads if target.kv_heads else 0
    # Query heads are ranked within their key/value head, because each of those keeps the same number of them.
    within = scores["queries"].view(-1, each) if stay < each and kv_heads else None
    heads = [
        group * each + query
        for group in kv_heads
        for query in _highest(None if within is None else within[group], stay, each)
    ]
    return Kept(heads, kv_heads, _highest(scores.get("channels"), target.mlp, dense.mlp))


def selection_of(
    scores: Scores, dense: Sequence[LayerShape], targets: Sequence[LayerShape | None], hidden: int | None = None
) -> Selection:
    """Return the groups that stay when every layer of `dense` becomes its target.

    `hidden` is the number of hidden channels that stay; None keeps all.
    """
    layers = [
        None
        if target is None
        else keep_all(old)
        if target == old
        else select(scores.layers.get(index, {}), target, old)
        for index, (old, target) in enumerate(zip(dense, targets, strict=True))
    ]
    if scores.hidden_H is None or hidden is None or hidden == len(scores.hidden_H):
        return Selection(layers)
    return Selection(layers, _highest(scores.hidden_H, hidden, len(scores.hidden_H)))


def composed(first: Selection, then: Selection) -> Selection:
    """Return the selection of two cuts in a row, `first` and `then`, by index into the model before both."""
    later = iter(then.layers)  # numbered without the layers that went in `first`
    layers = [None if keep is None else _within(keep, next(later)) for keep in first.layers]
    if first.hidden is None or then.hidden is None:
        return Selection(layers, then.hidden if first.hidden is None else first.hidden)
    return Selection(layers, [first.hidden[index] for index in then.hidden])


def _within(first: Kept, then: Kept | None) -> Kept | None:
    if then is None:
        return None
    return Kept(
        [first.heads[index] for index in then.heads],
        [first.kv_heads[index] for index in then.kv_heads],
        [first.mlp[index] for index in then.mlp],
    )


def keep_all(shape: LayerShape) -> Kept:
    """Return the kept indices of a layer that loses nothing."""
    return Kept(list(range(shape.heads)), list(range(shape.kv_heads)), list(range(shape.mlp)))


def kept_layer(keep: Kept) -> LayerShape:
    """Return the shape of a layer cut to `keep`."""
    return LayerShape(len(keep.heads), len(keep.kv_heads), len(keep.mlp))


def kept_shape(shape: DecoderShape, selection: Selection) -> DecoderShape:
    """Return the shape of a decoder of `shape` cut to `selection`."""
    layers = [kept_layer(keep) for keep in selection.layers if keep is not None]
    hidden = shape.hidden if selection.hidden is None else len(selection.hidden)
    return shape.with_layers(layers).with_hidden(hidden)


def _highest(scores: Tensor | None, count: int, of: int) -> list[int]:
    if count == of:
        return list(range(of))
    if count == 0:
        return []
    assert scores is not None
    order: list[int] = torch.argsort(scores, stable=True).tolist()
    return sorted(order[len(order) - count :])
