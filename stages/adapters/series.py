"""The series adapter of LLM-Adapters (arXiv 2304.01933), after Houlsby et al. (arXiv 1902.00751).

    h = y + s U f(D y)        y = W x: the output of a projection;  f: tanh;  s: 1;  bottleneck 256

It follows the MLP's output projection, where the paper finds it best. targets=[o_proj,down_proj] puts one after the
attention as well. At these defaults llama-7B trains 67 million parameters, the paper's 0.99 %. No biases, as there.
Deviation: U starts at zero (`.bottleneck`).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from stages.adapters.bottleneck import BottleneckConfig, bottleneck


@dataclass(kw_only=True, slots=True)
class SeriesConfig(BottleneckConfig):
    """A small network after some linear layers."""

    targets: list[str] = field(default_factory=lambda: ["down_proj"])
    """Names of the linear layers that an adapter follows."""


SERIES = bottleneck(SeriesConfig, series=True)
