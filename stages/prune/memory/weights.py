"""The weights that the prune stage works on: in memory as a whole, or read from disk a layer at a time."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from stages.decoders import checkpoint
from stages.decoders.shapes import DecoderShape
from stages.decoders.spread import spread
from stages.errors import UserError
from stages.prune.memory.offload import Offloaded
from stages.prune.memory.resident import Resident, always
from stages.prune.memory.sizes import LOSS
from stages.prune.statistics.gradients import calibration_loss

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from stages.prune.config import PruneConfig
    from stages.stage import Context


@dataclass(frozen=True, slots=True)
class Weights:
    """A live model, and the function that holds a layer's weights in memory."""

    model: PreTrainedModel
    resident: Resident = always

    def loss(self, ids_BT: Tensor | None) -> float | None:
        """Return the mean next-token cross-entropy of the first calibration sequences in nats, or None without any."""
        return None if ids_BT is None else calibration_loss(self.model, ids_BT[:LOSS], self.resident)


@contextmanager
def opened(source: Path, shape: DecoderShape, config: PruneConfig, context: Context, dtype: str) -> Iterator[Weights]:
    """Yield the weights of the model in `source`, checked to have as many parameters as `shape`.

    Args:
        source: a model directory.
        shape: the shape that its config.json describes.
        config: its `offload` says whether layers stay on disk until they are needed.
        context: the device that holds the weights, and the output directory, where changed layers are written.
        dtype: precision of the weights in memory.

    Raises:
        UserError: the weights are not those that the config describes.
    """
    scratch = context.output / "layers.partial" if config.offload == "layer" else None
    if context.cards and scratch is not None:
        raise UserError(
            "prune.offload=layer keeps layers on disk, runtime.device_map=auto on all GPUs. Set one of both."
        )
    if scratch is None:
        device = "cpu" if context.cards else context.device
        model = checkpoint.load_model(source, dtype=dtype, device=device)
        weights = Weights(spread(model, context.cards) if context.cards else model)
    else:
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        on_disk = Offloaded(source, dtype=dtype, device=context.device, scratch=scratch)
        weights = Weights(on_disk.model, on_disk.resident)
    found = checkpoint.count_parameters(weights.model)
    if found != shape.parameters():
        raise UserError(
            f"{source}: the weights have {found:,} parameters, its config.json describes {shape.parameters():,}. "
            "Fetch or build the checkpoint again."
        )
    try:
        yield weights
    finally:
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)
