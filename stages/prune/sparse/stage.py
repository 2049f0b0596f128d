"""Masking as a stage: load, mask, save. The prune stage hands over to it for a method of `MASKS`.

Output: `model/`, the dense model's directory with zeros in it, and `pruning.json`:

    method, options        the options of the run
    masks                  by module, {algorithm, structure, requested, achieved, zeros, weights}; the mask itself is
                           the zeros of the weights
    sparsity               {requested, achieved, weights}: of the masked matrices together
    layers                 the kept indices, all of them
    parameters, nonzeros   {dense, pruned}
    multiply_accumulates   {dense, pruned, context}: the same number twice, because a dense kernel multiplies by zeros
    ratio                  {requested, achieved}: as `sparsity`
    calibration            {sequences, length, loss: {dense, pruned}}; the loss in nats a token
    architecture           as the dense model's
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Mapping
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.common.files import read_json
from stages.common.later import recorded
from stages.decoders import checkpoint
from stages.decoders.architecture import DTYPES
from stages.decoders.shapes import DecoderShape
from stages.errors import UserError
from stages.prune.allocation.budget import CONTEXT
from stages.prune.calibration import Read, reading
from stages.prune.groups import keep_all
from stages.prune.sparse.config import SparseMLConfig
from stages.prune.sparse.mask import mask
from stages.prune.sparse.recipe import check, table
from stages.prune.statistics.gradients import calibration_loss

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from stages.stage import Context


def run(config: SparseMLConfig, inputs: Mapping[str, Path], context: Context) -> dict[str, Any]:
    """Mask `inputs["model"]`, calibrated on `inputs["data"]`; returns the summary.

    Raises:
        UserError: an option is wrong, or the outcome is not what was asked.
    """
    if context.cards:
        raise UserError("prune=sparseml masks a model on one GPU. Leave out runtime.device_map=auto.")
    source = inputs["model"] / "model"
    shape, stored = DecoderShape.from_config(read_json(source / "config.json")), checkpoint.stored_dtype(source)
    read = reading(config, inputs, shape.vocabulary)
    load = partial(checkpoint.load_model, source, device=context.device)
    model, record = masked_model(load, read, config, shape, stored=stored)
    checkpoint.save_cut_model(model, shape, context.output / "model", like=source, dtype=stored, record=record)
    return _summary(record, stored)


def masked_model(
    load: Callable[..., PreTrainedModel], read: Read, config: SparseMLConfig, shape: DecoderShape, *, stored: str
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Return the model that `load(dtype=…)` gives, masked as `config` says, in the precision `stored`; and its record.

    Args:
        load: gives the model in a precision; the model may be changed.
        read: gives the calibration tokens.
        config: the options of the mask.
        shape: the shape of the model.
        stored: the dense model's precision.

    Raises:
        UserError: an option is wrong, or the outcome is not what was asked.
    """
    check(config)
    print(table(config), file=sys.stderr, flush=True)
    ids_BT = read()
    # Weights that are not masked must come back as they were, so none passes through a precision below the stored one.
    model = load(dtype=stored if config.dtype == stored else "float32")
    ids_BT = ids_BT.to(model.device)
    nonzeros, loss = checkpoint.count_nonzeros(model), calibration_loss(model, ids_BT)
    masked = mask(model, ids_BT, config, DTYPES[stored])
    record = _record(config, shape, ids_BT) | masked
    record["ratio"] = {key: masked["sparsity"][key] for key in ("requested", "achieved")}
    record["nonzeros"] = {"dense": nonzeros, "pruned": checkpoint.count_nonzeros(model)}
    record["calibration"]["loss"] = {"dense": loss, "pruned": calibration_loss(model, ids_BT)}
    return model, record


def _record(config: SparseMLConfig, shape: DecoderShape, ids_BT: Tensor) -> dict[str, Any]:
    """Return the part of pruning.json that does not depend on the outcome."""
    options = {name: value for name, value in recorded(config).items() if name != "calibration_ids"}
    parameters, macs = shape.parameters(), shape.multiply_accumulates(CONTEXT)
    return {
        "method": config.method,
        "options": options,
        "engine": f"llmcompressor {version('llmcompressor')}",
        "layers": [dataclasses.asdict(keep_all(layer)) for layer in shape.layers],
        "parameters": {"dense": parameters, "pruned": parameters},
        "multiply_accumulates": {"dense": macs, "pruned": macs, "context": CONTEXT},
        "calibration": {"sequences": ids_BT.shape[0], "length": ids_BT.shape[1]},
        "remarks": [],
    }


def _summary(record: dict[str, Any], dtype: str) -> dict[str, Any]:
    """Return the numbers of the manifest."""
    return {
        "method": record["method"],
        "parameters": record["parameters"],
        "nonzeros": record["nonzeros"],
        "ratio_requested": record["ratio"]["requested"],
        "ratio_achieved": record["ratio"]["achieved"],
        "multiply_accumulates": record["multiply_accumulates"],
        "calibration": record["calibration"],
        "dtype": dtype,
        "remarks": record["remarks"],
    }
