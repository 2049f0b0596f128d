"""The license that a model directory's own card names."""

from __future__ import annotations

from pathlib import Path

import yaml

from stages.stage import JSON


def license_of(directory: Path) -> JSON:
    """Return {"license": …} where the front matter of the directory's README.md names one, else an empty dictionary."""
    card = directory / "README.md"
    if not card.is_file():
        return {}
    _, _, rest = card.read_text(encoding="utf-8", errors="replace").partition("---\n")
    matter, closing, _ = rest.partition("\n---")
    try:
        fields = yaml.safe_load(matter) if closing else None
    except yaml.YAMLError:
        return {}
    name = fields.get("license") if isinstance(fields, dict) else None
    return {"license": name} if isinstance(name, str) else {}
