"""Memory that stages leave behind, and a step that does not fit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from benchmarks.gpu.agreement import stage_config
from benchmarks.gpu.check import Found, Part, Row, Setting, Skipped
from benchmarks.gpu.device import GIB, emptied
from benchmarks.gpu.slices import byte_tokenizer, llama, questions, rows
from benchmarks.gpu.training import LARGE, SMALL, measured
from pipeline.engine.engine import Engine
from pipeline.engine.store import Store
from pipeline.planning.graph import Graph, Node
from stages.common.files import write_json, write_jsonl
from stages.common.machine import resident_bytes
from stages.evaluate.config import EvaluateConfig
from stages.prune.criteria.registry import CRITERIA
from stages.registry import STAGES
from stages.stage import JSON, Context, Stage
from stages.text_library.kinds import CONTINUED

LEFT = 2**28
"""Bytes of a card that a stage may leave occupied: workspaces of libraries, and no model."""
GIVEN = ("model", "data", "tasks")
"""The artifacts that the measured stages read."""


def stages(setting: Setting, found: Found) -> Part:
    """Let the engine of a run build scores, prune, recover and evaluate in this process, and tell what each leaves."""
    left = _memory(setting)
    wrong = [f"{name} keeps {occupied / GIB:.2f} GiB of the card" for name, occupied in kept(left).items()]
    return Part(left, [Row(f"memory after {name}", _words(each)) for name, each in left.items()], wrong)


def kept(left: Mapping[str, JSON]) -> dict[str, int]:
    """Return what of the card is not free again, by the stages that keep too much of it.

    On a processor there are none, because its number is of the whole process, libraries included.
    """
    return {name: each["cached_bytes"] for name, each in left.items() if (each["cached_bytes"] or 0) > LEFT}


def _memory(setting: Setting) -> dict[str, JSON]:
    """Return what each stage leaves behind, and its peak."""
    graph, began = _graph(setting), dict[str, JSON]()

    def beginning(node: Node) -> Callable[[JSON], None]:
        """Take note of what is occupied when a stage begins, which is after the engine's release of memory."""
        began[graph.role_of(node)] = _now(setting.device)
        return lambda point: None

    with TemporaryDirectory() as folder:
        store, cache = Store(Path(folder) / "artifacts"), Path(folder) / "cache"
        cache.mkdir()
        engine = Engine(graph, store, cache=cache, force=[], observe=beginning)
        for node in graph:
            engine.ensure(node)
    left = dict[str, JSON]()
    for name, following in pairwise(graph.roles):
        if name not in GIVEN:
            run = engine.runs[graph.roles[name].key]
            peaks = {"peak_bytes": run.peak_device_memory_bytes or run.peak_memory_bytes}
            left[name] = _difference(began[name], began[following]) | peaks
    return left


def _now(device: str) -> JSON:
    """Return the bytes that tensors hold, and those that torch has of the card; on a processor the process's."""
    if device == "cuda":
        return {"held_bytes": torch.cuda.memory_allocated(), "cached_bytes": torch.cuda.memory_reserved()}
    return {"held_bytes": resident_bytes("VmRSS") or 0, "cached_bytes": None}


def _difference(before: JSON, after: JSON) -> JSON:
    return {name: None if value is None else after[name] - value for name, value in before.items()}


def _words(left: JSON) -> str:
    words = [f"{left['held_bytes'] / GIB:.2f} GiB held"]
    words += [] if left["cached_bytes"] is None else [f"{left['cached_bytes'] / GIB:.2f} not given back"]
    words += [] if left["peak_bytes"] is None else [f"peak {left['peak_bytes'] / GIB:.1f}"]
    return ", ".join(words)


def _graph(setting: Setting) -> Graph:
    """Return the stages, behind artifacts made of nothing, and before one that shows what the last stage leaves."""
    pruning = CRITERIA["llmpruner"].config(
        method="llmpruner", ratio=0.1, dtype=setting.dtype, allocation="uniform", layers="all"
    )
    judging = EvaluateConfig(
        texts=[CONTINUED], passages=4, generation_prompts=2, generation_tokens=8, dtype=setting.dtype
    )
    model, data, tasks = (
        Node(Stage(name=name, version=0, function=f"{__name__}:write_{name}", outputs=()), "random", setting)
        for name in GIVEN
    )
    read = {"model": model, "data": data}
    scores = Node(STAGES["scores"], "taylor", pruning, read)
    prune = Node(STAGES["prune"], "taylor", pruning, read | {"scores": scores})
    training = replace(stage_config("lora"), dtype=setting.dtype)
    recover = Node(STAGES["recover"], "lora", training, {"model": prune, "data": data})
    evaluate = Node(STAGES["evaluate"], "texts", judging, {"model": recover, "tasks": tasks})
    nothing = Stage(name="nothing", version=0, function=f"{__name__}:nothing", outputs=())
    roles = dict(zip(GIVEN, (model, data, tasks), strict=True))
    roles |= {"scores": scores, "prune": prune, "recover": recover, "evaluate": evaluate}
    return Graph(roles | {"nothing": Node(nothing, "end", setting, {"evaluate": evaluate})}, setting.device)


def write_model(setting: Setting, inputs: Mapping[str, Path], context: Context) -> JSON:
    """Write a model with its tokenizer."""
    llama(setting, layers=2).save_pretrained(context.output / "model")
    byte_tokenizer().save_pretrained(context.output / "model")
    return {}


def write_data(setting: Setting, inputs: Mapping[str, Path], context: Context) -> JSON:
    """Write rows to train on, and held-out ones."""
    write_jsonl(context.output / "train.jsonl", rows(20_000, longest=256))
    write_jsonl(context.output / "validation.jsonl", questions(4))
    return {}


def write_tasks(setting: Setting, inputs: Mapping[str, Path], context: Context) -> JSON:
    """Write held-out texts, and no task."""
    texts = [{"title": str(place), "text": row["prompt"]} for place, row in enumerate(questions(8, seed=2))]
    write_jsonl(context.output / "texts" / f"{CONTINUED}.jsonl", texts)
    for name, record in (("tasks", {}), ("texts", {CONTINUED: {"rows": len(texts)}}), ("corpora", {})):
        write_json(context.output / f"{name}.json", record)
    return {}


def nothing(setting: Setting, inputs: Mapping[str, Path], context: Context) -> JSON:
    """Write nothing: what counts is the memory at the beginning."""
    return {}


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
