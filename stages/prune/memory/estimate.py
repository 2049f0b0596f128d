"""An estimate of the memory that pruning will need, before anything is loaded. No torch here.

It is that of the phase that needs the most (`.phases`). `tests/prune/test_memory.py` sets it beside measured memory.
"""

from __future__ import annotations

from dataclasses import replace

from stages.common.machine import free_memory_bytes
from stages.common.units import GIB
from stages.decoders.registry import FAMILIES
from stages.decoders.shapes import DecoderShape
from stages.errors import UserError
from stages.prune.allocation.allocate import allocation
from stages.prune.config import FITTED, PruneConfig
from stages.prune.criteria.registry import CRITERIA
from stages.prune.memory.phases import phases
from stages.prune.memory.quantities import Estimate, Work


def check_memory(work: Work, method: str) -> Estimate:
    """Return the most memory that pruning by `method` will need.

    Raises:
        UserError: it is more than is free on its device; the message says how much, and what would need less.
    """
    need, free = estimate(work), free_memory_bytes(work.device)
    if need.total <= free:
        return need
    text = f" of {work.sequences} x {work.length} tokens" if work.sequences else ""
    raise UserError(
        f"prune={method} needs about {need.total / GIB:.1f} GiB on {work.device} for {need.phase} "
        f"({need.weights / GIB:.1f} weights, {need.activations / GIB:.1f} activations{text}, "
        f"{need.matrices / GIB:.1f} matrices at work), and {free / GIB:.1f} GiB are free. {_remedies(work)}"
    )


def estimate(work: Work) -> Estimate:
    """Return the memory of the phase that needs the most."""
    return max(phases(work), key=lambda need: need.total)


def work_of(
    shape: DecoderShape,
    config: PruneConfig,
    *,
    stored: str,
    calibration: tuple[int, int] | None,
    device: str,
    scores: bool,
    cuts: bool,
) -> Work:
    """Return the quantities that decide the memory of pruning a model of `shape`.

    Args:
        shape: the dense decoder.
        config: the options of the pruning.
        stored: the checkpoint's precision.
        calibration: sequences and tokens in each; None where no text is read.
        device: where the model will be.
        scores: whether groups are scored.
        cuts: whether the model is cut.
    """
    sequences, length = calibration or (0, 0)
    criterion, compensate = CRITERIA[config.method], config.compensate
    searched = cuts and allocation(config) == "searched"
    # A family that norms its outputs is fitted as by least_squares.
    if compensate == "sequential" and not FAMILIES[shape.family].plain_outputs:
        compensate = "least_squares"
    return Work(
        shape=shape,
        dtype=config.dtype,
        stored=stored,
        sequences=sequences,
        length=length,
        scores=_kind(config) if scores else "",
        output=scores and criterion.needs_gradients and "hidden" in config.granularity,
        curvature=config.calibration.curvature,
        losses=searched and not (criterion.in_nats and compensate in FITTED),
        trials=config.search.trials if searched else 0,
        judges=config.search.sequences if searched else 0,
        fits=searched and compensate in FITTED,
        compensate=compensate if cuts else "none",
        offload=config.offload == "layer",
        device=device,
    )


def _kind(config: PruneConfig) -> str:
    """Return what the criterion's scores are made of."""
    criterion = CRITERIA[config.method]
    if criterion.in_nats:
        return "surgeon"
    if criterion.cumulative:
        return "elimination"
    if criterion.needs_gradients:
        return "taylor"
    return "activations" if criterion.reads_text else "weights"


def _remedies(work: Work) -> str:
    """Return a sentence with the options that would need less, and the estimate of each."""
    ways = {"prune.dtype=bfloat16": replace(work, dtype="bfloat16")}
    if work.scores in ("taylor", "surgeon") or work.trials:
        plain = replace(work, scores="activations", output=False, losses=False, trials=0, offload=True)
        ways["prune.offload=layer with a criterion without gradients"] = plain
    else:
        ways["prune.offload=layer"] = replace(work, offload=True)
    if work.compensate == "sequential":
        ways["prune.compensate=least_squares"] = replace(work, compensate="least_squares")
    if work.sequences > 1:
        half = work.sequences // 2
        ways[f"prune.calibration.sequences={half}"] = replace(work, sequences=half)
    need = estimate(work).total
    # A remedy that saves less than a twentieth is none.
    less = {way: estimate(other).total for way, other in ways.items() if estimate(other).total < 0.95 * need}
    listed = ", ".join(f"{way} ({total / GIB:.1f} GiB)" for way, total in less.items())
    return f"What needs less: {listed}." if listed else "Prune on a machine with more memory, or a smaller model."
