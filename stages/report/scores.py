"""Reading evaluations and comparing them: from artifacts of the evaluate stage to the numbers of a report.

Models are named by their place in the recovery: "dense" (the reference), "pruned", "recovered"; any may be absent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from stages.errors import UserError
from stages.files import read_json, read_jsonl
from stages.report.statistics import Array, Paired, difference, mean, paired, retained, score_intervals, share
from stages.report.wording import MODELS
from stages.stage import JSON


def task_scores(evaluations: Mapping[str, Path], *, resamples: int, seed: int) -> tuple[JSON, JSON | None]:
    """Return the report's `tasks` and `mean` for the models at hand.

    Raises:
        UserError: the models were not judged on the same documents.
    """
    results = {model: read_json(path / "results.json")["tasks"] for model, path in evaluations.items()}
    if not results:
        return {}, None
    tasks: JSON = {}
    accuracies: list[Paired] = []
    bits: list[Paired] = []
    for name in _common("tasks", {model: list(result) for model, result in results.items()}):
        rows = {model: list(read_jsonl(path / "documents" / f"{name}.jsonl")) for model, path in evaluations.items()}
        _common(f"documents of {name}", {model: [row["doc"] for row in documents] for model, documents in rows.items()})
        draw = partial(paired, list(rows), resamples=resamples, seed=(seed, *name.encode()))
        hits_MN, bits_MN, bytes_MN = (_column(rows, column) for column in ("acc", "bits", "bytes"))
        accuracy, density = draw(hits_MN, np.ones_like(hits_MN[0])), draw(bits_MN, bytes_MN[0])
        accuracies.append(accuracy)
        bits.append(density)
        measured = {model: result[name] for model, result in results.items()}
        tasks[name] = _task(measured, accuracy, density)
    if not tasks:
        return {}, None
    chance = [task["chance"] for task in tasks.values()]
    average: JSON = {"chance": None if None in chance else float(np.mean(chance))}
    average |= _comparison(mean(accuracies), mean(bits))
    return tasks, average


def perplexities(evaluations: Mapping[str, Path], *, resamples: int, seed: int) -> JSON | None:
    """Return the report's `perplexity`: each model's, its intervals, and the paired effects on log perplexity.

    Models whose tokenizers count differently are compared in nats per byte instead, and "per" says so: perplexity
    per token would be another unit for each. None where no passages were evaluated.
    """
    files = {model: read_json(path / "perplexity.json") for model, path in evaluations.items()}
    if not files:
        return None
    passages = {model: file.get("passages") or [] for model, file in files.items()}
    titles = _common("held-out passages", {model: [row["title"] for row in rows] for model, rows in passages.items()})
    if not titles:
        return None
    tokens = _column(passages, "tokens")
    per = "token" if (tokens == tokens[0]).all() else "byte"
    weights = tokens[0] if per == "token" else _column(passages, "bytes")[0]
    logs = paired(tuple(passages), _column(passages, "nll"), weights, resamples=resamples, seed=(seed, *b"perplexity"))
    report: JSON = {model: float(files[model]["perplexity"]) for model in logs.models}
    if per == "token":
        report["intervals"] = {
            model: [math.exp(low), math.exp(high)] for model, (low, high) in score_intervals(logs).items()
        }
    report |= {"per": per, "passages": len(titles), "log": effects(logs, higher_is_better=False)}
    report["bits_per_byte"] = {model: files[model].get("bits_per_byte") for model in logs.models}
    return report


def effects(scores: Paired, *, higher_is_better: bool) -> JSON:
    """Return what can be said of the models at hand: differences, and for recovered models what came back.

    Keys: `pruned_minus_dense`, `recovered_minus_pruned`, `recovered_minus_dense`, `retained` (only where higher is
    better) and `recovered`; a key is absent where one of its models is.
    """
    found: JSON = {}
    for one, other in (("pruned", "dense"), ("recovered", "pruned"), ("recovered", "dense")):
        if {one, other} <= set(scores.models):
            found[f"{one}_minus_{other}"] = difference(scores, one, other)
    if higher_is_better and {"recovered", "dense"} <= set(scores.models):
        found["retained"] = retained(scores, dense="dense", recovered="recovered")
    if set(MODELS) <= set(scores.models):
        found["recovered"] = share(
            scores, dense="dense", pruned="pruned", recovered="recovered", higher_is_better=higher_is_better
        )
    return found


def _task(measured: Mapping[str, JSON], accuracy: Paired, density: Paired) -> JSON:
    """One task's entry: the evaluation's own figures for each model, with the intervals and effects added."""
    first = next(iter(measured.values()))
    entry: JSON = {"label": first["label"], "chance": first["chance"]}
    compared = _comparison(accuracy, density)
    for model, figures in measured.items():
        kept = {key: value for key, value in figures.items() if key not in ("label", "chance")}
        entry[model] = kept | {key: compared[model][key] for key in ("acc_interval", "bits_per_byte_interval")}
    return entry | {"accuracy": compared["accuracy"], "bits_per_byte": compared["bits_per_byte"]}


def _comparison(accuracy: Paired, density: Paired) -> JSON:
    acc_intervals, density_intervals = score_intervals(accuracy), score_intervals(density)
    models = {
        model: {
            "acc": float(accuracy.score_M[place]),
            "acc_interval": acc_intervals[model],
            "bits_per_byte": float(density.score_M[place]),
            "bits_per_byte_interval": density_intervals[model],
            "n": accuracy.units,
        }
        for place, model in enumerate(accuracy.models)
    }
    return models | {
        "accuracy": effects(accuracy, higher_is_better=True),
        "bits_per_byte": effects(density, higher_is_better=False),
    }


def _column(rows: Mapping[str, list[JSON]], name: str) -> Array:
    return np.array([[row[name] for row in model] for model in rows.values()], dtype=np.float64)


def _common(what: str, found: Mapping[str, list[Any]]) -> list[Any]:
    """Return what every model was judged on, in order; raises where they differ, because nothing could be paired."""
    (first, expected), *others = found.items()
    for model, seen in others:
        if seen != expected:
            raise UserError(
                f"the {first} and the {model} model were not judged on the same {what} ({len(expected)} and "
                f"{len(seen)}), so they can't be compared. Evaluate both with the same evaluate.* options."
            )
    return expected
