"""Limits of a cut: the most that a layer can lose of each kind of group, and that a whole model can. No torch here."""

from __future__ import annotations

from stages.decoders.shapes import DecoderShape, LayerShape
from stages.errors import UserError
from stages.prune.allocation.budget import TOLERANCE, Budget, layers_of
from stages.prune.allocation.outcome import shape_left
from stages.prune.config import DEPTH, PruneConfig


def without(layer: LayerShape, groups: int, queries: int, channels: int) -> LayerShape:
    """Return `layer` without the given numbers of key/value groups, queries of each group, and channels; one stays."""
    if not layer.kv_heads:
        return LayerShape(0, 0, max(1, layer.mlp - channels))
    kv_heads = max(1, layer.kv_heads - groups)
    each = max(1, layer.heads // layer.kv_heads - queries)
    return LayerShape(each * kv_heads, kv_heads, max(1, layer.mlp - channels) if layer.mlp else 0)


def without_sublayer(layer: LayerShape, kind: str) -> LayerShape | None:
    """Return `layer` without its attention or its MLP; None where nothing is left of it."""
    left = {"layers": (0, 0, 0), "attention": (0, 0, layer.mlp), "mlp": (layer.heads, layer.kv_heads, 0)}[kind]
    return LayerShape(*left) if any(left) else None


def may_go(config: PruneConfig, index: int, kind: str) -> bool:
    """Return whether a layer may lose a whole sub-layer, or go.

    Where DeciLM has to say the shapes, the first layer keeps its attention, in which readers start the residual stream.
    """
    if config.shapes != "served" or index:
        return True
    # Without the first layer, the second one would be the first, and might have no attention.
    return kind == "mlp" or (kind == "layers" and "attention" not in config.granularity)


def most_gone(layer: LayerShape, kind: str, config: PruneConfig, share: float = 1.0) -> int:
    """Return how many heads, queries of each key/value head, or channels `layer` can lose: `share` of them, not all."""
    of = {"heads": layer.kv_heads, "queries": layer.heads // max(1, layer.kv_heads), "channels": layer.mlp}[kind]
    stay = config.multiple if kind == "channels" else 1
    # 1e-9, because a product such as 0.29 · 100 comes out just below the whole number that is meant.
    return max(0, min(int(share * of + 1e-9), of - stay))


def check_reachable(budget: Budget, before: DecoderShape, config: PruneConfig, share: float = 1.0) -> None:
    """Raise a `UserError` where the budget removes more than can go; it names what stays, and the remedy.

    Args:
        budget: the budget.
        before: the shape that is cut.
        config: layers, kinds of group and rounding.
        share: the largest share of a layer's heads, and of its channels, that may go.
    """
    layers = layers_of(config, len(before.layers))
    most = budget.removed(_least(before, layers, config, share))
    if budget.ratio <= most + TOLERANCE:
        return
    total, of_layers = budget.size(before), [budget.layer_size(before, layer) for layer in before.layers]
    protected = (sum(of_layers) - sum(of_layers[index] for index in layers)) / total
    stays = "the output projection is" if budget.macs else "embeddings are"
    stays += f" {1 - sum(of_layers) / total:.1%} of the {total:,} {budget.unit}"
    stays += f", protected layers {protected:.1%}" if protected else ""
    stays += "" if set(config.granularity) <= set(DEPTH) else ", and one group of each kind stays in each layer"
    remedies = ["ask for less"]
    remedies += ["protect fewer layers with prune.layers= (prune.layers=all protects none)"] if protected else []
    remedies += ["raise prune.max_per_layer"] if share < 1 else []
    remedies += ["let more kinds go with prune.granularity="]
    raise UserError(
        f"{budget.asked} is more than can go: {stays}. At most "
        f"{most:.4f} can be removed with prune.granularity=[{','.join(config.granularity)}]: {', or '.join(remedies)}."
    )


def _least(before: DecoderShape, layers: list[int], config: PruneConfig, share: float) -> DecoderShape:
    """Return the smallest shape that `before` can be cut to."""
    kinds, targets = set(config.granularity), list[LayerShape | None](before.layers)
    for index in layers:
        old = before.layers[index]
        gone = [most_gone(old, k, config, share) if k in kinds else 0 for k in ("heads", "queries", "channels")]
        left: LayerShape | None = without(old, *gone)
        for kind in [kind for kind in DEPTH if kind in kinds and may_go(config, index, kind)]:
            left = None if left is None else without_sublayer(left, kind)
        targets[index] = left
    if not any(targets):
        # One layer has to stay. The smallest one gives the bound on what can go.
        targets[0] = min(before.layers, key=before.layer_parameters)
    return shape_left(before, targets, min(config.multiple, before.hidden) if "hidden" in kinds else before.hidden)
