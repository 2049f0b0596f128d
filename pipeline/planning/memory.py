"""The memory that pruning and recovery will need, as a plan tells it before anything is loaded. No torch here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.planning.graph import Graph
from pipeline.planning.work import Counting, Shapes
from stages.common.tables import aligned
from stages.common.units import BYTES, GIB
from stages.decoders.shapes import DecoderShape
from stages.prune.allocation.outcome import PrunePlan
from stages.prune.memory.estimate import estimate as of_pruning
from stages.prune.memory.estimate import work_of
from stages.prune.memory.quantities import Work as PruningWork
from stages.prune.plan import Pruning
from stages.recover.config import RecoverStageConfig
from stages.recover.estimate import Work, longest_micro_batch
from stages.recover.estimate import estimate as of_recovery

HUB = "float16"
"""The precision of a checkpoint whose config.json is not there yet: those of listed models have 16 bits."""


def needs(
    graph: Graph, shapes: Shapes, foreseen: PrunePlan | None, fields: Mapping[str, Any] | None, engine: str
) -> str:
    """Return a line for pruning and one for the recovery, with GiB and their parts; empty where no shape is known.

    Where the outcome of pruning is not known yet, a model with as many parameters takes its place. Under fsdp nothing
    is said, because a process holds a share of the weights.

    Args:
        graph: the plan.
        shapes: the shapes of models that no stage has changed (`pipeline.planning.work`).
        foreseen: the outcome of pruning, as far as it is known.
        fields: the config.json of the model to prune, which may tell its precision.
        engine: how processes share a recovery.
    """
    if engine == "fsdp":
        return ""
    told = fields or {}
    stored = str(told.get("dtype") or told.get("torch_dtype"))
    rows = list(_rows(graph, Counting(graph, shapes, foreseen), stored if stored in BYTES else HUB))
    if not rows:
        return ""
    head = (f"most memory on {graph.device}", "GiB", "of which")
    return "\n".join(aligned([head, *rows]))


def _rows(graph: Graph, counting: Counting, stored: str) -> Iterator[tuple[str, str, str]]:
    dense = counting.shape(graph.roles["model"])
    if graph.pruning is not None and graph.pruning.scored is not None and dense is not None:
        need = of_pruning(_pruning(graph.pruning, dense, stored, graph.device))
        yield "prune", f"{need.total / GIB:.1f}", f"{need.parts()}, for {need.phase}"
    recover = graph.roles.get("recover")
    if recover is None or not isinstance(recover.config, RecoverStageConfig):
        return
    shape = counting.shape(recover.inputs["model"])
    teacher = counting.shape(recover.inputs["teacher"]) if "teacher" in recover.inputs else None
    if shape is None or ("teacher" in recover.inputs and teacher is None):
        return
    tokens = longest_micro_batch(recover.config.recover)
    work = Work(config=recover.config, shape=shape, teacher=teacher, device=graph.device, tokens=tokens)
    found = of_recovery(work)
    yield "recover", f"{found.total / GIB:.1f}", f"{found.parts()}, for {found.phase}"


def _pruning(pruning: Pruning, shape: DecoderShape, stored: str, device: str) -> PruningWork:
    config, given = pruning.config, pruning.config.calibration_ids
    text = (config.calibration.sequences, config.calibration.length) if given is None else (len(given), len(given[0]))
    read = text if pruning.reads_text or pruning.scores_read_text or given else None
    return work_of(shape, config, stored=stored, calibration=read, device=device, scores=True, cuts=True)
