"""The shape of every layer, by the allocation that `prune.allocation` names. No torch here.

paper     the allocation of the criterion's own paper: one of those below, `equal`, which has LLM-Pruner's nearest
          shares, or `own`, which the criterion brings itself
uniform   every layer loses the same shares
global    the groups of all layers and kinds compete by their scores
searched  the groups compete by the loss that each cut costs (`stages.prune.allocation.search`)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from stages.common.choices import lookup
from stages.decoders.decilm import SERVERS
from stages.decoders.shapes import DecoderShape
from stages.errors import UserError
from stages.prune.allocation.budget import Budget, budget_of, layers_of
from stages.prune.allocation.limits import check_reachable, may_go
from stages.prune.allocation.outcome import PrunePlan
from stages.prune.allocation.ranking import ladders_of, ranked_plan
from stages.prune.allocation.rounding import price, rounded
from stages.prune.allocation.served import check_cut, check_dense, check_served
from stages.prune.allocation.uniform import alike, by_channel_ratio
from stages.prune.config import ALLOCATIONS, BUDGETS, COMPENSATIONS, DEPTH, OFFLOADS, SCOPES, SHAPES, PruneConfig
from stages.prune.criteria.registry import CRITERIA

if TYPE_CHECKING:
    from stages.prune.groups import Scores


def check_options(config: PruneConfig) -> None:
    """Raise a `UserError` where an option common to all criteria is out of its range, or two exclude each other."""
    lookup("prune.allocation", config.allocation, dict.fromkeys(ALLOCATIONS))
    lookup("prune.shapes", config.shapes, dict.fromkeys(SHAPES))
    lookup("prune.serve", config.serve, dict.fromkeys(SERVERS))
    lookup("prune.compensate", config.compensate, dict.fromkeys(COMPENSATIONS))
    lookup("prune.budget", config.budget, dict.fromkeys(BUDGETS))
    lookup("prune.offload", config.offload, dict.fromkeys(OFFLOADS))
    if config.offload == "layer" and needs_gradients(config):
        able = ", ".join(name for name, criterion in CRITERIA.items() if not criterion.needs_gradients)
        culprit = "prune.allocation=searched" if config.allocation == "searched" else f"prune={config.method}"
        raise UserError(
            f"prune.offload=layer holds one layer in memory at a time, and {culprit} needs gradients, for which all "
            f"have to be there. Criteria that can do without: {able} (with prune.allocation=uniform, global or paper)."
        )
    if not config.granularity:
        raise UserError("prune.granularity is empty: name what may go, as in prune.granularity=[heads,channels].")
    for name, value in (
        ("prune.round_to", config.multiple),
        ("prune.search.trials", config.search.trials),
        ("prune.search.sequences", config.search.sequences),
    ):
        if value < 1:
            raise UserError(f"{name}={value} must be at least 1.")
    if config.steps < 0:
        raise UserError(f"prune.steps={config.steps} must be at least 1, or 0 for as many as the ratio asks for.")
    if not 0 < config.max_per_layer <= 1:
        raise UserError(f"prune.max_per_layer={config.max_per_layer:g} must be above 0 and at most 1.")
    _check_scope(config)
    _check_fixed(config)
    _check_kinds(config)


def _check_scope(config: PruneConfig) -> None:
    if config.scope is None:
        return
    meant = lookup("prune.scope", config.scope, SCOPES)
    if config.allocation not in ("paper", meant):
        raise UserError(
            f"prune.scope={config.scope} means prune.allocation={meant}, and prune.allocation={config.allocation} says "
            "otherwise: give one of the two."
        )


def _check_fixed(config: PruneConfig) -> None:
    """Raise a `UserError` where a fixed share of each layer stands beside an option that then has no effect."""
    given = [name for name in ("channel_ratio", "layer_ratios", "megabytes") if getattr(config, name) is not None]
    if len(given) > 1:
        raise UserError(f"prune.{given[0]} and prune.{given[1]} both say how much goes: give one of them.")
    if not ruled(config):
        return
    idle = {
        f"prune.steps={config.steps}": config.steps > 1,
        # The default, `paper`, may stand for one of these and decides nothing here.
        f"prune.allocation={allocation(config)}": allocation(config) in ("global", "searched")
        and (config.allocation != "paper" or config.scope is not None),
        f"prune.budget={config.budget}": config.budget != "parameters",
        f"prune.round_to={config.round_to}": config.multiple > 1,
        f"prune.layers={config.layers}": config.layer_ratios is not None and config.layers not in (None, "all"),
    }
    if any(idle.values()):
        option = next(option for option, wrong in idle.items() if wrong)
        raise UserError(
            f"prune.{given[0]} fixes what each layer loses, so there is nothing for {option} to decide: give a ratio "
            "with it, or leave it out."
        )
    if not {"heads", "channels"} >= set(config.granularity):
        raise UserError(
            f"prune.{given[0]} is a share of heads and of MLP channels, and prune.granularity={config.granularity} "
            "lets others go. Use prune.granularity=[heads,channels], or one of them."
        )


def _check_kinds(config: PruneConfig) -> None:
    """Raise a `UserError` where the allocation can't cut the kinds of group that are asked for."""
    way, kinds = allocation(config), set(config.granularity)
    if "hidden" in kinds and (config.compensate != "none" or way in ("global", "searched")):
        raise UserError(
            "hidden channels go through all layers at once: they can neither compete with the groups of a layer "
            "(prune.allocation=global, searched) nor be compensated for in one. Use prune.allocation=uniform "
            "prune.compensate=none."
        )
    if len(kinds & set(DEPTH)) > 1 and way not in ("global", "searched"):
        raise UserError(
            f"prune.granularity={config.granularity}: layers and sub-layers of several kinds compete with each other. "
            "Use prune.allocation=global, or name one of the kinds."
        )
    if config.shapes == "alike":
        _check_alike(config)
    if config.shapes == "served":
        check_served(config, alike=_heads_go_alike(config))


def _check_alike(config: PruneConfig) -> None:
    """Raise a `UserError` where layers can't all end with one shape, or where no allocation is searched."""
    way = allocation(config)
    if way not in ("searched", "uniform"):
        raise UserError(
            "prune.shapes=alike is about what prune.allocation=searched tries. Without a search, "
            "prune.allocation=uniform gives all layers one shape."
        )
    if not set(config.granularity) - set(DEPTH) or config.layers not in (None, "all"):
        raise UserError(
            "prune.shapes=alike wants every layer to end alike, so heads, queries or channels must be in "
            f"prune.granularity={config.granularity}, and prune.layers={config.layers} be all."
        )


def _heads_go_alike(config: PruneConfig) -> bool:
    """Return whether heads and queries, where they may go, go in all layers alike."""
    protects = config.allocation == "paper" and config.scope is None and any(CRITERIA[config.method].protected)
    every = config.layers == "all" or (config.layers is None and not protects)
    return every and config.layer_ratios is None and (ruled(config) or allocation(config) != "global")


def check_uncut(directory: Path, config: PruneConfig) -> None:
    """Raise a `UserError` where the model in `directory` comes pruned and `config.again` is not set."""
    if (directory / "pruning.json").is_file() and not config.again:
        raise UserError(
            f"{directory} comes pruned (its pruning.json says how). Recover it as it is with prune=sheared "
            "(+model@model.dense=NAME is what it is compared with); or cut it further with prune.again=true."
        )


def reads_text(config: PruneConfig) -> bool:
    """Return whether pruning by `config` reads calibration tokens."""
    return CRITERIA[config.method].reads_text or config.compensate != "none" or config.allocation == "searched"


def needs_gradients(config: PruneConfig) -> bool:
    """Return whether pruning by `config` runs backward, for which the whole model has to be in memory."""
    return CRITERIA[config.method].needs_gradients or allocation(config) == "searched"


def for_scores(config: PruneConfig) -> PruneConfig:
    """Return `config` for the scores stage: options that do not affect the dense model's scores have their defaults.

    All layers are scored unless the options name some, so every allocation shares the scores.
    """
    plain, layers = PruneConfig(round_to=1), "all" if config.layers is None else config.layers
    budget = ("budget", "megabytes", "channel_ratio", "layer_ratios")
    way = ("allocation", "scope", "search", "shapes", "serve", "round_to", "max_per_layer", "steps", "compensate")
    return replace(config, ratio=0.0, layers=layers, **{name: getattr(plain, name) for name in (*budget, *way)})


def allocation(config: PruneConfig) -> str:
    """Return the allocation that is in force: uniform, equal, global, depth, own or searched."""
    if config.scope is not None and config.allocation == "paper":
        return SCOPES[config.scope]
    return CRITERIA[config.method].paper if config.allocation == "paper" else config.allocation


def ruled(config: PruneConfig) -> bool:
    """Return whether an option fixes the share that each layer loses, so that no budget is shared out."""
    return config.channel_ratio is not None or config.layer_ratios is not None


def settled(config: PruneConfig, shape: DecoderShape) -> PruneConfig:
    """Return `config` with `layers` and `round_to` written out for a dense model of `shape`.

    Where no layers are named, `allocation=paper` leaves the criterion's first and last layers as they are: so many of
    32, in proportion for another depth and rounded (of LLM-Pruner 4 and 2, which prunes 4-29 of 32 and 4-27 of 30).
    They are of a recipe for heads and channels: where only whole layers or hidden channels go, none is protected.
    """
    config, count = rounded(config, shape), len(shape.layers)
    if config.layers is not None:
        return config
    first, last = (0, 0)
    by_paper = config.allocation == "paper" and config.scope is None and config.layer_ratios is None
    if by_paper and {"heads", "queries", "channels"} & set(config.granularity):
        # In integers, so that halves are rounded up on every machine.
        first, last = ((of_32 * count + 16) // 32 for of_32 in CRITERIA[config.method].protected)
    return replace(config, layers=f"{first}-{count - 1 - last}" if first + last else "all")


def notes(config: PruneConfig, plan: PrunePlan) -> list[str]:
    """Return the lines that a plan ends with: on the price of rounding, and on the classes that load the model."""
    return [*price(config, plan), *_loading(config, plan)]


def _loading(config: PruneConfig, plan: PrunePlan) -> list[str]:
    """Return a line on the classes that load the pruned model, and on the price of those."""
    needs, criterion = plan.pruned.beyond_stock, CRITERIA[config.method]
    if needs and not plan.dense.beyond_stock:
        kinds = [kind for kind in ("heads", "channels") if kind in criterion.granularities]
        remedy = "prune.compensate=none" if "bias" in needs else "prune.allocation=uniform in all layers"
        if {"attention", "mlp"} & set(config.granularity):
            remedy = f"{remedy} and prune.granularity=[{','.join(kinds)}]" if kinds else ""
        return [
            f"{needs}: the model loads with trust_remote_code=True" + (f" ({remedy} avoids that)" if remedy else "")
        ]
    if not needs and allocation(config) == "uniform" and (any(criterion.protected) or criterion.paper == "global"):
        return [
            f"every layer ends alike, so the model loads anywhere; {config.method}'s own allocation is "
            "prune.allocation=paper (Allocation in docs/pruning.md has the perplexity of both)"
        ]
    return []


def decided_by_shapes(config: PruneConfig) -> bool:
    """Return whether every layer's shape is known before anything is scored."""
    return ruled(config) or allocation(config) in ("uniform", "equal", "depth", "own")


def foreseen(shape: DecoderShape, config: PruneConfig, budget: Budget | None = None) -> PrunePlan | None:
    """Return the plan of every layer of `shape`, or None where it depends on scores.

    Raises:
        UserError: the budget can't be met.
    """
    config = settled(config, shape)
    if config.shapes == "served":
        check_dense(shape, config)
    if decided_by_shapes(config):
        plan = plan_shapes(shape, config, budget=budget)
        if config.shapes == "served":
            check_cut(plan.pruned, config)
        return plan
    check_reachable(budget or budget_of(shape, config), shape, config, config.max_per_layer)
    return None


def plan_shapes(
    shape: DecoderShape, config: PruneConfig, scores: Scores | None = None, budget: Budget | None = None
) -> PrunePlan:
    """Return the plan of every layer of `shape`.

    Args:
        shape: the shape of the model that is cut.
        config: the options of the pruning.
        scores: the scores of its groups; None where shapes alone decide and nothing is scored yet.
        budget: the budget; None takes the share of `shape` that `config` asks for.

    Raises:
        UserError: the budget can't be met.
    """
    config = settled(config, shape)
    if ruled(config):
        return by_channel_ratio(shape, config)
    budget = budget or budget_of(shape, config)
    if not budget.ratio:
        return PrunePlan(dense=shape, layers=shape.layers, hidden=shape.hidden, requested=0.0)
    way, criterion = allocation(config), CRITERIA[config.method]
    if way != "global":
        check_reachable(budget, shape, config)
        if criterion.own is not None and way == "own":
            return criterion.own.plan(budget, shape, config)
        gone = _weakest(scores, shape, config) if scores is not None else ()
        return alike(budget, shape, config, nearest=way == "equal", gone=gone)
    if scores is None:
        raise ValueError("a global ranking needs scores")
    check_reachable(budget, shape, config, config.max_per_layer)
    ladders = ladders_of(scores.numbers(), shape, config, cumulative=criterion.cumulative)
    # FLAP's paper ranks its standardised scores as they are. All other scores are weighed against the size saved.
    return ranked_plan(ladders, budget, shape, per_size=criterion.cumulative or criterion.paper != "global")


def _weakest(scores: Scores, shape: DecoderShape, config: PruneConfig) -> Sequence[int]:
    """Return the layers that may be removed or lose their sub-layer, the lowest score first; empty for other kinds."""
    kinds = [kind for kind in DEPTH if kind in config.granularity]
    if not kinds:
        return ()
    layers = [i for i in layers_of(config, len(shape.layers)) if kinds[0] in scores.layers.get(i, {})]
    layers = [index for index in layers if may_go(config, index, kinds[0])]
    return sorted(layers, key=lambda index: float(scores.layers[index][kinds[0]][0]))
