"""A report's files, from one renderer for the artifact and for the run directory.

The renderer is fast on purpose. A fully cached run renders its report again, because its stages and times are new. It
takes the pictures that the artifact holds, and needs neither numpy nor matplotlib.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from stages.common.files import read_json, write_text
from stages.common.visible import visible
from stages.report.blocks import html, markdown
from stages.report.content import page
from stages.stage import JSON

SCHEMA = 3
"""Raised by one when a field of report.json changes its meaning."""

PICTURES = ("curve", "tasks")


def files(report: JSON, pictures: Mapping[str, str]) -> dict[str, str]:
    """Return the text of each file of a report, by name. Equal reports and pictures give equal bytes."""
    content = page(report, pictures)
    texts = {
        "report.json": json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False) + "\n",
        "report.md": markdown(content),
        "report.html": html(content),
        **{f"{name}.svg": svg for name, svg in pictures.items()},
    }
    # Names of models, tasks and files are anyone's, and a model may have written the texts.
    return {name: visible(text) for name, text in texts.items()}


def pictures(artifact: Path) -> dict[str, str]:
    """Return the pictures that a report artifact holds."""
    paths = {name: artifact / f"{name}.svg" for name in PICTURES}
    return {name: path.read_text(encoding="utf-8") for name, path in paths.items() if path.is_file()}


def write_run_report(artifact: Path, run: JSON, output: Path) -> JSON:
    """Write the run directory's report files into `output` and return its JSON.

    `run` holds what depends on the run. Its "stages" ([{name, key, status, seconds, peak_memory_bytes, drift}]) become
    the report's `stages`. The rest (versions, hardware, commit, command, started, …) becomes the report's `run`. The
    artifact is only read.
    """
    report: JSON = read_json(artifact / "report.json")
    report["stages"] = list(run.get("stages", []))
    report["run"] = {name: value for name, value in run.items() if name != "stages"}
    for name, text in files(report, pictures(artifact)).items():
        write_text(output / name, text)
    return report
