"""The plan of the recover and the adapter group before anything runs: checked options, label and trials. No torch here.

With `recover.tune=lr`, trials at a grid of rates precede a recovery. The grid is fixed here, so every trial is an
artifact with a key of its own. A killed search goes on, and another budget or grid builds only the trials that are new.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Mapping
from dataclasses import fields, replace

from stages.adapters.adapter import Adapter
from stages.adapters.config import AdapterConfig
from stages.adapters.registry import ADAPTERS
from stages.common.checks import require
from stages.common.choices import lookup, narrowed
from stages.common.machine import precision
from stages.decoders.holding import STORED, check_holding
from stages.decoders.shapes import DecoderShape
from stages.errors import UserError
from stages.recover.config import RecoverConfig, RecoverOptions, RecoverStageConfig, TuneStageConfig
from stages.recover.objectives.registry import decisive, objective_of
from stages.recover.schedules import SCHEDULES

DTYPES = ("float32", "bfloat16")
LOSSES = ("response", "all")
KEPT = ("last", "best")
TUNED = ("lr", "none")
COMPILERS = ("g++", "clang++", "c++")


def planned(options: RecoverOptions, adapter: AdapterConfig, *, device: str, seed: int) -> RecoverStageConfig:
    """Return the checked options that are in the key of every recovery of a run; `seed` is the stage's seed.

    Raises:
        UserError: an option is outside its range.
    """
    _check_tuning(options)
    config = RecoverStageConfig(
        adapter=adapter,
        recover=decisive(narrowed(RecoverConfig, options)),
        dtype=precision("recover.dtype", options.dtype, device),
        seed=seed,
    )
    adapter_of(config)
    objective_of(config.recover)
    return config


def label(config: RecoverStageConfig) -> str:
    """Return the first part of a recovery's label, adapter and size; the name of its model follows."""
    return f"{config.adapter.name}-{ADAPTERS[config.adapter.name].label(config.adapter)}"


def taught(config: RecoverStageConfig) -> bool:
    """Return whether the recovery has a teacher among its inputs."""
    return objective_of(config.recover)[0].taught


def trials(config: RecoverStageConfig, options: RecoverOptions) -> dict[float, RecoverStageConfig]:
    """Return the trials that come before the recovery `config`, by their rates; none unless recover.tune=lr."""
    if options.tune == "none":
        return {}
    budget = options.tune_tokens or options.tokens
    seed = config.seed if options.tune_seed is None else options.tune_seed
    rates = sorted(rate_of(options.learning_rate * factor) for factor in options.tune_factors)
    return {
        rate: replace(config, recover=replace(config.recover, learning_rate=rate, tokens=budget), seed=seed)
        for rate in rates
    }


def tuned(config: RecoverStageConfig, trials: Mapping[float, RecoverStageConfig]) -> TuneStageConfig:
    """Return the options in the key of the recovery whose rate `trials` decide."""
    own = {field.name: getattr(config, field.name) for field in fields(RecoverStageConfig)}
    return TuneStageConfig(**own, rates=list(trials), tokens=next(iter(trials.values())).recover.tokens)


def rate_of(rate: float) -> float:
    """Return `rate` to six digits, as it is written: 0.0003 and not 0.00030000000000000003."""
    return float(f"{rate:g}")


def check_fits(adapter: AdapterConfig, shape: DecoderShape) -> None:
    """Raise a `UserError` with the adapter's reason where a model of `shape` can't have the adapter."""
    if adapter.name != "none":
        ADAPTERS[adapter.name].fits(adapter, shape)


def check_base(config: RecoverStageConfig, *, masked: bool, engine: str) -> None:
    """Raise a `UserError` where the base's weights can't be held in fewer bits.

    `masked` says whether zeros of its weights stay, and `engine` how workers share the recovery (`Context.engine`).
    """
    base = config.recover.base
    if base == STORED:
        return
    if masked:
        raise UserError(
            f"recover.base={base} rounds more weights to zero than the mask has zeros, so the mask would be lost. Set "
            f"recover.base={STORED}."
        )
    if engine == "fsdp":
        raise UserError(
            f"recover.base={base} holds all weights on each worker, and runtime=fsdp shards them. Set runtime=ddp, or "
            f"recover.base={STORED}."
        )


def _check_tuning(recover: RecoverOptions) -> None:
    lookup("recover.tune", recover.tune, dict.fromkeys(TUNED))
    factors, tokens = recover.tune_factors, recover.tune_tokens
    sound = len(set(factors)) == len(factors) and all(0 < factor < math.inf for factor in factors)
    require(sound and 1.0 in factors, "recover.tune_factors", "different factors above 0, 1 among them", factors)
    within = tokens is None or 1 <= tokens <= recover.tokens
    require(within, "recover.tune_tokens", f"from 1 to recover.tokens={recover.tokens}", tokens)
    shorter = recover.tune_seed is None or (tokens is not None and tokens < recover.tokens)
    # With the whole budget the best trial is the recovery, whose seed is its own.
    require(shorter, "recover.tune_seed", "null, unless recover.tune_tokens is below recover.tokens", recover.tune_seed)


def check_recover(config: RecoverConfig) -> None:
    """Raise a `UserError` for a field outside its range."""
    for name in ("tokens", "batch_tokens", "micro_batch_tokens", "curve_every", "validation_tokens"):
        require(getattr(config, name) >= 1, f"recover.{name}", "at least 1 token", getattr(config, name))
    require(config.test_tokens >= 0, "recover.test_tokens", "at least 0 tokens", config.test_tokens)
    require(config.sequence_length >= 2, "recover.sequence_length", "at least 2 tokens", config.sequence_length)
    require(config.learning_rate > 0, "recover.learning_rate", "above 0", config.learning_rate)
    require(0 <= config.warmup < 1, "recover.warmup", "in [0, 1), a fraction of the budget", config.warmup)
    require(0 <= config.final <= 1, "recover.final", "in [0, 1], a fraction of the peak rate", config.final)
    lookup("schedule (recover.schedule)", config.schedule, SCHEDULES)
    within = config.schedule != "wsd" or 0 < config.decay <= 1 - config.warmup
    require(within, "recover.decay", f"above 0, and with recover.warmup={config.warmup:g} at most 1", config.decay)
    require(config.weight_decay >= 0, "recover.weight_decay", "at least 0", config.weight_decay)
    require(config.gradient_clip >= 0, "recover.gradient_clip", "at least 0", config.gradient_clip)
    check_holding("recover.base", config.base)
    require(config.loss in LOSSES, "recover.loss", f"one of {', '.join(LOSSES)}", config.loss)
    require(config.keep in KEPT, "recover.keep", f"one of {', '.join(KEPT)}", config.keep)
    # inductor takes the compiler that CXX names, if it is set.
    names = [os.environ["CXX"]] if "CXX" in os.environ else COMPILERS
    if config.compile and not any(shutil.which(name) for name in names):
        raise UserError(
            f"recover.compile=true needs a C++ compiler, and {' or '.join(names)} is not on the PATH. "
            "Install one or set recover.compile=false."
        )


def unread(config: RecoverConfig, *, prompts: bool) -> dict[str, str]:
    """Return the options that are in a recovery's key and that nothing reads, each with the reason.

    `prompts` says whether rows have prompts.
    """
    found = {}
    if config.schedule != "wsd":
        found["recover.decay"] = f"recover.schedule={config.schedule} does not use it, wsd does"
    if not prompts:
        found["recover.loss"] = "the rows are plain text, of which every token is the response"
    return found


def gives_model(config: RecoverStageConfig) -> bool:
    """Return whether the recovery gives a whole model of the base's shape, and not only an adapter beside the base."""
    adapter = ADAPTERS[config.adapter.name]
    return adapter.trained is not None or (adapter.merge is not None and config.recover.merge)


def adapter_of(config: RecoverStageConfig) -> Adapter:
    """Return the adapter that `config` names, after a check of all of `config`.

    Raises:
        UserError: a field is outside its range; the message has the field, the rule and the value.
    """
    adapter = lookup("adapter", config.adapter.name, ADAPTERS)
    adapter.check(config.adapter)
    check_recover(config.recover)
    if config.recover.base != STORED and not adapter.leaves_base(config.adapter):
        raise UserError(
            f"recover.base={config.recover.base} needs an adapter that leaves the weights of the layers as they are, "
            f"and adapter={config.adapter.name} with these options changes them or needs them whole. Choose another "
            f"(adapter=rora), or set recover.base={STORED}."
        )
    require(config.dtype in DTYPES, "dtype", f"one of {', '.join(DTYPES)}", config.dtype)
    return adapter
