"""What a run has found, as trackers take it: figures, scores with their intervals, and what was kept of each layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path

from pipeline.tracking.tracker import PRUNE, RECOVER, Findings, Table
from stages.common.files import read_json
from stages.decoders.shapes import DecoderShape
from stages.prune.kept import kept_of
from stages.report.summary import main_figures, measures
from stages.report.wording import MODELS
from stages.stage import JSON

BEFORE_RECOVERY = ("dense", "pruned")
COMPARED = {
    "pruned − dense": "pruned_minus_dense",
    "recovered − pruned": "recovered_minus_pruned",
    "recovered − dense": "recovered_minus_dense",
    "retained": "retained",
    "recovered share": "recovered",
}
"""Columns of the table of results, each with its 95 % interval, and the effects that fill them."""
SIZES = {"query heads": "heads", "key/value heads": "kv_heads", "MLP channels": "mlp"}
"""What is counted of a layer, and its name in pruning.json and in a layer's shape."""


def findings(job: str, report: JSON, artifacts: Mapping[str, Path], directory: Path) -> Findings:
    """Return what `job` has found.

    Args:
        job: "prune" or "recover". A pruning has the figures of the dense and the pruned model alone, so all
            recoveries of one pruned model say the same of it.
        report: the contents of report.json.
        artifacts: the directories of the run's artifacts, by role. One that was deleted since is left out.
        directory: the run's own, with the report's files.
    """
    models = MODELS if job == RECOVER else BEFORE_RECOVERY
    artifact = artifacts.get(job)
    tables = {"results": results(report, models)}
    if {PRUNE, "model"} <= artifacts.keys():
        tables["kept"] = kept(artifacts[PRUNE] / "model", artifacts["model"] / "model")
    return Findings(
        figures=_figures(report, job),
        tables={name: table for name, table in tables.items() if table.rows},
        manifest=artifact / "manifest.json" if artifact else None,
        model=_weights(artifact) if artifact else None,
        files=sorted(directory.glob("report.*")) if job == RECOVER else (),
    )


def results(report: JSON, models: Sequence[str] = MODELS) -> Table:
    """Return a table with a row for each measure: the score of each model, then the differences with intervals."""
    shown = [model for model in MODELS if model in models and (model != "quantised" or report.get("quantisation"))]
    compared = {
        column: effect for column, effect in COMPARED.items() if "recovered" in models or "recovered" not in column
    }
    if "recovered" not in models:
        compared.pop("retained")
    rows = [
        [
            measure.name,
            *(measure.values.get(model) for model in shown),
            *(value for effect in compared.values() for value in _with_interval(measure.effects.get(effect))),
        ]
        for measure in measures(report)
    ]
    return Table(["measure", *shown, *(end for column in compared for end in _ends(column))], rows)


def kept(pruned: Path, dense: Path) -> Table:
    """Return a table with a row for each layer of the dense model: how many heads and channels stay, and which.

    A layer that is removed keeps none.
    """
    record, shape = read_json(pruned / "pruning.json"), DecoderShape.from_config(read_json(dense / "config.json"))
    columns = ["layer", *(part for size in SIZES for part in (size, f"{size} kept")), *(f"which {s}" for s in SIZES)]
    rows: list[list[object]] = []
    for place, (before, stays) in enumerate(zip(shape.layers, kept_of(record), strict=True)):
        which = {size: stays[name] for size, name in SIZES.items()}
        counts = [count for size, name in SIZES.items() for count in (getattr(before, name), len(which[size]))]
        rows.append([place, *counts, *(ranges(indices) for indices in which.values())])
    return Table(columns, rows)


def ranges(indices: Sequence[int]) -> str:
    """Return ascending indices as text: "0-3 7"."""
    # Indices that follow each other are alike in how far they are from their place.
    runs = [[index for _, index in run] for _, run in groupby(enumerate(indices), key=lambda pair: pair[1] - pair[0])]
    return " ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _weights(artifact: Path) -> Path | None:
    return next((artifact / name for name in ("model", "adapter") if (artifact / name).is_dir()), None)


def _figures(report: JSON, job: str) -> dict[str, float]:
    found = {name: value for name, value in main_figures(report).items() if value is not None}
    if job == RECOVER:
        return found
    return {name: value for name, value in found.items() if name.rpartition("/")[2] in BEFORE_RECOVERY}


def _ends(column: str) -> tuple[str, str, str]:
    return column, f"{column}, low", f"{column}, high"


def _with_interval(effect: JSON | None) -> tuple[float | None, float | None, float | None]:
    if not effect or effect["value"] is None:
        return None, None, None
    low, high = effect.get("interval") or (None, None)
    return effect["value"], low, high
