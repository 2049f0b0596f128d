"""DoRA (arXiv 2402.09353) with the scaling of RoRA (arXiv 2501.04315) and rsLoRA (arXiv 2312.03732).

    h = m (W + (alpha / sqrt(r)) B A) x / ||W + (alpha / sqrt(r)) B A||

Neither paper has this combination. It separates the effect of the scaling from that of the magnitudes. All else is as
in `.dora`.
"""

from __future__ import annotations

from stages.adapters.low_rank import low_rank
from stages.adapters.rora import scaling
from stages.adapters.started import StartedConfig, started

DORA_RS = started(low_rank(scaling, config=StartedConfig, use_dora=True, use_rslora=True))
