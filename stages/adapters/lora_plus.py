"""LoRA+: Efficient Low Rank Adaptation of Large Models (arXiv 2402.12354).

    h = W x + (alpha / r) B A x        A learns at the recovery's rate, B at `ratio` times that rate

The paper shows that in a wide model one rate for both is either too small for B or too large for A. B's rate should be
larger, the more so the harder the task. The authors advise a rate for A somewhat below LoRA's (half of it, say). B's
rate rises and falls along with A's.

No deviations. The authors' code has a third rate for embeddings, which are not adapted here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from stages.adapters.lora import LORA, scaling
from stages.adapters.started import StartedConfig
from stages.common.checks import require

if TYPE_CHECKING:
    from torch.nn import Module


@dataclass(kw_only=True, slots=True)
class LoraPlusConfig(StartedConfig):
    """LoRA's options, and the ratio of the two learning rates."""

    ratio: float = 16.0
    """B's learning rate divided by A's, which is recover.learning_rate; at least 1. 1 is LoRA; 2^4 is usual."""


def check(config: LoraPlusConfig) -> None:
    """Raise a `UserError` for an option outside its range."""
    LORA.check(config)
    require(config.ratio >= 1, "adapter.ratio", "at least 1", config.ratio)


def rates(model: Module, config: LoraPlusConfig) -> Mapping[str, float]:
    """Return the factor `ratio` for each B, by the name of the parameter."""
    return {name: config.ratio for name, _ in model.named_parameters() if ".lora_B." in name}


LORA_PLUS = replace(
    LORA,
    config=LoraPlusConfig,
    check=check,
    facts=lambda config: {"scaling": scaling(config), "learning_rate_ratio": config.ratio},
    rates=rates,
)
