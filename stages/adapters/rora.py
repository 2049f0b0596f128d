"""RoRA: Efficient Fine-Tuning of LLM with Reliability Optimization for Rank Adaptation (arXiv 2501.04315).

    h = W x + (alpha / sqrt(r)) B A x        A, B as in LoRA

LoRA's alpha / r shrinks the gradient of B by 1/sqrt(r) as the rank grows; alpha / sqrt(r) keeps it level. The formula
is also rsLoRA's (arXiv 2312.03732), which PEFT calls `use_rslora`. So RoRA(alpha, r) is exactly LoRA(alpha sqrt(r), r):
every result of one of them is a result of the other at another alpha.

Only the paper's abstract was available: its alpha, learning rates and ranks are not known here.
"""

from __future__ import annotations

from math import sqrt

from stages.adapters.low_rank import LowRankConfig, low_rank
from stages.adapters.started import StartedConfig, started


def scaling(config: LowRankConfig) -> float:
    """Return alpha / sqrt(r)."""
    return config.alpha / sqrt(config.rank)


RORA = started(low_rank(scaling, config=StartedConfig, use_rslora=True))
