"""What a `.wandb` file says: the curve, the summary, the run's own record."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipeline.tracking import wandb_file
from pipeline.tracking.wandb_file import records


def wait(path: Path) -> Path:
    """Return `path` once it is whole."""
    if not wandb_file.wait(path, 30):
        raise TimeoutError(f"{path} has no exit record")
    return path


def history(path: Path) -> list[dict[str, Any]]:
    """Return the points that were logged, in order."""
    rows = [record.history.item for record in records(path) if record.WhichOneof("record_type") == "history"]
    return [{_key(item): json.loads(item.value_json) for item in row} for row in rows]


def summary(path: Path) -> dict[str, Any]:
    """Return the run's summary as its last updates left it."""
    found: dict[str, Any] = {}
    for record in records(path):
        if record.WhichOneof("record_type") == "summary":
            found |= {_key(item): json.loads(item.value_json) for item in record.summary.update}
    return found


def table(path: Path, name: str) -> dict[str, Any]:
    """Return a table of the summary, as the file of a run's directory has it: "columns" and "data"."""
    found: dict[str, Any] = json.loads((path.parent / "files" / summary(path)[name]["path"]).read_text())
    return found


def run(path: Path) -> Any:
    """Return the run's own record: id, project, name, group, config."""
    return next(record.run for record in records(path) if record.WhichOneof("record_type") == "run")


def metrics(path: Path) -> dict[str, str]:
    """Return {metric or glob: the metric it is drawn over}."""
    found = [record.metric for record in records(path) if record.WhichOneof("record_type") == "metric"]
    return {metric.name or metric.glob_name: metric.step_metric for metric in found}


def artifacts(path: Path) -> list[Any]:
    """Return the artifacts that were logged: type, name, and the entries of their manifests."""
    return [record.artifact for record in records(path) if record.WhichOneof("record_type") == "artifact"]


def _key(item: Any) -> str:
    return item.key or ".".join(item.nested_key)
