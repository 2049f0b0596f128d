"""The prune stage run on a saved model, for the tests of what it writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from stages.prune.stage import run
from stages.stage import Context


def prune(config: Any, model: Path, output: Path, **inputs: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run the stage; returns the summary and pruning.json."""
    output.mkdir()
    summary = run(config, {"model": model, **inputs}, Context(output=output))
    return summary, json.loads((output / "model" / "pruning.json").read_text())
