"""Division of rows into training and validation, so that no text is both trained on and held out.

`split` holds all rows in memory, draws evenly over tasks and mixes them. `Aside` sees each row once and holds only the
rows set aside, for data that may be larger than memory.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import blake2b
from heapq import heappush, heapreplace

from stages.data.rows import Row
from stages.errors import UserError


def all_aside(count: int, distinct: int) -> UserError:
    """Return the error for `count` rows to set aside where there are only `distinct` distinct ones."""
    if not distinct:
        return UserError("no row of the data has a text to train on: every response is empty.")
    return UserError(
        f"data.validation_rows={count} sets all of the {distinct} distinct rows aside: nothing would be left to train "
        f"on. Set fewer aside, a tenth say: data.validation_rows={max(distinct // 10, 1)}."
    )


class Aside:
    """The rows to train on in their order, as an iterator that holds back `count` distinct texts.

    The texts with the smallest hashes under `seed` are held back, so each text has the same chance wherever it stands.
    The choice depends on the texts alone, not on their order or repetition. A text that smaller hashes displace is
    yielded then, so some rows come later than they stood.

    Attributes:
        held: the rows held back, once the iterator is at its end.
    """

    def __init__(self, rows: Iterable[Row], count: int, seed: int) -> None:
        self.held: list[Row] = []
        self._rows, self._count, self._seed = rows, count, seed

    def __iter__(self) -> Iterator[Row]:
        """Yield the rows to train on.

        Raises:
            UserError: there are too few distinct texts.
        """
        kept: dict[int, Row] = {}
        # A heap of negated hashes has the largest hash at its top.
        largest: list[int] = []
        given = 0
        for row in self._rows:
            number = self._hash(row.text)
            if number in kept:
                continue
            if len(kept) < self._count:
                kept[number] = row
                heappush(largest, -number)
                continue
            if number < -largest[0]:
                out = kept.pop(-heapreplace(largest, -number))
                kept[number] = row
                row = out
            given += 1
            yield row
        if not given:
            raise all_aside(self._count, len(kept))
        self.held = [kept[number] for number in sorted(kept)]

    def _hash(self, text: str) -> int:
        return int.from_bytes(blake2b(f"{self._seed}/{text}".encode(), digest_size=8).digest())


def split(rows: Sequence[Row], held_out: int, seed: int) -> tuple[list[Row], list[Row]]:
    """Return (training rows, validation rows). No text is in both, and each order is a fair mixture of the tasks.

    `held_out` rows are drawn evenly over tasks, whatever the tasks' sizes. The first tasks by name give the remainder.

    Raises:
        UserError: a task has too few distinct rows.
    """
    by_task = _shuffled_by_task(rows, seed)
    share, remainder = divmod(held_out, len(by_task))
    validation = {
        task: _distinct(by_task[task])[: share + (index < remainder)] for index, task in enumerate(sorted(by_task))
    }
    held = {row.text for drawn in validation.values() for row in drawn}
    train = {task: [row for row in by_task[task] if row.text not in held] for task in by_task}
    if sum(map(len, validation.values())) < held_out or not all(train.values()):
        smallest = min(by_task, key=lambda task: len(by_task[task]))
        raise UserError(
            f"data.validation_rows={held_out} sets {share + (remainder > 0)} rows of each task aside, "
            f"and {smallest} has only {len(by_task[smallest])}: nothing would be left to train on. Set fewer aside."
        )
    return mix(train, seed), mix(validation, seed)


def mix(by_task: Mapping[str, Sequence[Row]], seed: int) -> list[Row]:
    """Return all rows in one order, whose every prefix has each task in proportion to its rows, to within a few rows.

    Row i of a task with n rows stands at (i + u) / n, with one u in [0, 1) drawn for the task.
    """
    places = []
    for task in sorted(by_task):
        offset = random.Random(f"{seed}/{task}/offset").random()
        places += [((i + offset) / len(by_task[task]), task, row) for i, row in enumerate(by_task[task])]
    return [row for _, _, row in sorted(places, key=lambda place: place[:2])]


def _shuffled_by_task(rows: Sequence[Row], seed: int) -> dict[str, list[Row]]:
    by_task: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_task[row.task].append(row)
    for task, group in by_task.items():
        random.Random(f"{seed}/{task}").shuffle(group)
    return by_task


def _distinct(rows: Sequence[Row]) -> list[Row]:
    """Return the first row of each text."""
    # A dictionary keeps the last of equal keys, hence the two reversals.
    return list({row.text: row for row in reversed(rows)}.values())[::-1]
