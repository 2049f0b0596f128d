"""Memory that stages leave behind, and a step that does not fit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks.gpu.agreement import stage_config
from benchmarks.gpu.check import Found, Part, Row, Setting, Skipped
from benchmarks.gpu.device import GIB, emptied, peak
from benchmarks.gpu.slices import byte_tokenizer, llama, questions, rows
from benchmarks.gpu.training import LARGE, SMALL, measured
from stages.common.files import write_jsonl
from stages.prune.criteria.registry import CRITERIA
from stages.registry import STAGES
from stages.stage import JSON, Context

LEFT = 2**28
"""Bytes of tensors that a stage may leave: workspaces of libraries, and no model."""


def stages(setting: Setting, found: Found) -> Part:
    """Run scores, prune and recover one after the other in this process, and tell what each of them leaves."""
    left = dict[str, JSON]()
    with TemporaryDirectory() as folder:
        root = Path(folder)
        _write_inputs(setting, root)
        for name, config, inputs in _work(setting):
            before = emptied(setting.device)
            output = root / name
            output.mkdir()
            context = Context(output=output, device=setting.device, cache=root / "cache", checkpoint_seconds=1e9)
            STAGES[name].load()(config, {role: root / artifact for role, artifact in inputs.items()}, context)
            left[name] = _left(setting, before)
    wrong = [
        f"{name} leaves {each['held_bytes'] / GIB:.2f} GiB" for name, each in left.items() if _keeps(setting, each)
    ]
    return Part(left, [Row(f"memory after {name}", _words(setting, each)) for name, each in left.items()], wrong)


def _write_inputs(setting: Setting, root: Path) -> None:
    """Write a model with its tokenizer, and rows."""
    model = llama(setting, layers=2)
    model.save_pretrained(root / "dense" / "model")
    byte_tokenizer().save_pretrained(root / "dense" / "model")
    (root / "data").mkdir()
    write_jsonl(root / "data" / "train.jsonl", rows(20_000, longest=256))
    write_jsonl(root / "data" / "validation.jsonl", questions(4))


def _work(setting: Setting) -> Iterator[tuple[str, Any, dict[str, str]]]:
    """Yield each stage's name, config and inputs."""
    pruning = CRITERIA["llmpruner"].config(
        method="llmpruner", ratio=0.1, dtype=setting.dtype, allocation="uniform", layers="all"
    )
    yield "scores", pruning, {"model": "dense", "data": "data"}
    yield "prune", pruning, {"model": "dense", "data": "data", "scores": "scores"}
    yield "recover", replace(stage_config("lora"), dtype=setting.dtype), {"model": "prune", "data": "data"}


def _left(setting: Setting, before: int) -> JSON:
    if setting.device == "cuda":
        held, cached = torch.cuda.memory_allocated() - before, torch.cuda.memory_reserved()
        return {"held_bytes": held, "cached_bytes": cached, "peak_bytes": peak("cuda")}
    return {"held_bytes": emptied("cpu") - before, "cached_bytes": None, "peak_bytes": None}


def _keeps(setting: Setting, left: JSON) -> bool:
    # A processor's number is that of the whole process, libraries included.
    return setting.device == "cuda" and left["held_bytes"] > LEFT


def _words(setting: Setting, left: JSON) -> str:
    held = f"{left['held_bytes'] / GIB:.2f} GiB held"
    return (
        f"{held}, {left['cached_bytes'] / GIB:.1f} cached, peak {left['peak_bytes'] / GIB:.1f}"
        if setting.device == "cuda"
        else held
    )


def halving(setting: Setting, found: Found) -> Part:
    """Train with steps that do not fit into what this process may have, and compare the loss with a whole step's."""
    if setting.toy:
        raise Skipped("a processor's memory has no cap; tests/recover/test_out_of_memory.py lets it run out")
    small, whole = (measured(setting, batch_tokens=size, layers=4, timed=2) for size in (SMALL, LARGE))
    each = (whole["peak_bytes"] - small["peak_bytes"]) / (LARGE - SMALL)
    # Enough for a quarter of a step and not for half of it.
    cap = small["peak_bytes"] + each * (0.4 * LARGE - SMALL)
    with _capped(cap):
        halved = measured(setting, batch_tokens=LARGE, layers=4, timed=2)
    apart = abs(halved["losses"][0] - whole["losses"][0]) / whole["losses"][0]
    wrong = [] if halved["micro_batch_tokens"] < LARGE else ["the step fitted, so nothing was halved"]
    wrong += [f"the loss is {apart:.1e} apart"] if apart > 1e-2 else []
    words = f"{halved['micro_batch_tokens']} of {LARGE} tokens at a time in {cap / GIB:.1f} GiB, loss {apart:.1e} apart"
    return Part({"cap_bytes": cap, "whole": whole, "halved": halved}, [Row("out of memory", words)], wrong)


@contextmanager
def _capped(cap: float) -> Iterator[None]:
    """Let this process have `cap` bytes of the card within the block."""
    emptied("cuda")
    torch.cuda.set_per_process_memory_fraction(cap / torch.cuda.get_device_properties(0).total_memory)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
