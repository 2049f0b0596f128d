"""The scores stage: a score for every group of the dense model, independent of the cut that is made afterwards.

So a sweep over ratios, allocations or compensations scores once. Output: `scores.safetensors`, float64, one tensor for
each layer and kind of group ("12.channels"), and "hidden" where hidden channels were scored.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import load_file, save_file

from stages.common.files import read_json
from stages.decoders import checkpoint
from stages.decoders.anatomy import decoder_layers
from stages.decoders.shapes import DecoderShape
from stages.prune.allocation.allocate import check_uncut
from stages.prune.allocation.budget import layers_of
from stages.prune.calibration import calibration_text, reading
from stages.prune.config import PruneConfig
from stages.prune.criteria.registry import CRITERIA
from stages.prune.groups import Scores, check_finite
from stages.prune.memory.weights import Weights, opened

if TYPE_CHECKING:
    from torch import Tensor

    from stages.stage import Context

FILE = "scores.safetensors"


def run(config: PruneConfig, inputs: Mapping[str, Path], context: Context) -> dict[str, Any]:
    """Score the groups of `inputs["model"]`, on `inputs["data"]` where the criterion reads text.

    Raises:
        UserError: there is too little memory, or a score is not finite.
    """
    source, criterion = inputs["model"] / "model", CRITERIA[config.method]
    check_uncut(source, config)
    shape, stored = DecoderShape.from_config(read_json(source / "config.json")), checkpoint.stored_dtype(source)
    read = reading(config, inputs, shape.vocabulary)
    needs = {"reads": criterion.reads_text, "scores": True, "cuts": False}
    ids_BT = calibration_text(read, config, shape, stored=stored, device=context.device, **needs)
    with opened(source, shape, config, context, config.dtype) as held:
        scores = score_groups(held, ids_BT, config)
    save_scores(scores, context.output / FILE)
    return {"method": config.method, "layers": len(scores.layers)}


def score_groups(held: Weights, ids_BT: Tensor | None, config: PruneConfig) -> Scores:
    """Return the scores of the groups in the layers that `config` names.

    Raises:
        UserError: a score is not finite.
    """
    layers = decoder_layers(held.model)
    layers = [layers[index] for index in layers_of(config, len(layers))]
    scores = CRITERIA[config.method].score(held.model, layers, ids_BT, config, held.resident)
    check_finite(scores, config.method)
    return scores


def save_scores(scores: Scores, path: Path) -> None:
    """Write `scores` to `path` by one rename, so that a killed run leaves no half file there."""
    tensors = {f"{index}.{kind}": values for index, kinds in scores.layers.items() for kind, values in kinds.items()}
    tensors |= {} if scores.hidden_H is None else {"hidden": scores.hidden_H}
    beside = path.with_name(f".{path.name}.partial")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, beside)
    beside.rename(path)


def load_scores(path: Path) -> Scores:
    """Return the scores that `save_scores` wrote."""
    layers: dict[int, dict[str, Tensor]] = {}
    tensors = load_file(path)
    hidden_H = tensors.pop("hidden", None)
    for name, values in tensors.items():
        index, _, kind = name.partition(".")
        layers.setdefault(int(index), {})[kind] = values
    return Scores(layers, hidden_H)
