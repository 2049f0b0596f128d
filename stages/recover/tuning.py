"""The `trial` and `tune` stages: a recovery at the learning rate with the lowest validation loss of the trials.

A trial is a recovery at one rate of a fixed grid. A trial that diverges is a result like any other. `tune` compares the
trials by validation loss. Where the trials had the whole budget, the best trial is the recovery. Otherwise a recovery
is trained at the best trial's rate.

In `recovery.json`, the validation loss has been used for the choice, and the test rows have not.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from stages.common.files import read_json, write_json, write_jsonl
from stages.errors import Diverged, UserError
from stages.recover import checkpoints, stage
from stages.recover.config import RecoverStageConfig, TuneStageConfig
from stages.stage import JSON, Context

TRIAL = "trial "
"""The beginning of a trial's name among the inputs of a tuning; the rest of the name is the rate."""


def trial(config: RecoverStageConfig, inputs: Mapping[str, Path], context: Context) -> JSON:
    """Recover the model in `inputs["model"]` without merging it; returns the content of recovery.json.

    Writes `adapter/` (or `model/`, for an adapter that trains the weights themselves), `history.jsonl` and
    `recovery.json`. Where the loss diverges there is no adapter, and recovery.json has only
    {"diverged": {"step", "tokens"}}.

    Raises:
        UserError: for every reason of a recovery but a loss that is not finite.
    """
    # Gathered here, because a recovery that diverges ends before it writes its history.
    points: list[JSON] = []
    try:
        summary = stage.train(config, inputs, replace(context, log=points.append))
    except Diverged as error:
        summary = {"diverged": {"step": error.step, "tokens": error.tokens}}
        write_jsonl(context.output / "history.jsonl", points)
        write_json(context.output / "recovery.json", summary)
    checkpoints.remove(context.output)
    return summary


def tune(config: TuneStageConfig, inputs: Mapping[str, Path], context: Context) -> JSON:
    """Recover as the `recover` stage does, at the best rate of the trials; returns the content of recovery.json.

    `inputs` has the inputs of a recovery, and the trials, named "trial RATE". recovery.json has one entry more,
    "tuning": the budget of a trial, every trial with its losses, and the result of `choose`.

    Raises:
        UserError: every trial diverged.
        Diverged: the recovery at the chosen rate diverged, where the trials had a smaller budget.
    """
    trials = [_entry(rate, config, inputs[f"{TRIAL}{rate:g}"]) for rate in config.rates]
    tuning = {"budget": config.tokens} | choose(trials, shared=config.recover.learning_rate)
    rate = tuning["chosen"]
    chosen = replace(config, recover=replace(config.recover, learning_rate=rate))
    if config.tokens == config.recover.tokens:
        best = inputs[f"{TRIAL}{rate:g}"]
        for folder in ("adapter", "model"):
            if (best / folder).is_dir():
                shutil.copytree(best / folder, context.output / folder, dirs_exist_ok=True)
        shutil.copyfile(best / "history.jsonl", context.output / "history.jsonl")
        summary: JSON = read_json(best / "recovery.json")
    else:
        summary = stage.train(chosen, inputs, context)
    summary["tuning"] = tuning
    stage.merge(chosen, inputs, context, summary)
    write_json(context.output / "recovery.json", summary)
    checkpoints.remove(context.output)
    return summary


def choose(trials: list[JSON], *, shared: float) -> JSON:
    """Return the result of a tuning: "trials", "chosen" and "shared" rate, "edge", and the "tokens" spent on trials.

    The rate with the lowest validation loss is chosen, and of equal losses the lower rate. "edge" is "lowest" or
    "highest" where the chosen rate is the lowest or highest of the grid, so that a better one may lie beyond; else
    None.

    Raises:
        UserError: every trial diverged.
    """
    finished = [entry for entry in trials if entry["diverged"] is None]
    if not finished:
        rates = ", ".join(f"{entry['learning_rate']:g}" for entry in trials)
        raise UserError(
            f"recover.tune: the loss diverged at every rate ({rates}). Lower recover.learning_rate, or add factors "
            "below the lowest of recover.tune_factors."
        )
    best = min(finished, key=lambda entry: (entry["validation_loss"], entry["learning_rate"]))["learning_rate"]
    return {
        "trials": trials,
        "chosen": best,
        "shared": shared,
        "edge": _edge(best, [entry["learning_rate"] for entry in trials]),
        "tokens": sum(entry["tokens"] for entry in trials),
    }


def _edge(best: float, rates: Sequence[float]) -> str | None:
    if len(rates) == 1:
        return None
    return {min(rates): "lowest", max(rates): "highest"}.get(best)


def _entry(rate: float, config: TuneStageConfig, directory: Path) -> JSON:
    recovery = read_json(directory / "recovery.json")
    diverged = recovery.get("diverged")
    return {
        "learning_rate": rate,
        "factor": rate / config.recover.learning_rate,
        "tokens": diverged["tokens"] if diverged else recovery["training"]["tokens"],
        "validation_loss": None if diverged else recovery["validation"]["final_loss"],
        "test": None if diverged else recovery["test"],
        "diverged": diverged,
    }
