"""How many questions must stand behind a score of the recovery curve before anything shows it.

The curve measures few held-out rows, and of general text few are questions. Artifacts keep every score. The report, its
pictures and the tracker show those that rest on enough questions.
"""

from __future__ import annotations

from typing import Any

FOLLOWED = ("curve_bits_per_byte", "curve_accuracy")
"""Fields of a point of the curve that are scores of questions."""
ENOUGH = 20
"""Fewest questions of a score that is shown. One of 20 moves accuracy by 5 points, and its standard error is 11 points
at an accuracy of 50 %. With fewer, a single answer looks like a step of the recovery."""


def telling(point: dict[str, Any], questions: int) -> dict[str, Any]:
    """Return the point without the scores of questions, unless there are `ENOUGH` questions."""
    if questions >= ENOUGH:
        return point
    return {name: value for name, value in point.items() if name not in FOLLOWED}


def questions_behind(recovery: dict[str, Any]) -> int:
    """Return the number of questions behind the curve, from the contents of `recovery.json`."""
    count: int = (recovery.get("validation") or {}).get("questions", 0)
    return count
