"""The prune stage where an earlier cut is made again (`prune.like`): the same groups stay.

Nothing is scored and nothing is searched. Compensation is fitted anew. The record is that of `stages.prune.stage`, with
the method of the earlier cut and, under "like", the SHA-256 of what it kept.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.common.files import read_json
from stages.common.visible import visible
from stages.decoders import checkpoint
from stages.decoders.shapes import DecoderShape
from stages.errors import UserError
from stages.prune.allocation.allocate import check_uncut
from stages.prune.calibration import calibration_text, reading
from stages.prune.compensation import compensate
from stages.prune.config import PruneConfig
from stages.prune.groups import Kept, Selection
from stages.prune.like import Earlier, LikeConfig, earlier
from stages.prune.memory.weights import opened
from stages.prune.record import pruning_record, summary
from stages.prune.surgery import cut

if TYPE_CHECKING:
    from torch import Tensor

    from stages.stage import Context


def run(config: LikeConfig, inputs: Mapping[str, Path], context: Context) -> dict[str, Any]:
    """Cut `inputs["model"]` as the record at `context.locations["like"]` says; returns the summary.

    Raises:
        UserError: the record has changed since the plan, or is of a model of another shape.
    """
    source, found = inputs["model"] / "model", earlier(context.locations["like"])
    if found.digest != config.kept:
        raise UserError(f"{found.path} has changed since the run was planned. Run the same command again.")
    check_uncut(source, config)
    shape, stored = DecoderShape.from_config(read_json(source / "config.json")), checkpoint.stored_dtype(source)
    plan, kept = found.plan(shape, config), selection_of(found)
    print(visible(f"prune.like={found.path}\n{plan.table()}"), file=sys.stderr, flush=True)
    ids_BT = _text(config, inputs, shape, stored=stored, device=context.device)
    with opened(source, shape, config, context, stored) as held:
        loss = {"dense": held.loss(ids_BT)}
        if config.compensate != "none" and plan.pruned != plan.dense:
            compensate(held.model, kept, ids_BT, config.compensate, held.resident, dtype=config.dtype)
        cut(held.model, kept, held.resident)
        calibration = None
        if ids_BT is not None:
            loss |= {"pruned": held.loss(ids_BT)}
            calibration = {"sequences": ids_BT.shape[0], "length": ids_BT.shape[1], "loss": loss}
        record = pruning_record(config, plan, kept, calibration, {"like": {"kept": config.kept}})
        record["method"] = found.method
        checkpoint.save_cut_model(
            held.model,
            plan.pruned,
            context.output / "model",
            like=source,
            dtype=stored,
            record=record,
            resident=None if config.offload == "none" else held.resident,
        )
        return summary(record, plan, stored)


def selection_of(found: Earlier) -> Selection:
    """Return the groups that stay."""
    return Selection([None if kept is None else Kept(**kept) for kept in found.layers], found.hidden)


def _text(
    config: LikeConfig, inputs: Mapping[str, Path], shape: DecoderShape, *, stored: str, device: str
) -> Tensor | None:
    """Return the calibration tokens that the compensation reads; None where it reads none."""
    # The memory is that of a pruning that scores nothing.
    counted = PruneConfig(method="magnitude", allocation="uniform", compensate=config.compensate, dtype=config.dtype)
    needs = {"reads": config.compensate != "none", "scores": False, "cuts": True}
    read = reading(config, inputs, shape.vocabulary)
    return calibration_text(read, counted, shape, stored=stored, device=device, **needs)
