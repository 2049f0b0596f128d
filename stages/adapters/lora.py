"""LoRA: Low-Rank Adaptation of Large Language Models (arXiv 2106.09685).

    h = W x + (alpha / r) B A x        A: r x in, Kaiming-uniform;  B: out x r, zero

No deviations. It is attached to all seven projections by default, where the paper adapts queries and values.
"""

from __future__ import annotations

from stages.adapters.low_rank import LowRankConfig, low_rank
from stages.adapters.started import StartedConfig, started


def scaling(config: LowRankConfig) -> float:
    """Return alpha / r."""
    return config.alpha / config.rank


LORA = started(low_rank(scaling, config=StartedConfig))
