"""The outcome of a pruning, decided before anything is cut: the shape of every layer, and the printed table.

No torch here: where the scores do not decide, the pipeline prints the outcome before a weight is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

from stages.common.tables import aligned
from stages.decoders.shapes import DecoderShape, LayerShape
from stages.errors import UserError
from stages.prune.allocation.budget import CONTEXT, Budget

Layers = Sequence[LayerShape | None]
"""The new shape of each layer of the dense model; None for a layer that is removed."""


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


def _before_after(before: int, after: int) -> tuple[str, str, str]:
    return f"{before:,}", f"{after:,}", f"{1 - after / before:.1%}"


def _change(old: int, new: int) -> str:
    return f"{old:,}" if old == new else f"{old:,} → {new:,}"
