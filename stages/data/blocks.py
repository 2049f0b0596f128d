"""Rows that a model writes, in blocks: what a killed stage goes on with, and the seed of every row.

Which rows share a pass decides the shapes of its matrix products, and with them the rounding. So blocks are cut by the
row's number, and a block is never written in part, unless it does not fit in memory: then it is written in halves
(`stages.inference.fitting`), and only rounding may tell. No torch here, because a plan reads the data sets' options.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from stages.common.journal import Journal
from stages.common.progress import progress
from stages.stage import JSON

REMEDY = "Free some of it, or let the model write with data.dtype=bfloat16 or fewer data.new_tokens."
"""What may help where a single row does not fit in memory."""
Write = Callable[[Sequence[str]], Sequence[JSON]]
"""Returns the lines of the next block, one for each of the seeds that it is given."""


def write_blocks(
    journal: Journal,
    begin: Callable[[int], Write],
    *,
    size: int,
    seed: int,
    enough: Callable[[Journal], bool] = lambda journal: journal.complete,
) -> None:
    """Add rows to `journal`, block by block, until there are `enough`, and give its file the final name.

    Args:
        journal: the rows of a killed stage, and the place of the others.
        begin: loads the model and returns what writes the blocks from the row of this number on. It is called only
            where a row is missing.
        size: rows of a block. A kill costs at most these.
        seed: what the rows' own seeds are made of.
        enough: whether no further block is wanted.
    """
    if not enough(journal):
        first = len(journal.rows) // size * size
        write = begin(first)
        with progress("writing rows", total=journal.count, initial=len(journal.rows), unit=" rows") as bar:
            while not enough(journal):
                numbers = range(first, min(first + size, journal.count))
                missing = numbers.stop - len(journal.rows)
                # By the row's number, so that what is drawn for it does not depend on where a killed run goes on. A
                # block that a kill tore is written whole, and only the rows that were lacking are kept.
                journal.extend(write([f"{seed} {number}" for number in numbers])[-missing:])
                first = numbers.stop
                bar.update(missing)
    journal.close()
