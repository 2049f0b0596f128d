"""One run of a comparison.

A report says everything but three things. The artifacts that it was made from add them where they are still there: the
seconds of the recovery, and what every layer kept of how much.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from stages.stage import JSON


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """Heads and MLP channels that a layer kept, each as (kept, of how many)."""

    heads: tuple[int, int]
    channels: tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One report of the store.

    Attributes:
        number: its number on the page.
        name: its artifact's name.
        key: its artifact's key; empty where the manifest has none.
        directory: its artifact, or the folder of its cell.
        report: the contents of report.json.
        created: when the report was written.
        provenance: commit and versions that wrote it.
        seconds: the seconds that the recovery took, where its artifact says so.
        pruned: the name of the pruned model's artifact; None where there is none.
        layers: what the layers kept; empty where nothing was cut, or where the artifact is gone.
    """

    number: int
    name: str
    key: str
    directory: Path
    report: JSON
    created: str = ""
    provenance: JSON = field(default_factory=dict)
    seconds: float | None = None
    pruned: str | None = None
    layers: Sequence[Layer] = ()

    @property
    def recovered(self) -> bool:
        """Whether a model was recovered."""
        return bool(self.report["adapter"] != "none")

    @property
    def last(self) -> str:
        """The place of the run's last model: "recovered", else "pruned"."""
        return "recovered" if self.recovered else "pruned"
