"""Scores on tasks for a report, from the documents that the evaluate stage kept."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np

from stages.common.files import read_json, read_jsonl
from stages.report.effects import effects
from stages.report.inputs import column, common
from stages.report.statistics import Array, Paired, above_chance, mean, paired, score_intervals
from stages.report.wording import EFFECTS
from stages.stage import JSON


def task_scores(evaluations: Mapping[str, Path], *, resamples: int, seed: int) -> tuple[JSON, JSON | None]:
    """Return the report's `tasks` and `mean` for the models that were evaluated.

    A task holds its label, metric and chance, each model's scores with standard error and interval, and the effects of
    each score. A group of tasks is one task over all its documents. The mean is unweighted, for each score over the
    tasks that have it (`counts`). Its McNemar test is over the documents of all tasks.

    Raises:
        UserError: the models were not judged on the same documents.
    """
    results = {model: read_json(path / "results.json")["tasks"] for model, path in evaluations.items()}
    names = common("tasks", {model: list(result) for model, result in results.items()}) if results else []
    if not names:
        return {}, None
    tasks: JSON = {}
    measured: list[dict[str, Paired]] = []
    hits: list[dict[str, Array]] = []
    for name in names:
        rows = {model: list(read_jsonl(path / "documents" / f"{name}.jsonl")) for model, path in evaluations.items()}
        common(f"documents of {name}", {model: [row["doc"] for row in documents] for model, documents in rows.items()})
        figures = {model: result[name] for model, result in results.items()}
        about = next(iter(figures.values()))
        hits.append(_hits(rows))
        measured.append(_scores(rows, hits[-1], about["chance"], resamples=resamples, seed=(seed, *name.encode())))
        tasks[name] = {key: about.get(key) for key in ("label", "metric", "chance")}
        tasks[name] |= _comparison(measured[-1], hits[-1])
        for model, own in figures.items():
            tasks[name][model] |= {key: own.get(key) for key in ("n", "truncated", "unparsed")}
    return tasks, _mean(tasks, measured, hits)


def _hits(rows: Mapping[str, list[JSON]]) -> dict[str, Array]:
    """Return the documents' scores that are accuracies, {"acc", "acc_norm"}, where every document has them."""
    columns = {key: column(rows, key) for key in ("acc", "acc_norm")}
    return {key: values for key, values in columns.items() if values is not None}


def _scores(
    rows: Mapping[str, list[JSON]],
    hits: Mapping[str, Array],
    chance: float | None,
    *,
    resamples: int,
    seed: tuple[int, ...],
) -> dict[str, Paired]:
    """Return the scores that the task has. All rest on the same draws of documents."""
    # One seed for all scores, so that each draw picks the same documents for every score.
    draw = partial(paired, list(rows), resamples=resamples, seed=seed)
    found = {key: draw(hits_MN, np.ones(hits_MN.shape[1])) for key, hits_MN in hits.items()}
    if chance is not None and chance < 1:
        found["above_chance"] = above_chance(found["acc"], chance)
    bits_MN, bytes_MN = column(rows, "bits"), column(rows, "bytes")
    if bits_MN is not None and bytes_MN is not None and bytes_MN[0].sum() > 0:
        found["bits_per_byte"] = draw(bits_MN, bytes_MN[0])
    return found


def _mean(tasks: JSON, measured: list[dict[str, Paired]], hits: list[dict[str, Array]]) -> JSON:
    models = measured[0]["acc"].models
    having = {key: [scores[key] for scores in measured if key in scores] for key in EFFECTS}
    pooled = {key: [task[key] for task in hits if key in task] for key in ("acc", "acc_norm")}
    chances = [task["chance"] for task in tasks.values()]
    average = _comparison(
        {key: mean(groups) for key, groups in having.items() if groups},
        {key: np.concatenate(columns, axis=1) for key, columns in pooled.items() if columns},
    )
    for model in models:
        own = [task[model] for task in tasks.values()]
        average[model]["n"] = sum(figures["n"] for figures in own)
        unparsed = [figures["unparsed"] for figures in own]
        average[model]["unparsed"] = None if None in unparsed else float(np.mean(unparsed))
    return {
        "metric": "acc" if {task["metric"] for task in tasks.values()} <= {"acc", None} else "score",
        "chance": None if None in chances else float(np.mean(chances)),
        "counts": {key: len(groups) for key, groups in having.items()},
    } | average


def _comparison(measured: Mapping[str, Paired], hits: Mapping[str, Array]) -> JSON:
    """Return {model: scores} and each score's effects. A score that is missing is None, and its effects are empty."""
    models: JSON = {model: {} for model in measured["acc"].models}
    found: JSON = {}
    for key, name in EFFECTS.items():
        scores = measured.get(key)
        intervals = score_intervals(scores) if scores else {}
        for place, own in enumerate(models.values()):
            own[key] = float(scores.score_M[place]) if scores else None
            known = scores is not None and np.isfinite(scores.error_M[place])
            own[f"{key}_stderr"] = float(scores.error_M[place]) if scores and known else None
            own[f"{key}_interval"] = intervals.get(list(models)[place])
        test = hits.get("acc" if key == "above_chance" else key)
        better, floor = key != "bits_per_byte", "chance" if key == "above_chance" else "0"
        found[name] = effects(scores, higher_is_better=better, hits_MN=test, floor=floor) if scores else {}
    return models | found
