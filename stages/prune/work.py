"""The work of scoring and of cutting, counted before they run. No torch here.

Passes over the calibration text are in the precision of the options. Statistics of the inputs of output projections,
and what follows from these, are in float32.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from stages.decoders.shapes import DecoderShape
from stages.decoders.work import Work, forward
from stages.prune.allocation.allocate import allocation
from stages.prune.config import PruneConfig
from stages.prune.criteria.registry import CRITERIA
from stages.prune.plan import Pruning

EFFICIENCY = 0.85
"""Of `prune=best` on one processor (docs/speed.md)."""
BACKWARD = 3.0
"""Forward passes that a forward and backward pass takes as long as."""
ELIMINATION = 32.0
"""The work of eliminating all C inputs of a map, in units of C³. Few at a time are thin products, which are slow."""

FITTING = 3.0
"""The work of fitting what stays of a map of C inputs, in units of C³."""


def scoring(config: PruneConfig, shape: DecoderShape) -> Work:
    """Return the work of scoring every group of a dense model of `shape`."""
    return _Counted(config, shape).scores().work()


def cutting(pruning: Pruning, shape: DecoderShape, *, scored: bool) -> Work:
    """Return the work of the prune stage on a dense model of `shape`; `scored` is whether it is given the scores."""
    config = pruning.config
    counted = _Counted(config, shape)
    if config.method not in CRITERIA:
        return counted.over_text(3.0).work()  # the loss before and after, and the statistics of the masks
    criterion, way = CRITERIA[config.method], allocation(config)
    for _ in range(config.steps - (1 if scored else 0)):
        counted = counted.scores()
    if pruning.reads_text or config.calibration_ids is not None:
        counted = counted.over_text(1.0)  # the dense model's loss
    fits = config.steps
    if way == "searched":
        fits += config.search.trials
        counted = counted.passing(config.search.trials * config.search.sequences * config.calibration.length)
        counted = counted if criterion.in_nats else counted.curvature().gathered().cubed(ELIMINATION)
    if way == "own" and criterion.own is not None:
        counted = counted.passing(criterion.own.tried(config, len(shape.layers)))
    if config.compensate == "sequential":
        counted = counted.over_text(2.0).gathered()  # the dense and the cut layers, with the inputs of all maps
    if config.compensate != "none":
        counted = counted.over_text(1.0).gathered().cubed(FITTING * fits)
    return counted.work()


@dataclass(frozen=True, slots=True)
class _Counted:
    """Operations so far: `passes` in the precision of the options, `single` in float32."""

    config: PruneConfig
    shape: DecoderShape
    passes: float = 0.0
    single: float = 0.0

    def scores(self) -> _Counted:
        """Add the scores of every group."""
        criterion = CRITERIA[self.config.method]
        found = self.passing(criterion.tried(self.config, len(self.shape.layers)))
        if criterion.in_nats:
            found = found.curvature()
        elif criterion.reads_text:
            found = found.over_text(BACKWARD if criterion.needs_gradients else 1.0)
        return found.gathered().cubed(ELIMINATION) if criterion.cumulative else found

    def passing(self, tokens: float) -> _Counted:
        """Add forward passes of so many tokens."""
        return replace(self, passes=self.passes + tokens * forward(self.shape))

    def over_text(self, passes: float) -> _Counted:
        """Add so many forward passes over the calibration text."""
        return self.passing(passes * self._tokens())

    def curvature(self) -> _Counted:
        """Add a forward pass over the text, and a backward pass over the sequences whose gradients are taken."""
        calibration = self.config.calibration
        tokens = min(calibration.curvature * calibration.length, self._tokens())
        return self.over_text(1.0).passing((BACKWARD - 1.0) * tokens)

    def gathered(self) -> _Counted:
        """Add the second moments of inputs and outputs of every output projection."""
        squares = sum(width**2 + self.shape.hidden**2 for width in self._widths())
        return replace(self, single=self.single + 2.0 * squares * self._tokens())

    def cubed(self, units: float) -> _Counted:
        """Add so many units of C³ for the C inputs of every output projection."""
        return replace(self, single=self.single + units * sum(float(width) ** 3 for width in self._widths()))

    def work(self) -> Work:
        """Return the work."""
        operations = {self.config.dtype: self.passes}
        operations["float32"] = operations.get("float32", 0.0) + self.single
        kind = f"{self.config.method} {self.config.allocation} {self.config.compensate}"
        needed = {dtype: count for dtype, count in operations.items() if count}
        return Work(operations=needed, efficiency=EFFICIENCY, kind=kind)

    def _tokens(self) -> int:
        calibration, ids = self.config.calibration, self.config.calibration_ids
        return calibration.sequences * calibration.length if ids is None else sum(map(len, ids))

    def _widths(self) -> list[int]:
        return [width for layer in self.shape.layers for width in (layer.mlp, layer.heads * self.shape.head_dim)]
