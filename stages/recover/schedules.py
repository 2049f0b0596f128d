"""The learning rate over a recovery: a linear warm-up, then one of the schedules below. No torch here.

With d the share of the way behind the warm-up that is done, f = `final` and δ the share of the budget that decays:

    cosine   f + (1 - f) (1 + cos π d) / 2                                       (arXiv 1608.03983, without restarts)
    linear   f + (1 - f) (1 - d)
    wsd      1 up to the last δ of the budget, then f + (1 - f) (1 - √e)         e: the done share of the decay

All are factors of the peak rate. "wsd" is warm-up, stable, decay (MiniCPM, arXiv 2404.06395), with the 1 - √e decay
that Hägele et al. (arXiv 2405.18392) found better than a linear one. A rate depends on the tokens behind it alone, so a
resumed recovery goes on exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from stages.recover.config import RecoverConfig


def _cosine(config: RecoverConfig, fraction: float) -> float:
    return 0.5 * (1.0 + math.cos(math.pi * _descent(config, fraction)))


def _linear(config: RecoverConfig, fraction: float) -> float:
    return 1.0 - _descent(config, fraction)


def _warmup_stable_decay(config: RecoverConfig, fraction: float) -> float:
    return 1.0 - math.sqrt(max(fraction - (1.0 - config.decay), 0.0) / config.decay)


def _descent(config: RecoverConfig, fraction: float) -> float:
    return (fraction - config.warmup) / (1.0 - config.warmup)


SCHEDULES: dict[str, Callable[[RecoverConfig, float], float]] = {
    "cosine": _cosine,
    "linear": _linear,
    "wsd": _warmup_stable_decay,
}
"""By name, what is left of the way from the peak rate to the last one, at a fraction of the budget behind the
warm-up."""


def learning_rate(config: RecoverConfig, fraction: float) -> float:
    """Return the learning rate of the step that ends at `fraction` of the budget; beyond the budget the last rate."""
    if fraction < config.warmup:
        return config.learning_rate * fraction / config.warmup
    left = SCHEDULES[config.schedule](config, min(fraction, 1.0))
    return config.learning_rate * (config.final + (1.0 - config.final) * left)
