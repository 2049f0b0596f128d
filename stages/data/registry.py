"""Every data set by name. No torch here: a plan reads these.

To add one: a file with a `build(config, inputs, context) -> Built`, an entry here, and `conf/data/NAME.yaml`; options
of its own are a dataclass in its file, and the YAML's `defaults: [schema/NAME@_here_, _self_]`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.data import commonsense, file, hub, mixture, passages, text
from stages.data.config import DataConfig, WheelDataConfig
from stages.data.rows import Built
from stages.stage import Context
from stages.task_library.instructions import FORMATS

Pinned = tuple[Any, dict[str, Path]]


def as_it_is(config: Any, cache: Path) -> Pinned:
    """Return `config`: it names its rows by hash, and they lie nowhere on this machine."""
    return config, {}


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSet:
    """How rows are built, and which judged tasks' train splits are among them.

    Attributes:
        build: returns all rows; in what order they are trained on is not its business.
        config: its options.
        pin: what a plan does to the options before they enter a key (branches become commits, paths digests), given
            where downloads are kept; returns them with where things lie on this machine (`Context.locations`).
        label: what the rows are called, in directories and reports.
        tasks: lm-eval's names; their scores mix recovery with task fitting, and the report says so.
    """

    build: Callable[[Any, Mapping[str, Path], Context], Built]
    config: type[DataConfig] = WheelDataConfig
    pin: Callable[[Any, Path], Pinned] = as_it_is
    label: Callable[[Any], str] = lambda config: str(config.name)
    tasks: tuple[str, ...] = ()


DATASETS: dict[str, DataSet] = {
    "commonsense": DataSet(build=commonsense.build, tasks=tuple(FORMATS)),
    "passages": DataSet(build=passages.build),
    "alpaca": DataSet(build=hub.build, config=hub.HubConfig, pin=hub.pin, label=hub.label),
    "hub": DataSet(build=hub.build, config=hub.HubConfig, pin=hub.pin, label=hub.label),
    "file": DataSet(build=file.build, config=file.FileConfig, pin=file.pin, label=file.label),
    "text": DataSet(build=text.build, config=text.TextConfig, pin=text.pin, label=text.label),
    "mixture": DataSet(build=mixture.build, config=mixture.MixtureConfig, pin=mixture.pin, label=mixture.label),
}
