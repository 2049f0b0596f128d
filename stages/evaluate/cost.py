"""The cost stage: size, work, memory and speed of each model of a recovery.

Models take turns, all loaded in one process, with one forward pass of each at a time. The machine's other work then
falls on all of them alike, and ratios of their times hold. A ratio is taken within one turn, and another model goes
first in the next turn. Peak memory is measured for each model in a process of its own (`peak`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import psutil
import torch

from stages.adapters.loading import Source, added_multiply_accumulates
from stages.common.files import read_json, write_json
from stages.common.machine import hardware
from stages.common.progress import progress
from stages.decoders.architecture import DTYPES
from stages.decoders.checkpoint import count_nonzeros, count_parameters
from stages.decoders.shapes import DecoderShape
from stages.errors import UserError
from stages.evaluate.config import CostConfig
from stages.evaluate.peak import measure_peaks
from stages.evaluate.plan import check_cost
from stages.evaluate.rounding import rounded
from stages.evaluate.timing import timed_passes
from stages.stage import JSON, Context

if TYPE_CHECKING:
    from transformers import PreTrainedModel

HEADROOM = 1.3
"""Memory that must be free to load and run the models, relative to weights and caches."""
ROUNDED = "rounded"
"""The name under which a model in the pruned one's shape takes its turns, with rounded widths."""
ONE_BY_ONE = (
    "The models do not fit in memory together, so each was timed alone: compare their times with care, and no ratio "
    "was taken."
)
Times = Mapping[str, Sequence[tuple[float, float]]]
"""For each model, the seconds of (prefill, one decoding step) in each turn."""


def run(config: CostConfig, inputs: Mapping[str, Path], context: Context) -> JSON:
    """Measure the models of `inputs` ("dense", "pruned", "recovered", those that are there) and write `cost.json`.

    Where a model is an adapter that is not merged, `inputs["base"]` is the model it was trained on. The two are loaded
    and measured together.

    Each model has: parameters, nonzeros, bytes (of the weight files), multiply_accumulates (for a token of the prompt),
    peak memory, and latency. Latency has an entry for each batch size: prefill_seconds, decode_seconds (one step of the
    whole batch) and tokens_per_second (new tokens of all prompts, while decoding). prefill_ratio and decode_ratio are
    both seconds over the dense model's in the same turn. Below 1 is faster. They are null for the dense model, without
    a dense model, and where models were timed alone. All are medians, with a `…_range` of lowest and highest.

    "rounded" has parameters and latency of a model in the pruned one's shape, with MLP widths
    rounded to multiples of 64 (`rounding.py`). It is null where they are so, and where models were timed alone.

    Raises:
        UserError: an option is out of range, or a model does not fit in memory even alone.
    """
    check_cost(config)
    names = [name for name in ("dense", "pruned", "recovered") if name in inputs]
    models = {name: Source.of(inputs[name], inputs.get("base")) for name in names}
    peaks = measure_peaks(models, config, context.device, context.cards)
    measured, note = measure(models, config, context.device, context.cards)
    cost: JSON = {
        "models": {name: measured[name] | peaks[name] for name in models},
        "rounded": measured.get(ROUNDED),
        "hardware": _hardware(context.device),
        "threads": torch.get_num_threads(),
        **{key: getattr(config, key) for key in ("dtype", "prompt_tokens", "new_tokens", "repeats", "batch_sizes")},
    }
    if note:
        cost["note"] = note
    write_json(context.output / "cost.json", cost)
    return {name: {key: entry[key] for key in ("parameters", "bytes")} for name, entry in cost["models"].items()}


def measure(
    models: Mapping[str, Source], config: CostConfig, device: str, cards: Sequence[str] = ()
) -> tuple[dict[str, JSON], str]:
    """Return each model's size, work and latencies, and a note for readers of the latencies (empty without one).

    Where the pruned model has widths to round, one with rounded widths takes its turns too, under the name "rounded".
    All models are loaded at once and take turns, where they fit. Otherwise, and where each is spread over `cards`, each
    is loaded and timed alone.

    Raises:
        UserError: the device has too little memory.
    """
    together = not cards and _fit(models, config, device)
    turns = {batch: _turns(config, batch) for batch in config.batch_sizes}
    measured: dict[str, JSON] = {}
    passes = sum(1 + new_tokens for turn in turns.values() for new_tokens in turn)
    with progress("latency", total=passes * len(models), unit="pass") as bar, _memory(device):
        for group in [models] if together else [{name: source} for name, source in models.items()]:
            loaded = {
                name: source.load(dtype=config.dtype, device=device, cards=cards) for name, source in group.items()
            }
            if together and "pruned" in loaded and (beside := rounded(loaded["pruned"])) is not None:
                loaded[ROUNDED], bar.total = beside, passes * (len(models) + 1)
            times = {batch: _in_turns(loaded, config, batch, turns[batch], bar.update) for batch in turns}
            for name, model in loaded.items():
                latency = [_latency(name, batch, times[batch]) for batch in turns]
                size = _size(models[name], model, config) if name in models else {"parameters": count_parameters(model)}
                measured[name] = size | {"latency": latency}
            # A model that is timed alone must be gone before the next one is loaded.
            del loaded, model
    return measured, "" if together else ONE_BY_ONE


def _turns(config: CostConfig, batch: int) -> list[int]:
    """Return the new tokens of each turn at batch size `batch`. In the first turn the models only warm up."""
    return [1] + [config.new_tokens] * (config.repeats if batch == 1 else (config.repeats + 1) // 2)


def _in_turns(
    models: Mapping[str, PreTrainedModel],
    config: CostConfig,
    batch: int,
    turns: Sequence[int],
    advance: Callable[[int], object],
) -> Times:
    """Return each model's times at batch size `batch` in all turns but the first. A step's is the turn's median."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in models}
    names = list(models)
    for turn, new_tokens in enumerate(turns):
        # Another model goes first in each turn, so that none always follows the same one.
        first = turn % len(names)
        order = names[first:] + names[:first]
        options = {"batch": batch, "prompt_tokens": config.prompt_tokens, "new_tokens": new_tokens}
        passes = []
        # One pass of each model at a time, so that a disturbance falls on all of them.
        for seconds in zip(*(timed_passes(models[name], **options) for name in order), strict=True):
            passes.append(seconds)
            advance(len(order))
        for name, (prefill, *steps) in zip(order, zip(*passes, strict=True), strict=True):
            times[name] += [(prefill, median(steps))] if turn else []
    return times


def _latency(name: str, batch: int, times: Times) -> JSON:
    """Return the entry of model `name` at one batch size, with ratios to the dense model if that took turns too."""
    dense = times.get("dense") if name != "dense" else None
    entry: JSON = {"batch": batch}
    for index, phase in enumerate(("prefill", "decode")):
        seconds = [turn[index] for turn in times[name]]
        entry |= _median(f"{phase}_seconds", seconds)
        ratios = [own / turn[index] for own, turn in zip(seconds, dense, strict=True)] if dense else None
        entry |= _median(f"{phase}_ratio", ratios)
    return entry | {"tokens_per_second": batch / entry["decode_seconds"]}


def _median(name: str, values: Sequence[float] | None) -> JSON:
    if values is None:
        return {name: None, f"{name}_range": None}
    return {name: median(values), f"{name}_range": [min(values), max(values)]}


def _size(source: Source, model: PreTrainedModel, config: CostConfig) -> JSON:
    work = _shape(source).multiply_accumulates(config.prompt_tokens)
    return {
        "bytes": sum(path.stat().st_size for path in source.weights),
        "multiply_accumulates": work + added_multiply_accumulates(model),
        "parameters": count_parameters(model),
        "nonzeros": count_nonzeros(model),
    }


def _shape(source: Source) -> DecoderShape:
    return DecoderShape.from_config(read_json(source.model / "config.json"))


def _fit(models: Mapping[str, Source], config: CostConfig, device: str) -> bool:
    """Return whether all models fit into the free memory at once, each with the largest batch."""
    # The model with rounded widths is as large as the pruned one.
    shapes = [_shape(models[name]) for name in (*models, *({"pruned"} & models.keys()))]
    tokens = max(config.batch_sizes) * (config.prompt_tokens + config.new_tokens)
    # Keys and values of one token, in all layers.
    cached = sum(2 * shape.head_dim * sum(layer.kv_heads for layer in shape.layers) for shape in shapes)
    numbers = sum(shape.parameters() for shape in shapes) + tokens * cached
    free = torch.cuda.mem_get_info(device)[0] if device.startswith("cuda") else psutil.virtual_memory().available
    return bool(HEADROOM * numbers * DTYPES[config.dtype].itemsize <= free)


@contextmanager
def _memory(device: str) -> Iterator[None]:
    """Turn an out-of-memory error of a GPU into an error with its remedy."""
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        raise UserError(
            f"{device} has too little memory to time the models ({str(error).splitlines()[0]}) Give smaller "
            "evaluate.cost.batch_sizes, free the device, or skip the costs: evaluate=none."
        ) from error


def _hardware(device: str) -> JSON:
    machine = hardware()
    gpu = torch.cuda.get_device_name(device) if device.startswith("cuda") else None
    return {
        "device": gpu or machine["processor"],
        "cores": machine["cores"],
        "memory_gib": machine["memory_gib"],
    }
