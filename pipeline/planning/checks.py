"""What the values of a configuration may be, checked before anything runs: a mistake costs seconds, not a recovery."""

from __future__ import annotations

import math

from pipeline.schema.config import Config, RecoverOptions
from stages.common.checks import require
from stages.common.choices import lookup
from stages.errors import UserError
from stages.evaluate.check import check_cost
from stages.prune.allocation.allocate import check_options
from stages.prune.criteria import Criterion
from stages.prune.methods import METHODS
from stages.task_library.registry import SUITES

UNCUT = ("none", "sheared")
"""Values of `prune` for which there is nothing to cut."""
PRECISIONS = {"auto": None, "float32": None, "bfloat16": None}
PROTOCOLS = {"likelihood": None, "generation": None, "none": None}
ROWS = {"wheel": None, "hub": None}
TUNED = {"lr": None, "none": None}


def check_values(config: Config) -> None:
    """Check what the schema's types leave open.

    Raises:
        UserError: a value is outside its range, or a name is unknown.
    """
    prune, evaluate = config.prune, config.evaluate
    for where, ratio in (("ratio", config.ratio), ("prune.ratio", prune.ratio)):
        require(math.isfinite(ratio), where, "a share in [0, 1)", ratio)
    if prune.method not in UNCUT:
        method = lookup("criterion", prune.method, METHODS)
        method.check(prune)
        if isinstance(method, Criterion):
            check_options(prune)
    for where, dtype in (
        ("prune.dtype", prune.dtype),
        ("recover.dtype", config.recover.dtype),
        ("evaluate.dtype", evaluate.dtype),
        ("evaluate.cost.dtype", evaluate.cost.dtype),
    ):
        lookup(where, dtype, PRECISIONS)
    device = config.runtime.device
    require(device in ("auto", "cpu", "cuda"), "runtime.device", "auto, cpu or cuda", device)
    lookup("evaluate.protocol", evaluate.protocol, PROTOCOLS)
    lookup("evaluate.source", evaluate.source, ROWS)
    if config.model.path is not None:
        require(config.model.kind == "local", "model.path", "given together with model=local", config.model.path)
    for where, count in (
        ("data.validation_rows", config.data.validation_rows),
        ("prune.calibration.sequences", prune.calibration.sequences),
        ("prune.calibration.length", prune.calibration.length),
        ("runtime.threads", config.runtime.threads),
    ):
        require(count is None or count >= 1, where, "at least 1", count)
    _check_tuning(config.recover)
    check_cost(evaluate.cost)
    seconds = config.runtime.checkpoint_seconds
    require(seconds >= 0, "runtime.checkpoint_seconds", "at least 0", seconds)
    if not evaluate.tasks:
        suites = ", ".join(SUITES)
        raise UserError(f"evaluate.tasks is empty. Name some, or a suite ({suites}); or judge nothing: evaluate=none.")


def _check_tuning(recover: RecoverOptions) -> None:
    lookup("recover.tune", recover.tune, TUNED)
    factors, tokens = recover.tune_factors, recover.tune_tokens
    sound = len(set(factors)) == len(factors) and all(0 < factor < math.inf for factor in factors)
    require(sound and 1.0 in factors, "recover.tune_factors", "different factors above 0, 1 among them", factors)
    within = tokens is None or 1 <= tokens <= recover.tokens
    require(within, "recover.tune_tokens", f"from 1 to recover.tokens={recover.tokens}", tokens)
