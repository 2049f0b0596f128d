"""What a recovery's configuration may be. No torch here, so that a plan finds the mistake before anything is built."""

from __future__ import annotations

from stages.errors import UserError
from stages.methods import lookup
from stages.recover.adapters import ADAPTERS
from stages.recover.adapters.adapter import Adapter
from stages.recover.config import AdapterConfig, RecoverConfig, RecoverStageConfig

DTYPES = ("float32", "bfloat16")
LOSSES = ("response", "all")


def check(config: RecoverStageConfig) -> Adapter:
    """Return the adapter that `config` names.

    Raises:
        UserError: a field is outside its range; the message has the field, the rule and the value.
    """
    adapter = check_adapter(config.adapter)
    check_recover(config.recover)
    _require(config.dtype in DTYPES, "dtype", f"one of {', '.join(DTYPES)}", config.dtype)
    return adapter


def check_adapter(config: AdapterConfig) -> Adapter:
    """Return the adapter that `config` names; raises a `UserError` for a field outside its range."""
    adapter = lookup("adapter", config.name, ADAPTERS)
    _require(config.rank >= 1, "adapter.rank", "at least 1", config.rank)
    _require(config.alpha > 0, "adapter.alpha", "above 0", config.alpha)
    _require(0 <= config.dropout < 1, "adapter.dropout", "in [0, 1)", config.dropout)
    _require(bool(config.targets), "adapter.targets", "at least one linear layer's name", config.targets)
    return adapter


def check_recover(config: RecoverConfig) -> None:
    """Raise a `UserError` for a field outside its range."""
    for name in ("tokens", "batch_tokens", "micro_batch_tokens", "curve_every", "validation_tokens"):
        _require(getattr(config, name) >= 1, f"recover.{name}", "at least 1 token", getattr(config, name))
    _require(config.sequence_length >= 2, "recover.sequence_length", "at least 2 tokens", config.sequence_length)
    _require(config.learning_rate > 0, "recover.learning_rate", "above 0", config.learning_rate)
    _require(0 <= config.warmup < 1, "recover.warmup", "in [0, 1), a fraction of the budget", config.warmup)
    _require(0 <= config.final <= 1, "recover.final", "in [0, 1], a fraction of the peak rate", config.final)
    _require(config.weight_decay >= 0, "recover.weight_decay", "at least 0", config.weight_decay)
    _require(config.gradient_clip >= 0, "recover.gradient_clip", "at least 0", config.gradient_clip)
    _require(config.loss in LOSSES, "recover.loss", f"one of {', '.join(LOSSES)}", config.loss)


def _require(fulfilled: bool, field: str, rule: str, value: object) -> None:
    if not fulfilled:
        raise UserError(f"{field} must be {rule}, and is {value!r}.")
