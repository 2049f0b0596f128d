"""What was cut: the heads and the MLP channels that each layer of each pruned model kept."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.comparison.lines import Line, ranges
from pipeline.comparison.run import Run
from pipeline.comparison.runs import grouped
from stages.report import wording as w
from stages.report.blocks import Table
from stages.stage import JSON

PARTS = ("heads", "channels")


def models(lines: Sequence[Line]) -> list[tuple[str, str, Run]]:
    """Return (its runs' numbers, its name, one of its runs) of each pruned model whose layers are known."""
    known = [run for line in lines for run in line.runs if run.layers]
    return [(ranges(sorted(run.number for run in own)), _name(own[0]), own[0]) for own in grouped(known, _pruned)]


def _pruned(run: Run) -> str | None:
    return run.pruned


def _name(run: Run) -> str:
    return f"{run.report['prune']} −{w.percent(run.report['params']['ratio_achieved'], digits=0)}"


def cells(lines: Sequence[Line]) -> list[JSON]:
    """Return {"runs", "name", "layer", "part", "kept", "of", "share"} of each layer and part."""
    drawn = []
    for numbers, name, run in models(lines):
        for place, layer in enumerate(run.layers):
            for part in PARTS:
                kept, whole = getattr(layer, part)
                share = kept / whole if whole else 0.0
                drawn.append({"runs": numbers, "name": name, "layer": place, "part": part, "share": share})
                drawn[-1] |= {"kept": kept, "of": whole}
    return drawn


def table(lines: Sequence[Line]) -> Table:
    """Return one row a pruned model and part, with one column a layer."""
    found = models(lines)
    depth = max(len(run.layers) for _, _, run in found)
    rows = []
    for numbers, name, run in found:
        for part in PARTS:
            kept = [str(getattr(layer, part)[0]) for layer in run.layers]
            of = getattr(run.layers[0], part)[1]
            rows.append([numbers, name, f"{part} of {of}", *kept, *[""] * (depth - len(kept))])
    return Table(("runs", "model", "kept", *(str(place) for place in range(depth))), rows, words=(1, 2))
