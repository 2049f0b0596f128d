"""Generation health for a report: repetition in greedy continuations, and agreement with the dense model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from statistics import fmean

import numpy as np

from stages.common.files import read_json, read_jsonl
from stages.report.effects import PAIRS, effects
from stages.report.inputs import common
from stages.report.statistics import difference, paired, score_intervals
from stages.stage import JSON

EXAMPLES = 3
"""Continuations that a page shows side by side. They are those of the first prompts, so nobody has chosen them."""

Rows = Mapping[str, Sequence[JSON]]
"""The lines of `continuations.jsonl`, one a prompt, by model."""


def generation(evaluations: Mapping[str, Path], *, resamples: int, seed: int) -> JSON | None:
    """Return the report's `generation`, or None where no model was asked to write.

    Each model has the means over prompts of `repeated` (the share of a continuation's 4-grams that it had before),
    `loop`, `ended` and `length`, as the evaluate stage found them. Beside a dense model, each other model has
    `agreement` (the share of places of held-out text at which both find the same token likeliest) and `in_common` (how
    many tokens both continuations begin with, on average). A model with another tokenizer has neither. Prompts are
    resampled.

    Raises:
        UserError: the models did not continue the same prompts.
    """
    found = {model: read_json(path / "results.json").get("generation") for model, path in evaluations.items()}
    length = common("continuations", {model: own and own["new_tokens"] for model, own in found.items()}) if found else 0
    if not length:
        return None
    rows = {model: list(read_jsonl(path / "continuations.jsonl")) for model, path in evaluations.items()}
    prompts = common("prompts", {model: [row["prompt"] for row in own] for model, own in rows.items()})
    models: JSON = {
        model: {key: own[key] for key in ("repeated", "loop", "ended", "length")} for model, own in found.items()
    }
    seeds = (seed, *b"generation")
    return {
        "prompts": len(prompts),
        "new_tokens": length,
        **models,
        "repeated": _repeated(rows, models, resamples=resamples, seed=seeds),
        "agreement": _agreement(rows, models, resamples=resamples, seed=seeds),
        "examples": [
            {"prompt": prompts[place]} | {model: own[place]["output"] for model, own in rows.items()}
            for place in range(min(EXAMPLES, len(prompts)))
        ],
    }


def _repeated(rows: Rows, models: JSON, *, resamples: int, seed: Sequence[int]) -> JSON:
    """Add each model's interval to `models`, and return the effects on the share of repeated 4-grams."""
    shares_MN = np.array([[row["repeated"] for row in own] for own in rows.values()], dtype=np.float64)
    scores = paired(tuple(rows), shares_MN, np.ones(shares_MN.shape[1]), resamples=resamples, seed=seed)
    for model, interval in score_intervals(scores).items():
        models[model]["repeated_interval"] = interval
    return effects(scores, higher_is_better=False)


def _agreement(rows: Rows, models: JSON, *, resamples: int, seed: Sequence[int]) -> JSON:
    """Add each model's agreement with the dense model to `models`, and return the differences between models."""
    dense = rows.get("dense", [])
    others = tuple(model for model in rows if model != "dense" and dense and _alike(rows[model], dense))
    if not others:
        return {}
    hits_MN = [[_same(*pair, "likeliest") for pair in zip(rows[model], dense, strict=True)] for model in others]
    places_N = [len(row["following"]) for row in dense]
    scores = paired(others, np.array(hits_MN, float), np.array(places_N, float), resamples=resamples, seed=seed)
    intervals = score_intervals(scores)
    for place, model in enumerate(others):
        models[model]["agreement"] = float(scores.score_M[place])
        models[model]["agreement_interval"] = intervals[model]
        models[model]["in_common"] = fmean(_beginning(*pair) for pair in zip(rows[model], dense, strict=True))
    return {f"{one}_minus_{other}": difference(scores, one, other) for one, other in PAIRS if {one, other} <= {*others}}


def _alike(rows: Sequence[JSON], dense: Sequence[JSON]) -> bool:
    """Return whether both tokenizers cut the held-out text into the same ids, so that ids can be compared."""
    return [row["following"] for row in rows] == [row["following"] for row in dense]


def _same(row: JSON, other: JSON, key: str) -> int:
    return sum(one == two for one, two in zip(row[key], other[key], strict=True))


def _beginning(row: JSON, other: JSON) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(row["tokens"], other["tokens"], strict=False)))
