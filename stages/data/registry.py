"""Every data set by name. No torch here: a plan reads these.

To add one: a file with a `build(config, context) -> Built`, an entry here, and `conf/data/NAME.yaml`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from stages.data import commonsense, passages
from stages.data.config import DataConfig
from stages.data.rows import Built
from stages.stage import Context
from stages.tasks.instructions import FORMATS


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSet:
    """How rows are built, and which judged tasks' train splits are among them.

    Attributes:
        build: returns all rows; where some are set aside and in what order the others come is not its business.
        tasks: lm-eval's names; their scores mix recovery with task fitting, and the report says so.
    """

    build: Callable[[DataConfig, Context], Built]
    tasks: tuple[str, ...] = ()


DATASETS: dict[str, DataSet] = {
    "commonsense": DataSet(build=commonsense.build, tasks=tuple(FORMATS)),
    "passages": DataSet(build=passages.build),
}
