"""The parallel adapter of LLM-Adapters (arXiv 2304.01933), after He et al. (arXiv 2110.04366).

    h = W x + s U f(D x)        f: tanh;  s: 1;  bottleneck 256

He et al. put it beside a whole sub-layer. The published code puts it beside single projections, and so does this file:
beside the MLP's up and down projection. At these defaults llama-7B trains 247 million parameters, the paper's 3.54 %.
No biases, as in that code. Deviation: U starts at zero (`.bottleneck`).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from stages.adapters.bottleneck import BottleneckConfig, bottleneck


@dataclass(kw_only=True, slots=True)
class ParallelConfig(BottleneckConfig):
    """A small network beside some linear layers."""

    targets: list[str] = field(default_factory=lambda: ["up_proj", "down_proj"])
    """Names of the linear layers that get an adapter beside them."""


PARALLEL = bottleneck(ParallelConfig, series=False)
