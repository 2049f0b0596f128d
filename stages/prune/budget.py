"""How much goes: from a ratio of all parameters to the shape of every layer. No torch here: a plan solves this.

Owns the solver and the printed plan. Which heads and channels go is decided by scores (`stages.prune.criteria`).

The rule of the default. Every pruned layer loses about the same share of its heads as of its MLP channels. Heads go in
whole key/value groups, so their share moves in coarse steps; for each step the MLP channels that make up the remainder
follow from the ratio. Of the steps that come within `TOLERANCE`, the one wins whose share of heads is nearest to its
share of MLP channels from below: heads are rounded down, as they are fewer parameters and dearer to lose. (Measured on
SmolLM2-135M, 3 groups a layer, nats a token of held-out rows with LLM-Pruner's scores, from 3.00: at ratio 0.2 no group
3.64, one 5.02, two 9.70; at ratio 0.5 none 8.59, one 7.42, two 11.40.)
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

from stages.errors import UserError
from stages.prune.config import PruneConfig
from stages.shapes import DecoderShape, LayerShape

TOLERANCE = 0.005
"""How far the achieved share of parameters may be from `ratio`."""
CONTEXT = 64
"""Tokens of the sequence for which multiply-accumulates a token are counted (as LLM-Pruner counts them)."""


@dataclass(frozen=True, kw_only=True)
class PrunePlan:
    """The shape of every layer before and after, decided before any weight is read."""

    dense: DecoderShape
    pruned: DecoderShape
    requested: float | None
    """The share of parameters asked for; None where `channel_ratio` rules."""
    remarks: tuple[str, ...] = ()

    @cached_property
    def parameters_before(self) -> int:
        """Parameters of the dense model."""
        return self.dense.parameters()

    @cached_property
    def parameters_after(self) -> int:
        """Parameters of the pruned model."""
        return self.pruned.parameters()

    @property
    def achieved(self) -> float:
        """Share of all parameters that goes."""
        return 1 - self.parameters_after / self.parameters_before

    @property
    def macs_before(self) -> int:
        """Multiply-accumulates a token of the dense model, in a sequence of `CONTEXT` tokens."""
        return self.dense.multiply_accumulates(CONTEXT)

    @property
    def macs_after(self) -> int:
        """Multiply-accumulates a token of the pruned model, in a sequence of `CONTEXT` tokens."""
        return self.pruned.multiply_accumulates(CONTEXT)

    def table(self) -> str:
        """Return the plan as text: one line for each run of layers that change alike, then the totals and remarks."""
        rows = [("layers", "query heads", "key/value heads", "MLP channels", "parameters a layer")]
        pairs = enumerate(zip(self.dense.layers, self.pruned.layers, strict=True))
        for (old, new), run in groupby(pairs, key=lambda pair: pair[1]):
            indices = [index for index, _ in run]
            rows.append(
                (
                    f"{indices[0]}-{indices[-1]}" if len(indices) > 1 else str(indices[0]),
                    _change(old.heads, new.heads),
                    _change(old.kv_heads, new.kv_heads),
                    _change(old.mlp, new.mlp),
                    _change(self.dense.layer_parameters(old), self.dense.layer_parameters(new)),
                )
            )
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
        lines.append(
            f"parameters  {_change(self.parameters_before, self.parameters_after)}  ({self.achieved:.2%} removed)"
        )
        saved = 1 - self.macs_after / self.macs_before
        lines.append(
            f"multiply-accumulates a token  {_change(self.macs_before, self.macs_after)}  ({saved:.2%} removed)"
        )
        return "\n".join([*lines, *self.remarks])


def plan_shapes(shape: DecoderShape, config: PruneConfig) -> PrunePlan:
    """Return the shape of every layer that `config` asks for.

    Raises:
        UserError: a value is out of its range, or the ratio can't be reached with these layers.
    """
    layers = parse_layers(config.layers, len(shape.layers))
    if config.channel_ratio is not None:
        _check_share("prune.channel_ratio", config.channel_ratio)
        return _by_channel_ratio(shape, layers, config.channel_ratio)
    _check_share("ratio", config.ratio)
    return _by_parameters(shape, layers, config.ratio)


def parse_layers(text: str, count: int) -> list[int]:
    """Return the zero-based indices in `text` ("all", "4-27", "0,2,5-7"; bounds included), sorted.

    Raises:
        UserError: the text is not of this form, names no layer, or a layer that a model of `count` layers lacks.
    """
    if text.strip() == "all":
        return list(range(count))
    chosen: set[int] = set()
    for part in text.split(","):
        first, dash, last = (piece.strip() for piece in part.partition("-"))
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise UserError(
                f"prune.layers='{text}' can't be read. Write all, or zero-based layers like 4-27 or 0,2,5-7."
            )
        low, high = int(first), int(last or first)
        if low > high or high >= count:
            raise UserError(f"prune.layers='{text}' asks for {part.strip()}, and this model has layers 0-{count - 1}.")
        chosen.update(range(low, high + 1))
    return sorted(chosen)


def _by_channel_ratio(shape: DecoderShape, layers: list[int], ratio: float) -> PrunePlan:
    """Remove the same share of heads and of MLP channels in each layer, rounded the way LLM-Pruner rounds.

    The kept size is truncated, `int(size · (1 − ratio))` with a head counted as head_dim rows, and the removed rows are
    truncated to whole heads. With grouped-query attention the heads are key/value groups. Its own code fails where that
    rounds to no head, or to all: here none goes, or one stays, and a remark says so.
    """
    targets, remarks = list(shape.layers), []
    for index in layers:
        old = shape.layers[index]
        rows = old.kv_heads * shape.head_dim
        groups = (rows - int(rows * (1 - ratio))) // shape.head_dim
        targets[index] = _without(old, groups, old.mlp - int(old.mlp * (1 - ratio)))
        if ratio and groups == 0:
            remarks.append(
                f"a channel ratio of {ratio:g} rounds to none of {old.kv_heads} key/value groups: all heads stay"
            )
        if groups == old.kv_heads:
            remarks.append(f"a channel ratio of {ratio:g} would remove all {old.kv_heads} key/value groups: one stays")
    return PrunePlan(
        dense=shape, pruned=shape.with_layers(targets), requested=None, remarks=tuple(dict.fromkeys(remarks))
    )


@dataclass(frozen=True)
class _Step:
    """A candidate: shares of heads and of MLP channels to remove, and the shape they lead to."""

    heads: float
    mlp: float
    shape: DecoderShape
    achieved: float


def _by_parameters(shape: DecoderShape, layers: list[int], ratio: float) -> PrunePlan:
    """Remove the share `ratio` of all parameters; the module's docstring has the rule."""
    if ratio == 0:
        return PrunePlan(dense=shape, pruned=shape, requested=ratio)
    steps = _candidates(shape, layers, ratio)
    near = [step for step in steps if abs(step.achieved - ratio) <= TOLERANCE]
    if not near:
        raise UserError(_unreachable(shape, layers, ratio, steps))
    best = min(near, key=lambda step: (step.heads > step.mlp, abs(step.heads - step.mlp)))
    groups = max(shape.layers[index].kv_heads for index in layers)
    remark = (
        f"heads go in whole key/value groups, {groups} a layer, rounded down: {best.heads:.1%} of the heads go, and "
        f"{best.mlp:.1%} of the MLP channels make up the remainder"
    )
    remarks = (remark,) if abs(best.heads - best.mlp) > 0.02 else ()
    return PrunePlan(dense=shape, pruned=best.shape, requested=ratio, remarks=remarks)


def _candidates(shape: DecoderShape, layers: list[int], ratio: float) -> list[_Step]:
    """Return, for each number of key/value groups that may go, the number of MLP channels nearest to `ratio`."""
    most_groups = max(shape.layers[index].kv_heads for index in layers)
    most_channels = max(shape.layers[index].mlp for index in layers)
    dense = shape.parameters()

    def step(groups: int, channels: int) -> _Step:
        targets = list(shape.layers)
        for index in layers:
            old = shape.layers[index]
            scaled_groups = _scaled(groups, most_groups, old.kv_heads)
            targets[index] = _without(old, scaled_groups, _scaled(channels, most_channels, old.mlp))
        pruned = shape.with_layers(targets)
        return _Step(groups / most_groups, channels / most_channels, pruned, 1 - pruned.parameters() / dense)

    steps = []
    for groups in range(most_groups):

        def achieved(channels: int, groups: int = groups) -> float:
            return step(groups, channels).achieved

        above = bisect_left(range(most_channels), ratio, key=achieved)
        around = [step(groups, n) for n in (above - 1, above) if 0 <= n < most_channels]
        steps.append(min(around, key=lambda step: abs(step.achieved - ratio)))
    return steps


def _without(layer: LayerShape, groups: int, channels: int) -> LayerShape:
    """Return `layer` with that many key/value groups (and their query heads) and channels less; one of each stays."""
    kv_heads = max(1, layer.kv_heads - groups)
    return LayerShape(layer.heads // layer.kv_heads * kv_heads, kv_heads, max(1, layer.mlp - channels))


def _scaled(count: int, of: int, size: int) -> int:
    """Return the nearest whole number to `count / of` of `size`; `count` itself where layers are alike."""
    return (2 * count * size + of) // (2 * of)


def _unreachable(shape: DecoderShape, layers: list[int], ratio: float, steps: list[_Step]) -> str:
    """Return why no step reaches `ratio`, and what can be asked instead."""
    nearest = min(steps, key=lambda step: abs(step.achieved - ratio))
    most = max(steps, key=lambda step: step.achieved)
    total = shape.parameters()
    if ratio > most.achieved:
        protected = sum(shape.layer_parameters(layer) for i, layer in enumerate(shape.layers) if i not in set(layers))
        stays = f"embeddings are {shape.embedding_parameters() / total:.1%} of the {total:,} parameters"
        stays += f", protected layers {protected / total:.1%}" if protected else ""
        return (
            f"ratio={ratio:g} is more than can go: {stays}, and one key/value group and one MLP channel stay in each "
            f"layer. At most {most.achieved:.4f} can be removed"
            + ("; or protect fewer layers with prune.layers=." if protected else ".")
        )
    return (
        f"ratio={ratio:g} can't be reached within {TOLERANCE}: heads go in whole key/value groups and channels one by "
        f"one, alike in {len(layers)} layers, which moves the share in steps. The nearest is {nearest.achieved:.4f}."
    )


def _check_share(name: str, value: float) -> None:
    if not 0 <= value < 1:
        raise UserError(f"{name}={value:g} must be at least 0 and less than 1: it is the share that is removed.")


def _change(old: int, new: int) -> str:
    return f"{old:,}" if old == new else f"{old:,} → {new:,}"
