"""The protocol by which models were judged, and checks that refuse to pair models that were not judged alike."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from stages.common.files import read_json
from stages.errors import UserError
from stages.report.statistics import Array
from stages.stage import JSON

FACTS = ("num_fewshot", "limit", "dtype", "beams", "new_tokens", "versions", "rows")
"""The facts of an evaluation's `results.json` that a report repeats, besides the name of its protocol."""


def protocol(evaluations: Mapping[str, Path]) -> JSON | None:
    """Return how the models were judged: {"name", …FACTS}, with None for a fact not recorded; None without evaluations.

    Raises:
        UserError: the models were judged by different protocols, examples, limits or rows.
    """
    results = {model: read_json(path / "results.json") for model, path in evaluations.items()}
    if not results:
        return None
    common("protocol", {model: result["protocol"] for model, result in results.items()})
    for key in ("num_fewshot", "limit"):
        common(key, {model: result.get(key) for model, result in results.items()})
    common("rows", {model: _digests(result.get("rows") or {}) for model, result in results.items()})
    first: JSON = next(iter(results.values()))
    return {"name": first["protocol"]} | {key: first.get(key) for key in FACTS}


def common(what: str, found: Mapping[str, Any]) -> Any:
    """Return what all models share. Raise a `UserError` where they differ, because then nothing can be paired."""
    (first, expected), *others = found.items()
    for model, seen in others:
        if seen != expected:
            sizes = f" ({len(expected)} and {len(seen)})" if isinstance(expected, list) else ""
            raise UserError(
                f"the {first} and the {model} model were not judged on the same {what}{sizes}, so they can't be "
                "compared. Evaluate both with the same evaluate.* options."
            )
    return expected


def column(rows: Mapping[str, list[JSON]], name: str) -> Array | None:
    """Return one column of every model's rows, models first; None where any row lacks it."""
    values = [[row.get(name) for row in model] for model in rows.values()]
    if any(value is None for model in values for value in model):
        return None
    return np.array(values, dtype=np.float64)


def _digests(rows: JSON) -> list[str]:
    return [leaf["sha256"] for task in rows.values() for leaf in task["leaves"].values()]
