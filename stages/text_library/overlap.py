"""Copies among texts: those that share a run of words with another text, whatever its punctuation and capitals."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator

WORDS = re.compile(r"\w+")
RUN = 13
"""Words in a row that two texts share only if one is a copy, in part, of the other or both of a third. GPT-3's authors
look for runs of this length in their training data (arXiv 2005.14165, appendix C)."""


def copied(held_out: Iterable[str], others: Iterable[str]) -> set[str]:
    """Return the texts of `held_out` that share a run of `RUN` words with one of `others`.

    A text of fewer words is itself a run. The runs of `held_out` are in memory at once, those of `others` never.
    """
    having: dict[tuple[str, ...], list[str]] = defaultdict(list)
    shorter: set[int] = set()
    for text in held_out:
        for run in runs(text):
            having[run].append(text)
            shorter |= {len(run)} - {RUN}
    found: set[str] = set()
    for other in others:
        for length in (RUN, *shorter):
            found.update(text for run in runs(other, length) for text in having.get(run, ()))
    return found


def runs(text: str, length: int = RUN) -> Iterator[tuple[str, ...]]:
    """Yield every run of `length` words in a row, in small letters. A text of fewer words is itself one run."""
    words = WORDS.findall(text.lower())
    for place in range(max(len(words) - length, 0) + 1 if words else 0):
        yield tuple(words[place : place + length])
