"""The cost stage: what each model of a recovery weighs and how fast it runs.

Latencies are taken in alternation, all models loaded in one process, so that the machine's other work falls on all of
them alike and their ratio holds. Peak memory is each model's own, in a process of its own (`peak`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import psutil
import torch

from stages.checkpoint import DTYPES, count_parameters, load_model
from stages.errors import UserError
from stages.evaluate.config import CostConfig
from stages.evaluate.timing import timed_generation
from stages.evaluate.peak import measure_peaks
from stages.files import read_json, write_json
from stages.machine import hardware
from stages.progress import progress
from stages.shapes import DecoderShape
from stages.stage import JSON, Context

if TYPE_CHECKING:
    from transformers import PreTrainedModel

HEADROOM = 1.3
"""Memory to hold free for loading and running, over the weights."""
ONE_BY_ONE = "The models do not fit in memory together, so each was timed alone: compare their times with care."


def run(config: CostConfig, inputs: Mapping[str, Path], context: Context) -> JSON:
    """Measure the models of `inputs` ("dense", "pruned", "recovered", those that are there) and write `cost.json`.

    For each: parameters, nonzeros, bytes (of the weight files), multiply_accumulates (a token of the prompt),
    prefill_seconds and decode_seconds (a new token), both medians with a range over the repeats, and peak memory.

    Raises:
        UserError: an option is out of range, or a model does not fit in memory even alone.
    """
    _check(config)
    models = {name: inputs[name] / "model" for name in ("dense", "pruned", "recovered") if name in inputs}
    peaks = measure_peaks(models, config, context.device)
    measured, note = measure(models, config, context.device)
    cost: JSON = {
        "models": {name: _size(path, config) | measured[name] | peaks[name] for name, path in models.items()},
        "hardware": _hardware(context.device),
        "threads": torch.get_num_threads(),
        **{key: getattr(config, key) for key in ("dtype", "prompt_tokens", "new_tokens", "repeats")},
    }
    if note:
        cost["note"] = note
    write_json(context.output / "cost.json", cost)
    return {name: {key: entry[key] for key in ("parameters", "bytes")} for name, entry in cost["models"].items()}


def measure(models: Mapping[str, Path], config: CostConfig, device: str) -> tuple[dict[str, JSON], str]:
    """Return each model's parameters, nonzeros and latencies, and what a reader must know about these, if anything.

    All models are loaded at once and take turns, where they fit; else each is loaded and timed alone.
    """
    together = _fit(models, config, device)
    measured: dict[str, JSON] = {}
    with progress("latency", total=len(models) * (config.repeats + 1), unit="run") as bar:
        for group in [models] if together else [{name: path} for name, path in models.items()]:
            loaded = {name: load_model(path, dtype=config.dtype, device=device) for name, path in group.items()}
            times = _in_turns(loaded, config, bar.update)
            measured |= {name: _weight(model) | _latency(times[name]) for name, model in loaded.items()}
            del loaded
    return measured, "" if together else ONE_BY_ONE


def _in_turns(
    models: Mapping[str, PreTrainedModel], config: CostConfig, advance: Callable[[], object]
) -> dict[str, list[tuple[float, float]]]:
    """Return each model's (prefill, decode) seconds of every repeat, after a turn each to warm up."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in models}
    for repeat in range(config.repeats + 1):
        for name, model in models.items():
            new_tokens = config.new_tokens if repeat else 1
            found = timed_generation(model, prompt_tokens=config.prompt_tokens, new_tokens=new_tokens)
            times[name] += [found] if repeat else []
            advance()
    return times


def _size(directory: Path, config: CostConfig) -> JSON:
    shape = DecoderShape.from_config(read_json(directory / "config.json"))
    return {
        "bytes": sum(path.stat().st_size for path in directory.glob("*.safetensors")),
        "multiply_accumulates": shape.multiply_accumulates(config.prompt_tokens),
    }


def _weight(model: PreTrainedModel) -> JSON:
    nonzeros = sum(int(torch.count_nonzero(parameter)) for parameter in model.parameters())
    return {"parameters": count_parameters(model), "nonzeros": nonzeros}


def _latency(times: list[tuple[float, float]]) -> JSON:
    entry: JSON = {}
    for name, seconds in zip(("prefill_seconds", "decode_seconds"), zip(*times, strict=True), strict=True):
        entry |= {name: median(seconds), f"{name}_range": [min(seconds), max(seconds)]}
    return entry


def _fit(models: Mapping[str, Path], config: CostConfig, device: str) -> bool:
    """Return whether all models fit at once into the memory that is free now."""
    width = torch.finfo(DTYPES[config.dtype]).bits // 8
    shapes = [DecoderShape.from_config(read_json(path / "config.json")) for path in models.values()]
    free = torch.cuda.mem_get_info(device)[0] if device.startswith("cuda") else psutil.virtual_memory().available
    return bool(HEADROOM * width * sum(shape.parameters() for shape in shapes) <= free)


def _hardware(device: str) -> JSON:
    machine = hardware()
    gpu = torch.cuda.get_device_name(device) if device.startswith("cuda") else None
    return {
        "device": gpu or machine["processor"],
        "cores": machine["cores"],
        "memory_gib": machine["memory_gib"],
    }


def _check(config: CostConfig) -> None:
    for name in ("prompt_tokens", "new_tokens", "repeats"):
        if getattr(config, name) < 1:
            raise UserError(f"evaluate.cost.{name} is {getattr(config, name)}: give at least 1.")
