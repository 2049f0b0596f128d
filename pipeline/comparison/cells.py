"""Cells: one JSON file a run, with all that a comparison shows of it and what made it.

Cells outlive the store whose runs they are of. A folder of them is compared like a store.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import NoneType

from pipeline.comparison.run import Layer, Run
from pipeline.engine.artifact import MANIFEST
from stages.common.checks import short
from stages.common.files import read_object, write_text
from stages.errors import UserError

KEPT: dict[str, tuple[type, ...]] = {
    "name": (str,),
    "key": (str,),
    "created": (str,),
    "provenance": (dict,),
    "seconds": (int, float, NoneType),
    "pruned": (str, NoneType),
}
"""What a cell has of a run, beside its report and its layers, and the types that each may have."""


def write(directory: Path, groups: Sequence[Sequence[Run]]) -> list[Path]:
    """Write one cell a run of the groups into `directory`; returns their files. What else is there stays."""
    return [_write(directory / f"{run.name}.json", run) for group in groups for run in group]


def files(root: Path) -> list[Path]:
    """Return the JSON files of a folder and of the folders in it, which should be cells; a store has none."""
    return [] if any(root.glob(f"*/*/{MANIFEST}")) else sorted(root.rglob("*.json"))


def read(path: Path) -> Run:
    """Return the run of a cell, without a number.

    Raises:
        UserError: the file is no cell.
    """
    cell = read_object(path)
    try:
        layers = [_layer(**sizes) for sizes in cell["layers"]]
        own = {name: cell[name] for name in KEPT}
        wrong = [name for name, types in KEPT.items() if not isinstance(own[name], types)]
        if wrong:
            raise TypeError(f"{wrong[0]} is {short(repr(own[wrong[0]]))}")
        return Run(number=0, directory=path.parent, report=cell["report"], layers=layers, **own)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{path} is not a cell: {error!r}. `python -m pipeline.compare format=cells output=DIR` writes them."
        ) from None


def _layer(heads: Sequence[int], channels: Sequence[int]) -> Layer:
    (heads_kept, heads_of), (channels_kept, channels_of) = (map(int, sizes) for sizes in (heads, channels))
    return Layer(heads=(heads_kept, heads_of), channels=(channels_kept, channels_of))


def _write(path: Path, run: Run) -> Path:
    cell = {name: getattr(run, name) for name in KEPT} | {"layers": [asdict(layer) for layer in run.layers]}
    # One entry a line: a difference between two versions of a cell can be read.
    entries = [f"{json.dumps(name)}: {_compact(value)}" for name, value in cell.items()]
    entries += [f'"report": {{\n{_lines(run)}\n}}']
    write_text(path, "{\n" + ",\n".join(entries) + "\n}\n")
    return path


def _lines(run: Run) -> str:
    return ",\n".join(f" {json.dumps(name)}: {_compact(value)}" for name, value in run.report.items())


def _compact(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
