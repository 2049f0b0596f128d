"""Every data set by name. No torch here, because a plan reads these.

A new data set is a file with a `build(config, inputs, context) -> Built`, an entry here, and `conf/data/NAME.yaml`.
Options of its own are a dataclass in its file, and `defaults: [schema/NAME@_here_, _self_]` in the YAML.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from stages.data import commonsense, file, howto, hub, mixture, passages, sampled, selfwritten, text
from stages.data.config import DataConfig, Part, WheelDataConfig
from stages.data.rows import Built
from stages.stage import Context
from stages.task_library.instructions import FORMATS

Pinned = tuple[Any, dict[str, Path]]


def as_it_is(config: Any, cache: Path) -> Pinned:
    """Return `config` as it is: it names its rows by hash, and no place on this machine."""
    return config, {}


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSet:
    """One data set: how its rows are built, and which judged tasks' train splits are among them.

    Attributes:
        build: returns all rows. The order in which they are trained on is decided elsewhere.
        config: the dataclass of its options.
        pin: given the options and the directory of downloads, returns the options as they enter a key (branches become
            commits, paths digests), and the places on this machine (`Context.locations`).
        label: returns the rows' name in directories and reports.
        parts: returns the other data sets whose rows it takes, by the names of the inputs that they are.
        tasks: lm-eval's names of those tasks. Their scores mix recovery with task fitting, and the report says so.
        resembles: kinds of held-out text (`stages.text_library.kinds`) whose like the rows are. The report says so, and
            leaves them out of the mean over kinds that nothing was fitted to.
        prompts: whether rows have a prompt before their response. False where they are plain text.
    """

    build: Callable[[Any, Mapping[str, Path], Context], Built]
    config: type[DataConfig] = WheelDataConfig
    pin: Callable[[Any, Path], Pinned] = as_it_is
    label: Callable[[Any], str] = lambda config: str(config.name)
    parts: Callable[[Any], dict[str, Part]] = lambda config: {}
    tasks: tuple[str, ...] = ()
    resembles: tuple[str, ...] = ()
    prompts: bool = True


NAMED_MIXTURE = DataSet(build=mixture.build, config=mixture.MixtureConfig, pin=mixture.pin, parts=mixture.parts_of)
"""A mixture whose parts its YAML names."""

DATASETS: dict[str, DataSet] = {
    "commonsense": DataSet(build=commonsense.build, tasks=tuple(FORMATS)),
    "passages": DataSet(build=passages.build, resembles=("wikipedia",), prompts=False),
    "howto": DataSet(build=howto.build, tasks=howto.SOURCES, prompts=False),
    "alpaca": DataSet(build=hub.build, config=hub.HubConfig, pin=hub.pin, label=hub.label),
    "hub": DataSet(build=hub.build, config=hub.HubConfig, pin=hub.pin, label=hub.label),
    "file": DataSet(build=file.build, config=file.FileConfig, pin=file.pin, label=file.label),
    "text": DataSet(build=text.build, config=text.TextConfig, pin=text.pin, label=text.label, prompts=False),
    "selfwritten": DataSet(
        build=selfwritten.build,
        config=selfwritten.SelfWrittenConfig,
        pin=selfwritten.pin,
        label=selfwritten.label,
        parts=selfwritten.parts_of,
    ),
    "sampled": DataSet(build=sampled.build, config=sampled.SampledConfig, pin=sampled.pin, prompts=False),
    "mixture": replace(NAMED_MIXTURE, label=mixture.label),
    "general": NAMED_MIXTURE,
    "plain": NAMED_MIXTURE,
    "best": NAMED_MIXTURE,
}
