"""The prune stage: plan, score, cut, save.

Output: `model/`, a Hugging Face directory in the precision of the model it was cut from, with `pruning.json`:

    method, options        what was asked
    layers                 [{heads, kv_heads, mlp}, …], the kept indices into the dense model, one entry a layer
    parameters             {dense, pruned}
    multiply_accumulates   {dense, pruned, context}, a token of a sequence of `context` tokens
    ratio                  {requested, achieved}
    calibration            {sequences, length, loss: {dense, pruned}}, or null; the loss in nats a token
    scores                 one entry a layer, null where nothing was ranked: {heads, mlp} with min, mean, max, and the
                           lowest score kept and the highest removed
    architecture           {model_type, reason}: what it is saved as, and why
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from stages import checkpoint
from stages.anatomy import LayerAnatomy, decoder_layers
from stages.errors import UserError
from stages.files import read_json
from stages.methods import lookup
from stages.prune.budget import CONTEXT, PrunePlan, plan_shapes
from stages.prune.calibration import calibration_ids
from stages.prune.config import PruneConfig
from stages.prune.criteria import CRITERIA, Criterion
from stages.prune.gradients import calibration_loss
from stages.prune.groups import Kept, Scores, Selection, check_finite, keep_all, select
from stages.prune.resident import always
from stages.prune.sparse.config import SparseMLConfig
from stages.prune.sparse.stage import run as run_masks
from stages.prune.surgery import cut
from stages.shapes import DecoderShape

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from stages.stage import Context


def run(config: PruneConfig, inputs: Mapping[str, Path], context: Context) -> dict[str, Any]:
    """Prune `inputs["model"]`, calibrated on `inputs["data"]` where the criterion reads text; returns the summary.

    Raises:
        UserError: an option is wrong, the ratio can't be reached, or loss or scores are not finite.
    """
    if isinstance(config, SparseMLConfig):
        return run_masks(config, inputs, context)
    source = inputs["model"] / "model"
    criterion = lookup("pruning criterion", config.method, CRITERIA)
    criterion.check(config)
    plan = plan_shapes(DecoderShape.from_config(read_json(source / "config.json")), config)
    print(f"prune={config.method}, layers {config.layers}\n{plan.table()}", file=sys.stderr, flush=True)

    ids_BT = None
    if criterion.reads_text:
        ids_BT = calibration_ids(config, model=source, data=inputs.get("data"), vocabulary=plan.dense.vocabulary)
        ids_BT = ids_BT.to(context.device)
    model = _load(source, config.dtype, context.device, plan)
    dense_loss = None if ids_BT is None else calibration_loss(model, ids_BT)
    scores = _score(criterion, model, plan, ids_BT, config)
    kept = _choose(plan, scores)

    stored = checkpoint.stored_dtype(source)
    if stored != config.dtype:  # the weights that are cut never pass through the precision of the scores
        del model
        model = _load(source, stored, context.device, plan)
    cut(model, Selection(kept))
    pruned_loss = None if ids_BT is None else calibration_loss(model, ids_BT)
    record = _record(config, plan, kept, scores, ids_BT, {"dense": dense_loss, "pruned": pruned_loss})
    checkpoint.save_cut_model(model, plan.pruned, context.output / "model", like=source, dtype=stored, record=record)
    return _summary(record, plan, stored)


def _load(source: Path, dtype: str, device: str, plan: PrunePlan) -> PreTrainedModel:
    """Return the dense model, checked to be what the plan counted."""
    model = checkpoint.load_model(source, dtype=dtype, device=device)
    found = checkpoint.count_parameters(model)
    if found != plan.parameters_before:
        raise UserError(
            f"{source}: the weights have {found:,} parameters, its config.json describes {plan.parameters_before:,}. "
            "Fetch or build the checkpoint again."
        )
    return model


def _score(
    criterion: Criterion, model: PreTrainedModel, plan: PrunePlan, ids_BT: Tensor | None, config: PruneConfig
) -> Scores:
    """Return the scores of the layers that lose something, by layer index."""
    layers: list[LayerAnatomy] = [
        layer for layer in decoder_layers(model) if plan.pruned.layers[layer.index] != plan.dense.layers[layer.index]
    ]
    if not layers:
        return Scores({})
    scores = criterion.score(model, layers, ids_BT, config, always)
    check_finite(scores, config.method)
    return scores


def _choose(plan: PrunePlan, scores: Scores) -> list[Kept]:
    """Return the kept groups of every layer; a layer without scores keeps all."""
    return [
        select(scores.layers[index], target, dense) if index in scores.layers else keep_all(dense)
        for index, (dense, target) in enumerate(zip(plan.dense.layers, plan.pruned.layers, strict=True))
    ]


def _record(
    config: PruneConfig,
    plan: PrunePlan,
    kept: Sequence[Kept],
    scores: Scores,
    ids_BT: Tensor | None,
    loss: dict[str, float | None],
) -> dict[str, Any]:
    """Return what `pruning.json` says, but for the architecture."""
    options = {name: value for name, value in dataclasses.asdict(config).items() if name != "calibration_ids"}
    calibration = None
    if ids_BT is not None:
        calibration = {"sequences": ids_BT.shape[0], "length": ids_BT.shape[1], "loss": loss}
    return {
        "method": config.method,
        "options": options,
        "layers": [dataclasses.asdict(layer) for layer in kept],
        "parameters": {"dense": plan.parameters_before, "pruned": plan.parameters_after},
        "multiply_accumulates": {"dense": plan.macs_before, "pruned": plan.macs_after, "context": CONTEXT},
        "ratio": {"requested": plan.requested, "achieved": plan.achieved},
        "calibration": calibration,
        "scores": [
            {
                "heads": _spread(scores.layers[index]["heads"], layer.kv_heads),
                "mlp": _spread(scores.layers[index]["channels"], layer.mlp),
            }
            if index in scores.layers
            else None
            for index, layer in enumerate(kept)
        ],
        "remarks": list(plan.remarks),
    }


def _spread(scores: Tensor, kept: list[int]) -> dict[str, float | None]:
    """Return how the scores of one layer's groups lie, and how clear the cut was."""
    stays = torch.zeros(len(scores), dtype=torch.bool)
    stays[kept] = True
    return {
        "min": float(scores.min()),
        "mean": float(scores.mean()),
        "max": float(scores.max()),
        "lowest_kept": float(scores[stays].min()),
        "highest_removed": None if bool(stays.all()) else float(scores[~stays].max()),
    }


def _summary(record: dict[str, Any], plan: PrunePlan, dtype: str) -> dict[str, Any]:
    """Return the numbers of the manifest; seconds and memory belong to the run, not here."""

    def sizes(shape: DecoderShape) -> dict[str, list[int]]:
        return {name: [getattr(layer, name) for layer in shape.layers] for name in ("heads", "kv_heads", "mlp")}

    return {
        "method": record["method"],
        "parameters": record["parameters"],
        "ratio_requested": plan.requested,
        "ratio_achieved": plan.achieved,
        "multiply_accumulates": record["multiply_accumulates"],
        "layers": {"dense": sizes(plan.dense), "pruned": sizes(plan.pruned)},
        "calibration": record["calibration"],
        "dtype": dtype,
        "remarks": list(plan.remarks),
    }
