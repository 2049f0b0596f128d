"""The budget of a pruning: how much is to go, and from which layers. No torch here."""

from __future__ import annotations

from dataclasses import dataclass, replace

from stages.common.units import BYTES
from stages.decoders.shapes import DecoderShape, LayerShape
from stages.errors import UserError
from stages.prune.config import PruneConfig

TOLERANCE = 0.005
"""Largest difference of the achieved share from `ratio`."""
CONTEXT = 64
"""Tokens of the sequence for which multiply-accumulates a token are counted (as LLM-Pruner counts them)."""


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


def layers_of(config: PruneConfig, count: int) -> list[int]:
    """Return the indices of the layers that `config` prunes in a model of `count` layers; all where it names none.

    `stages.prune.allocation.allocate.settled` writes down the layers that a criterion's paper prunes.
    """
    return parse_layers("all" if config.layers is None else config.layers, count)


def check_share(name: str, value: float) -> None:
    """Raise a `UserError` unless `value` is in [0, 1)."""
    if not 0 <= value < 1:
        raise UserError(f"{name}={value:g} must be at least 0 and less than 1: it is the share that is removed.")
