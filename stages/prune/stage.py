"""The prune stage: score, share out the budget, print the plan, compensate, cut, save.

Output: `model/`, a Hugging Face directory in the precision of the dense model, with `pruning.json`:

    method, options        the options of the run
    layers                 [{heads, kv_heads, mlp} or null, …], the kept indices into the dense model, one entry a layer
                           (empty lists: the sub-layer was removed; null: the whole layer was)
    hidden                 the kept hidden channels, or null where all stay
    parameters             {dense, pruned}
    multiply_accumulates   {dense, pruned, context}, a token of a sequence of `context` tokens
    ratio                  {requested, achieved}, of the parameters
    calibration            {sequences, length, loss: {dense, pruned}}, or null; the loss in nats a token of the first
                           sequences (`stages.prune.memory.sizes.LOSS`)
    scores                 one entry a layer, null where nothing was ranked: by kind of group min, mean, max, the lowest
                           score kept and the highest removed (of the last step)
    second_stage           of 2ssp, the attentions that went (in the last step): {layer, loss}, the loss after each
    search                 the allocations that were tried: {allocation, predicted, loss}
    architecture           {model_type, reason}: the architecture that it is saved as, and why
    base                   the origin of the dense model, as its origin.json says
    like                   {kept} of a cut that was made like an earlier one: the SHA-256 of what that one kept

Masks, which set single weights to zero, have another record: `stages.prune.sparse.stage` describes it.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.common.files import read_json
from stages.common.machine import release_memory
from stages.decoders import checkpoint
from stages.decoders.shapes import DecoderShape
from stages.prune.allocation.allocate import (
    allocation,
    check_uncut,
    foreseen,
    notes,
    plan_shapes,
    reads_text,
    ruled,
    settled,
)
from stages.prune.allocation.budget import Budget, budget_of, layers_of
from stages.prune.allocation.outcome import PrunePlan
from stages.prune.allocation.search import searched
from stages.prune.allocation.served import check_cut
from stages.prune.applied import run as run_like
from stages.prune.calibration import Read, calibration_text, reading
from stages.prune.compensation import compensate
from stages.prune.config import FITTED, PruneConfig
from stages.prune.criteria.registry import CRITERIA
from stages.prune.groups import Scores, Selection, composed, keep_all, kept_layer, selection_of
from stages.prune.like import LikeConfig
from stages.prune.memory.weights import Weights, opened
from stages.prune.record import pruning_record, spreads, summary
from stages.prune.scores import FILE as SCORES
from stages.prune.scores import load_scores, score_groups
from stages.prune.sparse.config import SparseMLConfig
from stages.prune.sparse.stage import run as run_masks
from stages.prune.surgery import cut

if TYPE_CHECKING:
    from torch import Tensor

    from stages.stage import Context

Chosen = tuple[PrunePlan, Selection, dict[str, Any]]
"""The plan of every layer's shape, the groups that stay, and the entries of the record about scores and search."""
Open = Callable[[str], AbstractContextManager[Weights]]
"""Opens the dense model's weights in a precision. Each call opens them afresh, because a cut changes them."""


@dataclass(frozen=True, slots=True)
class Cut:
    """A cut model, still of the dense model's class, and its record without the architecture."""

    held: Weights
    plan: PrunePlan
    record: dict[str, Any]


def run(config: PruneConfig, inputs: Mapping[str, Path], context: Context) -> dict[str, Any]:
    """Prune `inputs["model"]`, calibrated on `inputs["data"]` where text is read; returns the summary.

    `inputs["scores"]` is the artifact of the scores stage. Without it, groups are scored here.

    Raises:
        UserError: an option is wrong, the budget can't be met, or loss or scores are not finite.
    """
    if isinstance(config, SparseMLConfig):
        return run_masks(config, inputs, context)
    if isinstance(config, LikeConfig):
        return run_like(config, inputs, context)
    source = inputs["model"] / "model"
    check_uncut(source, config)
    shape, stored = DecoderShape.from_config(read_json(source / "config.json")), checkpoint.stored_dtype(source)
    weights = partial(opened, source, shape, config, context)
    read = reading(config, inputs, shape.vocabulary)
    scores = load_scores(inputs["scores"] / SCORES) if "scores" in inputs else None
    with cut_model(weights, read, config, shape, stored=stored, device=context.device, scores=scores) as made:
        resident = None if config.offload == "none" else made.held.resident
        checkpoint.save_cut_model(
            made.held.model,
            made.plan.pruned,
            context.output / "model",
            like=source,
            dtype=stored,
            record=made.record,
            resident=resident,
        )
        return summary(made.record, made.plan, stored)


@contextmanager
def cut_model(
    weights: Open,
    read: Read,
    config: PruneConfig,
    shape: DecoderShape,
    *,
    stored: str,
    device: str,
    scores: Scores | None = None,
) -> Iterator[Cut]:
    """Yield the dense model of `weights`, cut as `config` says, in the precision `stored`; the plan is printed before.

    The caller has checked the options (`stages.prune.plan`).

    Args:
        weights: opens the dense model's weights, first in the precision of the scores.
        read: gives the calibration tokens; called only where something reads them.
        config: the options of the pruning.
        shape: the shape of the dense model.
        stored: the dense model's precision.
        device: where the weights are opened.
        scores: the scores of the dense model's groups; None where it has not been scored.

    Raises:
        UserError: the budget can't be met, there is too little memory, or loss or scores are not finite.
    """
    config = settled(config, shape)
    budget = None if ruled(config) else budget_of(shape, config, stored)
    preview = foreseen(shape, config, budget)  # a budget that can't be met is an error before the long work
    if preview is not None:
        _announce(config, preview)
    needs = {"reads": reads_text(config), "scores": scores is None or config.steps > 1, "cuts": True}
    ids_BT = calibration_text(read, config, shape, stored=stored, device=device, **needs)
    with weights(config.dtype) as held:
        loss = {"dense": held.loss(ids_BT)}
        chosen = _choose_in_steps(held, scores, ids_BT, config, budget, shape)
        if config.shapes == "served":
            check_cut(chosen[0].pruned, config)
        if preview is None or config.steps > 1:
            _announce(config, chosen[0])
        # Several steps have cut these weights already, so the last cut needs fresh ones.
        if stored == config.dtype and config.steps == 1:
            yield _cut(held, chosen, ids_BT, loss, config)
            return
    del held
    release_memory()  # the first copy goes before the second one is loaded
    with weights(stored) as held:  # the weights that are cut never pass through the precision of the scores
        yield _cut(held, chosen, ids_BT, loss, config)


def _choose_in_steps(
    held: Weights,
    scores: Scores | None,
    ids_BT: Tensor | None,
    config: PruneConfig,
    budget: Budget | None,
    shape: DecoderShape,
) -> Chosen:
    """Return the choice of the groups that stay, made in `config.steps` steps.

    Every step but the last cuts the model, and the next step scores what is left of it. `scores` are the scores of the
    dense model; None where it has not been scored.
    """
    left, kept = shape, Selection([keep_all(layer) for layer in shape.layers])
    for step in range(1, config.steps + 1):
        part, renumbered = None if budget is None else budget.part(step / config.steps), _renumbered(config, kept)
        if not renumbered.layers:
            break  # the layers that may go have gone
        plan, stays, found = _choose(held, scores, ids_BT, renumbered, part, left)
        scores = None  # they are of the dense model, which the next step no longer has
        kept = composed(kept, stays)
        if step < config.steps:
            if config.compensate in FITTED:
                # Only scores are read of this model. For them the quicker fit is near enough to the last one.
                compensate(held.model, stays, ids_BT, "least_squares", held.resident, dtype=config.dtype)
            cut(held.model, stays, held.resident)
            left = plan.pruned
    layers = tuple(None if keep is None else kept_layer(keep) for keep in kept.layers)
    plan = dataclasses.replace(
        plan,
        dense=shape,
        layers=layers,
        requested=None if budget is None else budget.ratio,
        # The bias is new parameters, which the plan has to count.
        output_bias=config.compensate == "bias" and layers != shape.layers,
    )
    return plan, kept, found


def _renumbered(config: PruneConfig, kept: Selection) -> PruneConfig:
    """Return `config` with `layers` renumbered: by their place among the layers that are left."""
    there = [index for index, keep in enumerate(kept.layers) if keep is not None]
    if len(there) == len(kept.layers):
        return config
    wanted = set(layers_of(config, len(kept.layers)))
    numbers = [str(number) for number, index in enumerate(there) if index in wanted]
    return dataclasses.replace(config, layers=",".join(numbers))


def _choose(
    held: Weights,
    scores: Scores | None,
    ids_BT: Tensor | None,
    config: PruneConfig,
    budget: Budget | None,
    shape: DecoderShape,
) -> Chosen:
    """Return the choice of the groups that stay, by `scores`; without them the model that is held is scored."""
    idle = budget is not None and not budget.ratio  # nothing is to go, so nothing needs a score
    if scores is None:
        scores = Scores({}) if idle else score_groups(held, ids_BT, config)
    found: dict[str, Any] = {}
    way, criterion = allocation(config), CRITERIA[config.method]
    if idle or budget is None or ids_BT is None:
        way = "by shapes and scores"
    if way == "own" and criterion.own is not None:
        plan, kept, found = criterion.own.choose(held.model, scores, ids_BT, config, budget, shape, held.resident)
    elif way == "searched" and budget is not None and ids_BT is not None:
        # The surgeon's scores are losses after compensation by least squares. Else the search works out its own losses.
        cumulative = criterion.in_nats and config.compensate in FITTED
        plan, kept, trials = searched(held.model, scores, ids_BT, config, budget, shape, cumulative=cumulative)
        found["search"] = trials
    else:
        plan = plan_shapes(shape, config, scores, budget)
        kept = selection_of(scores, shape.layers, plan.layers, plan.hidden)
    return plan, kept, {"scores": spreads(scores, kept), **found}


def _cut(
    held: Weights, chosen: Chosen, ids_BT: Tensor | None, loss: dict[str, float | None], config: PruneConfig
) -> Cut:
    """Return the dense model that is held, compensated and cut to the groups that stay, with its record."""
    plan, kept, found = chosen
    if config.compensate != "none" and plan.pruned != plan.dense:
        compensate(held.model, kept, ids_BT, config.compensate, held.resident, dtype=config.dtype)
    cut(held.model, kept, held.resident)
    calibration = None
    if ids_BT is not None:
        loss = loss | {"pruned": held.loss(ids_BT)}
        calibration = {"sequences": ids_BT.shape[0], "length": ids_BT.shape[1], "loss": loss}
    return Cut(held, plan, pruning_record(config, plan, kept, calibration, found))


def _announce(config: PruneConfig, plan: PrunePlan) -> None:
    lines = [f"prune={config.method}, layers {config.layers}", plan.table(), *notes(config, plan)]
    print("\n".join(lines), file=sys.stderr, flush=True)
