"""The record of a pruning: `pruning.json` beside the weights, and the summary in the manifest."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from stages.common.later import recorded
from stages.decoders.shapes import DecoderShape
from stages.prune.allocation.budget import CONTEXT
from stages.prune.allocation.outcome import PrunePlan
from stages.prune.config import PruneConfig
from stages.prune.groups import Kept, Scores, Selection


def pruning_record(
    config: PruneConfig, plan: PrunePlan, kept: Selection, calibration: dict[str, Any] | None, more: dict[str, Any]
) -> dict[str, Any]:
    """Return the content of `pruning.json` without the architecture; `stages.prune.stage` describes the fields."""
    options = {name: value for name, value in recorded(config).items() if name != "calibration_ids"}
    return {
        "method": config.method,
        "options": options,
        "layers": [None if keep is None else dataclasses.asdict(keep) for keep in kept.layers],
        "hidden": kept.hidden,
        "parameters": {"dense": plan.parameters_before, "pruned": plan.parameters_after},
        "multiply_accumulates": {"dense": plan.macs_before, "pruned": plan.macs_after, "context": CONTEXT},
        "ratio": {"requested": plan.requested, "achieved": plan.achieved},
        "calibration": calibration,
        **more,
        "remarks": list(plan.remarks),
    }


def spreads(scores: Scores, kept: Selection) -> list[dict[str, Any] | None]:
    """Return each layer's spread of scores, and the scores next to the cut; None where nothing was ranked."""
    return [
        _layer_spreads(scores.layers[index], keep) if index in scores.layers else None
        for index, keep in enumerate(kept.layers)
    ]


def _layer_spreads(scores: Mapping[str, Tensor], keep: Kept | None) -> dict[str, Any]:
    keep = keep or Kept([], [], [])
    stays = {"heads": keep.kv_heads, "queries": keep.heads, "channels": keep.mlp}
    found: dict[str, Any] = {kind: _spread(scores[kind], stays[kind]) for kind in stays if kind in scores}
    return found | {kind: float(scores[kind][0]) for kind in ("attention", "mlp", "layers") if kind in scores}


def _spread(scores: Tensor, kept: list[int]) -> dict[str, float | None]:
    stays = torch.zeros(len(scores), dtype=torch.bool)
    stays[kept] = True
    return {
        "min": float(scores.min()),
        "mean": float(scores.mean()),
        "max": float(scores.max()),
        "lowest_kept": float(scores[stays].min()) if kept else None,
        "highest_removed": None if bool(stays.all()) else float(scores[~stays].max()),
    }


def summary(record: Mapping[str, Any], plan: PrunePlan, dtype: str) -> dict[str, Any]:
    """Return the numbers of the manifest, without seconds and memory, which belong to the run."""

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
