"""Which modules of a model directory are masked. The mask itself is the zeros of their weights.

What the prune stage wrote in pruning.json, the recover stage keeps and others may show. No torch here.
"""

from __future__ import annotations

from pathlib import Path

from stages.files import read_json


def masked_modules(directory: Path) -> frozenset[str]:
    """Return the full names of the modules of `directory` whose zeros must stay zeros; none where nothing is masked."""
    record = directory / "pruning.json"
    return frozenset(read_json(record).get("masks") or ()) if record.is_file() else frozenset()
