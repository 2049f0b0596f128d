"""Perplexities of held-out passages and of corpora, and the shares of their logarithm that were lost and came back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from stages.common.files import read_json
from stages.report.effects import effects
from stages.report.inputs import column, common
from stages.report.statistics import Paired, paired, score_intervals
from stages.stage import JSON

LARGEST = 700.0
"""Nats above which a perplexity is no longer a float."""


def perplexities(evaluations: Mapping[str, Path], *, resamples: int, seed: int) -> JSON | None:
    """Return the report's `perplexity`: each model's, its intervals, and the paired effects on log perplexity.

    Passages are resampled. Where the models' tokenizers count tokens differently, the effects are per byte
    (`per: "byte"`), because perplexities per token can't be compared. None where no passage was scored.
    """
    files = {model: read_json(path / "perplexity.json") for model, path in evaluations.items()}
    if not files:
        return None
    passages = {model: file.get("passages") or [] for model, file in files.items()}
    titles = common("held-out passages", {model: [row["title"] for row in rows] for model, rows in passages.items()})
    totals, tokens, sizes = (column(passages, key) for key in ("nll", "tokens", "bytes"))
    if not titles or totals is None or tokens is None or sizes is None:
        return None
    per = "token" if (tokens == tokens[0]).all() else "byte"
    weights = tokens[0] if per == "token" else sizes[0]
    logs = paired(tuple(passages), totals, weights, resamples=resamples, seed=(seed, *b"perplexity"))
    report: JSON = {model: float(files[model]["perplexity"]) for model in logs.models}
    if per == "token":
        report["intervals"] = _exponentiated(logs)
    report |= {"per": per, "passages": len(titles), "log": effects(logs, higher_is_better=False)}
    report["bits_per_byte"] = {model: files[model].get("bits_per_byte") for model in logs.models}
    return report


def corpora(evaluations: Mapping[str, Path], *, resamples: int, seed: int) -> list[JSON]:
    """Return one entry a corpus and window length: {"corpus", "length", "windows", MODEL…, "intervals", "log"}.

    Windows are resampled. Windows of one article are alike, so these intervals are a little narrow. Models whose
    tokenizers cut a text into other windows keep their perplexities, without intervals and effects.
    """
    files = {model: read_json(path / "perplexity.json").get("corpora") or {} for model, path in evaluations.items()}
    asked = {
        model: [(name, length) for name, lengths in file.items() for length in lengths] for model, file in files.items()
    }
    return [
        _corpus(
            name,
            length,
            {model: file[name][length] for model, file in files.items()},
            resamples=resamples,
            seed=(seed, *f"{name}@{length}".encode()),
        )
        for name, length in (common("corpora", asked) if asked else [])
    ]


def _corpus(name: str, length: str, found: Mapping[str, JSON], *, resamples: int, seed: tuple[int, ...]) -> JSON:
    counts = {(entry["tokens"], len(entry["windows"])) for entry in found.values()}
    entry: JSON = {"corpus": name, "length": int(length)}
    entry |= {model: float(own["perplexity"]) for model, own in found.items()}
    # Other counts mean other windows, which can't be paired.
    if len(counts) > 1:
        return entry | {"windows": None, "intervals": {}, "log": {}}
    tokens, windows = counts.pop()
    totals_MN = np.array([own["windows"] for own in found.values()], dtype=np.float64)
    logs = paired(tuple(found), totals_MN, np.full(windows, tokens / windows), resamples=resamples, seed=seed)
    return entry | {
        "windows": windows,
        "intervals": _exponentiated(logs),
        "log": effects(logs, higher_is_better=False),
    }


def _exponentiated(logs: Paired) -> JSON:
    ends = score_intervals(logs)
    return {model: [math.exp(min(end, LARGEST)) for end in interval] for model, interval in ends.items()}
