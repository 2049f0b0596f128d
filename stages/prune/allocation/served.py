"""The restriction of `prune.shapes=served`: what a cut may leave, so that DeciLM can say it. No torch here.

DeciLM has one number of query heads for all layers. So heads and queries go in all layers alike, or not at all. MLP
channels, MLPs and attentions go layer by layer, but the first layer keeps its attention (`.limits.may_go`). What a
pruning can leave is refused when it is planned, by its options or, where shapes alone decide, by its outcome.
"""

from __future__ import annotations

from stages.decoders.decilm import unserved, width_multiple
from stages.decoders.shapes import DecoderShape
from stages.errors import UserError
from stages.prune.config import PruneConfig

HEADS = ("heads", "queries")
"""The kinds of group by which layers may end with numbers of query heads that differ."""


def check_served(config: PruneConfig, *, alike: bool) -> None:
    """Raise a `UserError` where layers could end as DeciLM can't say, whatever the model.

    Args:
        config: the options of the pruning.
        alike: whether heads and queries, where they may go, go in all layers alike.
    """
    for_server = f"prune.shapes=served (prune.serve={config.serve})"
    multiple = width_multiple(config.serve)
    if config.compensate == "bias":
        raise UserError(
            f"{for_server}: prune.compensate=bias gives output projections a bias, for which DeciLM has no place. Use "
            "prune.compensate=none, least_squares or sequential."
        )
    if config.round_to is not None and config.round_to % multiple:
        raise UserError(
            f"{for_server}: the server computes MLP widths in multiples of {multiple}, and prune.round_to="
            f"{config.round_to} leaves others. Leave prune.round_to out, or serve with prune.serve=vllm."
        )
    heads = [kind for kind in HEADS if kind in config.granularity]
    if heads and not alike:
        rest = [kind for kind in config.granularity if kind not in HEADS] or ["channels"]
        raise UserError(
            f"{for_server}: DeciLM has one number of query heads for all layers, and here {' and '.join(heads)} would "
            f"go in some layers and not in others. Use prune.granularity=[{','.join(rest)}], or prune.layers=all with "
            "prune.allocation=searched or uniform, by which heads go in all layers alike."
        )


def check_dense(shape: DecoderShape, config: PruneConfig) -> None:
    """Raise a `UserError` where DeciLM can't say the dense model's shape, from which every cut starts."""
    if reason := unserved(shape, config.serve):
        raise UserError(f"prune.shapes=served: the model can't be served before anything is cut. {reason}.")


def check_cut(shape: DecoderShape, config: PruneConfig) -> None:
    """Raise a `UserError` where DeciLM can't say the shape that a cut leaves."""
    if reason := unserved(shape, config.serve):
        raise UserError(f"prune.shapes=served (prune.serve={config.serve}): {reason}.")
