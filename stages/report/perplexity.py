"""Perplexities of kinds of text and of corpora, and the shares of their logarithm that were lost and came back."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from stages.common.files import read_json
from stages.report.effects import effects
from stages.report.inputs import common
from stages.report.statistics import Paired, mean, paired, score_intervals
from stages.report.wording import LARGEST
from stages.stage import JSON


def texts(
    evaluations: Mapping[str, Path], resembles: Mapping[str, Sequence[str]], *, resamples: int, seed: int
) -> JSON | None:
    """Return the report's `texts`: {"kinds": {kind: figures}, "mean": figures over kinds, or None}.

    Figures are each model's perplexity, its intervals, the paired effects on log perplexity ("log") and the bits per
    byte. Documents are resampled within their kind. The mean is over the logarithms of the kinds that nothing was
    fitted to ("over"), each counting once, so its perplexity is a geometric mean. `resembles` names the kinds whose
    like was read by the calibration and the recovery ("read_by"). None where no text was scored.

    Where the models' tokenizers count tokens differently, the effects are per byte (`per: "byte"`), because
    perplexities per token can't be compared.

    Raises:
        UserError: the models were not judged on the same texts.
    """
    files = {model: read_json(path / "perplexity.json").get("texts") or {} for model, path in evaluations.items()}
    names = common("kinds of text", {model: list(file) for model, file in files.items()}) if files else []
    if not names:
        return None
    own = {kind: {model: file[kind] for model, file in files.items()} for kind in names}
    per = "token" if all(_alike(found) for found in own.values()) else "byte"
    logs = {kind: _logs(kind, found, per, resamples=resamples, seed=seed) for kind, found in own.items()}
    kinds: JSON = {}
    for kind, found in own.items():
        rows = next(iter(found.values()))["rows"]
        kinds[kind] = {key: rows.get(key) for key in ("label", "use", "source", "licence", "sha256")}
        kinds[kind] |= {"documents": logs[kind].units, "read_by": [by for by in resembles if kind in resembles[by]]}
        kinds[kind] |= _figures(logs[kind], per, {model: entry["perplexity"] for model, entry in found.items()})
        kinds[kind]["bits_per_byte"] = {model: entry["bits_per_byte"] for model, entry in found.items()}
    over = [kind for kind in names if kinds[kind]["use"] == "judged" and not kinds[kind]["read_by"]]
    return {"kinds": kinds, "mean": _mean({kind: kinds[kind] for kind in over}, logs, per) if over else None}


def _alike(found: Mapping[str, JSON]) -> bool:
    """Return whether all models' tokenizers cut the documents into equally many tokens."""
    counts = [[row["tokens"] for row in entry["documents"]] for entry in found.values()]
    return all(count == counts[0] for count in counts)


def _logs(kind: str, found: Mapping[str, JSON], per: str, *, resamples: int, seed: int) -> Paired:
    """Return each model's nats a token (or a byte) of a kind of text, resampled over its documents."""
    rows = {model: entry["documents"] for model, entry in found.items()}
    common(f"texts ({kind})", {model: [row["title"] for row in own] for model, own in rows.items()})
    common(f"texts ({kind})", {model: entry["rows"].get("sha256") for model, entry in found.items()})
    totals_MN = np.array([[row["nll"] for row in own] for own in rows.values()], dtype=np.float64)
    weights_N = np.array([row[f"{per}s"] for row in next(iter(rows.values()))], dtype=np.float64)
    return paired(tuple(rows), totals_MN, weights_N, resamples=resamples, seed=(seed, *b"perplexity", *kind.encode()))


def _figures(logs: Paired, per: str, perplexity: Mapping[str, float]) -> JSON:
    report: JSON = {model: float(value) for model, value in perplexity.items()}
    if per == "token":
        report["intervals"] = _exponentiated(logs)
    return report | {"per": per, "log": effects(logs, higher_is_better=False)}


def _mean(kinds: Mapping[str, JSON], logs: Mapping[str, Paired], per: str) -> JSON:
    average = mean([logs[kind] for kind in kinds])
    geometric = {
        model: math.exp(sum(math.log(entry[model]) for entry in kinds.values()) / len(kinds))
        for model in average.models
    }
    bits = {
        model: sum(entry["bits_per_byte"][model] for entry in kinds.values()) / len(kinds) for model in average.models
    }
    return _figures(average, per, geometric) | {"over": list(kinds), "bits_per_byte": bits}


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
