"""The multiple that kept MLP channels are rounded to, where `prune.round_to` names none, and what it costs. No torch.

Kernels for half precision want widths that whole tiles fill. A llama of 7B parameters has 11,008 MLP channels, which is
172 · 64. A fifth of its parameters less leaves 8,605, which is odd, and slower than 8,640 would be.
"""

from __future__ import annotations

from dataclasses import replace

from stages.decoders.decilm import width_multiple
from stages.decoders.shapes import DecoderShape
from stages.prune.allocation.outcome import PrunePlan
from stages.prune.config import PruneConfig

ALIGNED = 64
"""Channels of a tile of matrix kernels for half precision; 8 are the least that tensor cores take without padding."""
WIDE = 4800
"""MLP channels of a layer from which on they are rounded to `ALIGNED`. Where all layers end alike, rounding moves up to
32 channels in each. MLPs have at most three quarters of a model's parameters, so that is at most 0.75 · 32 / 4,800 of
them: half a point, the tolerance of a budget. Narrower layers would miss it."""


def rounded(config: PruneConfig, shape: DecoderShape | None) -> PruneConfig:
    """Return `config` with `round_to` settled for a dense model of `shape`; a given multiple stays.

    An unknown shape (None) keeps every number of channels. So do `channel_ratio` and `layer_ratios`, which round as
    LLM-Pruner does, and hidden channels, one of which is worth more parameters than the tolerance of a budget allows.
    Where a server reads no other widths (`prune.shapes=served`), the multiple is the server's.
    """
    if config.round_to is not None:
        return config
    if config.shapes == "served" and width_multiple(config.serve) > 1:
        return replace(config, round_to=width_multiple(config.serve))
    exact = config.channel_ratio is not None or config.layer_ratios is not None
    kinds = set(config.granularity)
    wide = shape is not None and max(layer.mlp for layer in shape.layers) >= WIDE
    rounds = wide and not exact and "channels" in kinds and "hidden" not in kinds
    return replace(config, round_to=ALIGNED if rounds else 1)


def price(config: PruneConfig, plan: PrunePlan | None = None) -> list[str]:
    """Return the line on what rounding costs, as a list; empty where nothing is rounded.

    Without a `plan`, whose sizes scores decide, the line says only that channels are rounded.
    """
    if config.multiple == 1 or "channels" not in config.granularity:
        return []
    line = f"MLP channels stay in multiples of {config.multiple}"
    needed = config.shapes == "served" and width_multiple(config.serve) > 1
    otherwise = f"prune.{'serve=vllm' if needed else 'round_to=1'} keeps any number"
    if plan is None or plan.requested is None:
        return [f"{line} ({otherwise})"]
    macs = config.budget == "macs"
    before, after = (plan.macs_before, plan.macs_after) if macs else (plan.parameters_before, plan.parameters_after)
    more = after - round(before * (1 - plan.requested))
    unit = "multiply-accumulates a token" if macs else "parameters"
    than = f"{abs(more):,} {unit} {'more' if more > 0 else 'fewer'} stay than asked ({abs(more) / before:.2%})"
    return [f"{line}: {than}; {otherwise}"]
