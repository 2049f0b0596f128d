"""Legends and choices of a picture: what its lines are called and look like, and what a reader may choose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stages.report.palette import SERIES

DASHES = ([1, 0], [2, 2], [8, 3, 2, 3], [10, 4])
"""Dashes that tell lines of one colour apart."""
BROKEN = [5, 4]
"""The dash of models before recovery."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """An entry of a legend: the number and name of what it stands for, its colour and its dash."""

    number: int
    name: str
    colour: str
    dash: Sequence[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """A choice that a reader has: the parameter it sets, its label, and its options by what they are called."""

    parameter: str
    label: str
    options: Mapping[str, str | int]

    @property
    def first(self) -> str | int:
        """The option that is chosen at first."""
        return next(iter(self.options.values()))


def entry(number: int, name: str) -> Entry:
    """Return the entry of a line, with the colour and the dash of its number."""
    turn, place = divmod(number, len(SERIES))
    return Entry(number=number, name=name, colour=SERIES[place], dash=DASHES[turn % len(DASHES)])
