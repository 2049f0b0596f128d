"""A recovery whose learning rate is looked for, as nodes of the graph: trials at a grid of rates, and their judge.

The grid is fixed when the run is planned, so every trial is an artifact with a key of its own: a killed search goes
on, and another budget or grid builds only the trials that are new.
"""

from __future__ import annotations

import dataclasses

from pipeline.planning.graph import Node
from pipeline.schema.config import RecoverOptions
from stages.recover.config import RecoverStageConfig, TuneStageConfig
from stages.registry import STAGES

TRIAL = STAGES["trial"]


def recovery_roles(role: str, recovery: Node, options: RecoverOptions) -> dict[str, Node]:
    """Return {role: `recovery`}, or with recover.tune=lr its trials and the recovery tuned by them in that role."""
    if options.tune == "none":
        return {role: recovery}
    budget = options.tune_tokens or options.tokens
    rates = sorted(rate_of(options.learning_rate * factor) for factor in options.tune_factors)
    trials = {rate: _trial(recovery, rate, budget) for rate in rates}
    own = {f.name: getattr(recovery.config, f.name) for f in dataclasses.fields(RecoverStageConfig)}
    tuned = Node(
        STAGES["tune"],
        f"{recovery.label}-tuned",
        TuneStageConfig(**own, rates=rates, tokens=budget),
        {**recovery.inputs, **{f"trial {rate:g}": node for rate, node in trials.items()}},
    )
    named = {f"{role.replace('recover', 'trial')}-{rate:g}": node for rate, node in trials.items()}
    return named | {role: tuned}


def rate_of(rate: float) -> float:
    """Return `rate` to six digits, as it is written: 0.0003 and not 0.00030000000000000003."""
    return float(f"{rate:g}")


def _trial(recovery: Node, rate: float, budget: int) -> Node:
    recover = dataclasses.replace(recovery.config.recover, learning_rate=rate, tokens=budget)
    config = dataclasses.replace(recovery.config, recover=recover)
    return Node(TRIAL, f"{recovery.label}-lr{rate:g}", config, recovery.inputs)
