"""The plan of a pruning, decided before anything is cut: the budget, the shape of every layer, and the printed table.

No torch here: where the scores do not decide, the pipeline prints the plan before a weight is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby

from stages.common.tables import aligned
from stages.decoders.shapes import DecoderShape, LayerShape
from stages.errors import UserError
from stages.prune.config import PruneConfig

TOLERANCE = 0.005
"""Largest difference of the achieved share from `ratio`."""
CONTEXT = 64
"""Tokens of the sequence for which multiply-accumulates a token are counted (as LLM-Pruner counts them)."""
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}

Layers = Sequence[LayerShape | None]
"""The new shape of each layer of the dense model; None for a layer that is removed."""


@dataclass(frozen=True, slots=True)
class Budget:
    """The share of a model to remove, in parameters or in multiply-accumulates a token.

    Attributes:
        dense: the model that the share is of.
        ratio: share to remove, in [0, 1).
        macs: whether multiply-accumulates are counted, and not parameters.
        asked: the option that the budget comes from, as the user wrote it.
        step: whether this is a part of the whole budget, one of several steps; a step may remove nothing.
    """

    dense: DecoderShape
    ratio: float
    macs: bool = False
    asked: str = "ratio"
    step: bool = False

    @property
    def unit(self) -> str:
        """The name of the quantity that is counted."""
        return "multiply-accumulates" if self.macs else "parameters"

    def size(self, shape: DecoderShape) -> int:
        """Return the parameters or multiply-accumulates of `shape`."""
        return shape.multiply_accumulates(CONTEXT) if self.macs else shape.parameters()

    def layer_size(self, shape: DecoderShape, layer: LayerShape | None) -> int:
        """Return the parameters or multiply-accumulates of one layer of `shape`; 0 for a layer that is removed."""
        if layer is None:
            return 0
        return shape.layer_multiply_accumulates(layer, CONTEXT) if self.macs else shape.layer_parameters(layer)

    def removed(self, shape: DecoderShape) -> float:
        """Return the share that has been removed when `shape` is left."""
        return 1 - self.size(shape) / self.size(self.dense)

    def near(self, shape: DecoderShape) -> bool:
        """Return whether `shape` meets the budget within `TOLERANCE`."""
        return abs(self.removed(shape) - self.ratio) <= TOLERANCE

    def part(self, share: float) -> Budget:
        """Return the budget of a step after which `share` of the whole budget has been removed."""
        return replace(self, ratio=self.ratio * share, step=share < 1)


def budget_of(shape: DecoderShape, config: PruneConfig, dtype: str | None = None) -> Budget:
    """Return the budget that `config` gives a model of `shape`, whose weights are stored in `dtype`.

    Raises:
        UserError: a value is out of its range, or the megabytes can't be compared with a model of unknown precision.
    """
    if config.megabytes is None:
        ratio = config.ratio or 0.0
        check_share("ratio", ratio)
        return Budget(shape, ratio, config.budget == "macs", f"ratio={ratio:g}")
    asked = f"prune.megabytes={config.megabytes:g}"
    if config.budget == "macs":
        raise UserError(f"{asked} is a size of weights, and prune.budget=macs counts work. Give one of the two.")
    # A share of bytes is the same share of parameters, because all weights are stored in one precision.
    size = shape.parameters() * BYTES.get(dtype or "float32", 4) / 1e6
    if not 0 < config.megabytes <= size:
        raise UserError(f"{asked} must be above 0 and at most the model's own {size:.1f} MB.")
    return Budget(shape, 1 - config.megabytes / size, asked=asked)


@dataclass(frozen=True, kw_only=True)
class PrunePlan:
    """The shape of every layer before and after."""

    dense: DecoderShape
    layers: tuple[LayerShape | None, ...]
    """The new shape of each layer of `dense`; None for a layer that is removed."""
    hidden: int
    """Number of hidden channels that stay."""
    requested: float | None
    """The share asked for; None where `channel_ratio` or `layer_ratios` decides."""
    output_bias: bool = False
    """Whether compensation adds a bias to the output projections."""
    remarks: tuple[str, ...] = ()

    @cached_property
    def pruned(self) -> DecoderShape:
        """The shape after pruning."""
        return shape_left(self.dense, self.layers, self.hidden, output_bias=self.output_bias)

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
        """The share of all parameters that is removed."""
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
        head = ("layers", "query heads", "key/value heads", "MLP channels", "parameters", "multiply-accumulates")
        rows: list[tuple[str, ...]] = [(*head[:4], f"{head[4]} a layer", f"{head[5]} a layer")]
        pairs = enumerate(zip(self.dense.layers, self.layers, strict=True))
        for (old, new), run in groupby(pairs, key=lambda pair: pair[1]):
            indices = [index for index, _ in run]
            where = f"{indices[0]}-{indices[-1]}" if len(indices) > 1 else str(indices[0])
            rows.append((where, *self._changes(old, new)))
        lines = aligned(rows)
        if self.hidden != self.dense.hidden:
            lines.append(f"hidden channels  {_change(self.dense.hidden, self.hidden)}")
        removed = len(self.layers) - len(self.pruned.layers)
        lines += [f"layers  {_change(len(self.layers), len(self.pruned.layers))}"] if removed else []
        lines.append(
            f"parameters  {_change(self.parameters_before, self.parameters_after)}  ({self.achieved:.2%} removed)"
        )
        saved = 1 - self.macs_after / self.macs_before
        lines.append(
            f"multiply-accumulates a token  {_change(self.macs_before, self.macs_after)}  ({saved:.2%} removed)"
        )
        return "\n".join([*lines, *self.remarks])

    def totals(self) -> str:
        """Return the parameters and multiply-accumulates before and after as text, and the remarks."""
        rows = [
            ("", "dense", "pruned", "removed"),
            ("parameters", *_before_after(self.parameters_before, self.parameters_after)),
            ("multiply-accumulates a token", *_before_after(self.macs_before, self.macs_after)),
        ]
        return "\n".join([*aligned(rows), *self.remarks])

    def _changes(self, old: LayerShape, new: LayerShape | None) -> tuple[str, ...]:
        if new is None:
            return ("removed", "removed", "removed", f"{self.dense.layer_parameters(old):,} → 0", "→ 0")
        after = self.pruned
        return (
            _change(old.heads, new.heads),
            _change(old.kv_heads, new.kv_heads),
            _change(old.mlp, new.mlp),
            _change(self.dense.layer_parameters(old), after.layer_parameters(new)),
            _change(
                self.dense.layer_multiply_accumulates(old, CONTEXT), after.layer_multiply_accumulates(new, CONTEXT)
            ),
        )


def planned(
    budget: Budget, before: DecoderShape, layers: Layers, hidden: int | None = None, remarks: Sequence[str] = ()
) -> PrunePlan:
    """Return the plan that turns the layers of `before` into `layers`, with a remark where it misses the budget.

    Raises:
        UserError: the budget asks for a cut, and nothing would be removed.
    """
    left, remarks = shape_left(before, layers, hidden), list(remarks)
    if not budget.near(left):
        if left == before and not budget.step:
            raise UserError(
                f"{budget.asked} is less than half of the smallest cut there is: nothing would go. Ask for more, or "
                "let smaller groups go, as in prune.granularity=[heads,channels]."
            )
        remarks.append(
            f"{budget.asked} lies between two steps of what can go: {budget.removed(left):.2%} of the {budget.unit} "
            "is the nearest"
        )
    return PrunePlan(
        dense=before,
        layers=tuple(layers),
        hidden=left.hidden,
        requested=budget.ratio,
        remarks=tuple(remarks),
    )


def shape_left(
    dense: DecoderShape, layers: Layers, hidden: int | None = None, *, output_bias: bool = False
) -> DecoderShape:
    """Return the shape of `dense` with `layers` in place of its own.

    Raises:
        UserError: no layer would be left.
    """
    left = [layer for layer in layers if layer is not None]
    if not left:
        raise UserError("every layer would go. Remove less, or protect some with prune.layers=.")
    shape = dense.with_layers(left).with_hidden(dense.hidden if hidden is None else hidden)
    return shape.with_output_bias() if output_bias else shape


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


def check_share(name: str, value: float) -> None:
    """Raise a `UserError` unless `value` is in [0, 1)."""
    if not 0 <= value < 1:
        raise UserError(f"{name}={value:g} must be at least 0 and less than 1: it is the share that is removed.")


def _before_after(before: int, after: int) -> tuple[str, str, str]:
    return f"{before:,}", f"{after:,}", f"{1 - after / before:.1%}"


def _change(old: int, new: int) -> str:
    return f"{old:,}" if old == new else f"{old:,} → {new:,}"
