"""DoRA: Weight-Decomposed Low-Rank Adaptation (arXiv 2402.09353).

    h = m (W + (alpha / r) B A) x / ||W + (alpha / r) B A||        m: one magnitude an output, from ||W||

The norm is taken over each output's row and held constant in the backward pass (the paper's section 4.3). No
deviations beyond the targets: all seven projections, where the paper leaves out the output and gate projections.
"""

from __future__ import annotations

from stages.adapters.lora import scaling
from stages.adapters.low_rank import low_rank
from stages.adapters.started import StartedConfig, started

DORA = started(low_rank(scaling, config=StartedConfig, use_dora=True))
