"""What a recovery's options may be. No torch here, so that a plan finds the mistake before anything is built."""

from __future__ import annotations

import os
import shutil

from stages.adapters import ADAPTERS
from stages.adapters.adapter import Adapter
from stages.common.checks import require
from stages.common.choices import lookup
from stages.errors import UserError
from stages.recover.config import RecoverConfig, RecoverStageConfig

DTYPES = ("float32", "bfloat16")
LOSSES = ("response", "all")
KEPT = ("last", "best")
COMPILERS = ("g++", "clang++", "c++")


def check_recover(config: RecoverConfig) -> None:
    """Raise a `UserError` for a field outside its range."""
    for name in ("tokens", "batch_tokens", "micro_batch_tokens", "curve_every", "validation_tokens"):
        require(getattr(config, name) >= 1, f"recover.{name}", "at least 1 token", getattr(config, name))
    require(config.test_tokens >= 0, "recover.test_tokens", "at least 0 tokens", config.test_tokens)
    require(config.sequence_length >= 2, "recover.sequence_length", "at least 2 tokens", config.sequence_length)
    require(config.learning_rate > 0, "recover.learning_rate", "above 0", config.learning_rate)
    require(0 <= config.warmup < 1, "recover.warmup", "in [0, 1), a fraction of the budget", config.warmup)
    require(0 <= config.final <= 1, "recover.final", "in [0, 1], a fraction of the peak rate", config.final)
    require(config.weight_decay >= 0, "recover.weight_decay", "at least 0", config.weight_decay)
    require(config.gradient_clip >= 0, "recover.gradient_clip", "at least 0", config.gradient_clip)
    require(config.loss in LOSSES, "recover.loss", f"one of {', '.join(LOSSES)}", config.loss)
    require(config.keep in KEPT, "recover.keep", f"one of {', '.join(KEPT)}", config.keep)
    names = [os.environ["CXX"]] if "CXX" in os.environ else COMPILERS
    if config.compile and not any(shutil.which(name) for name in names):
        raise UserError(
            f"recover.compile=true needs a C++ compiler, and {' or '.join(names)} is not on the PATH. "
            "Install one or set recover.compile=false."
        )


def gives_model(config: RecoverStageConfig) -> bool:
    """Return whether the recovery ends up in weights of the base's own shape, and not in an adapter beside it."""
    adapter = ADAPTERS[config.adapter.name]
    return adapter.trained is not None or (adapter.merge is not None and config.recover.merge)


def adapter_of(config: RecoverStageConfig) -> Adapter:
    """Return the adapter that `config` names, all of it checked.

    Raises:
        UserError: a field is outside its range; the message has the field, the rule and the value.
    """
    adapter = lookup("adapter", config.adapter.name, ADAPTERS)
    adapter.check(config.adapter)
    check_recover(config.recover)
    require(config.dtype in DTYPES, "dtype", f"one of {', '.join(DTYPES)}", config.dtype)
    return adapter
