"""The error for a loss that is not finite: the step, the rows, and the last checkpoint."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from stages.errors import Diverged
from stages.rows.packing import Document

LISTED = 40
"""Most lines of the training file that the message names; a step has more of them where rows are short."""
QUOTED = 3
"""Number of rows that the message quotes."""
EXCERPT = 60
"""Characters that are quoted of a row."""


def diverged(
    what: str,
    *,
    step: int,
    tokens: int,
    rate: float,
    documents: Sequence[Document] = (),
    path: Path,
    checkpoint: Path | None,
) -> Diverged:
    """Return the error for `what` ("the loss of step 12 is nan").

    Args:
        what: quantity, step and value.
        step: the optimizer step, counted from 1.
        tokens: tokens trained on before the step.
        rate: the peak learning rate.
        documents: the documents that went through the model.
        path: the file from which they were read.
        checkpoint: the last good checkpoint, or None.
    """
    return Diverged(
        f"{what} (after {tokens:,} tokens){_rows(documents, path)}. Lower recover.learning_rate (now {rate:g}) or "
        f"adapter.alpha, mend or remove a row that is not like the others, or compute in float32. "
        f"Last good checkpoint: {checkpoint or 'none yet'}.",
        step=step,
        tokens=tokens,
    )


def _rows(documents: Sequence[Document], path: Path) -> str:
    """Return the part of the message that names the documents by their lines in `path`, and quotes the first ones."""
    rows = sorted({document.row for document in documents if document.row})
    if not rows:
        return ""
    more = f" and {len(rows) - LISTED} more" if len(rows) > LISTED else ""
    quoted = "; ".join(f"{row}: {_excerpt(line)}" for row, line in _lines(path, set(rows[:QUOTED])))
    return f", on line{'s' * (len(rows) > 1)} {', '.join(map(str, rows[:LISTED]))}{more} of {path} ({quoted})"


def _lines(path: Path, wanted: set[int]) -> list[tuple[int, str]]:
    with path.open(encoding="utf-8") as lines:
        return [(number, line) for number, line in enumerate(lines, start=1) if number in wanted]


def _excerpt(line: str) -> str:
    row = json.loads(line)
    text = " ".join(f"{row['prompt']}{row['response']}".split())
    return f"“{text[:EXCERPT]}{'…' if len(text) > EXCERPT else ''}”"
